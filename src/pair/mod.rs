//! The pair: who serves a pool, and what happens when a node, its log or the way between the nodes fails.

pub mod arbiter;
pub mod auth;
pub mod controller;
pub mod decide;
pub mod fence;
pub mod forward;
pub mod interconnect;
pub mod link;
pub mod mirror;
pub mod ownership;
pub mod reservation;
pub mod seam;
pub mod way;
pub mod wire;
pub mod witness;
