//! The driver on the model of a controller.

mod conformance;
mod driver;
mod fuzz;
mod interrupts;
mod reservation;
mod support;
