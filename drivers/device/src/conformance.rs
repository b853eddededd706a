//! The conformance suite: what every driver of a kind must do, run by each driver's own tests.
