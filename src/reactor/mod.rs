//! Mailboxes between reactors and the idle policy.
