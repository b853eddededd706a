//! Mailboxes between reactors and the idle policy.

pub mod idle;
pub mod mailbox;

pub use idle::{Idle, IdlePolicy};
pub use mailbox::{Mailbox, MailboxSender, Waker, mailbox};
