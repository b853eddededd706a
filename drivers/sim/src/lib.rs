//! Simulated devices, log memory and network, with the fault model.

pub mod log;
