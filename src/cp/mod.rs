//! Consistency points.
