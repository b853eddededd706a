//! Objects: block trees, buffer cache, volumes.

pub mod directory;
pub mod reservation;
pub mod volume;
