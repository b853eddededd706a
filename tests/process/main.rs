//! Real processes: nodes, pairs and clients as a user runs them, killed, stopped, cut off, filled up and lied to.
//!
//! Most of the time of these tests is spent waiting: they are one program, so that they wait side by side.

#[path = "../common/mod.rs"]
mod common;

mod damage;
mod demo;
mod fence;
mod foreign;
mod forward;
mod full;
mod held;
mod hostile;
mod interconnect;
mod kill;
mod netns;
mod nvme;
mod pair;
mod reservations;
mod secrets;
mod trouble;
mod up;
mod witness;
