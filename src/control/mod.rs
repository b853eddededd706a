//! Configuration, admin API, metrics and status.
