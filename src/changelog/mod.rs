//! The change log: lanes of records in log memory.
