//! A change log in mapped persistent memory.
