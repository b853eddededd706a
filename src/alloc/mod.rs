//! The write-anywhere allocator.
