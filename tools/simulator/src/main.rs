//! Two nodes' worth of engine in one thread, in virtual time, from one seed.

fn main() {}
