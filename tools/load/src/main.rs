//! The load tool: throughput, latency and proof that no acknowledged write was lost.

fn main() {}
