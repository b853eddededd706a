//! Objects: block trees, caches and volumes.
