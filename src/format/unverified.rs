//! Bytes that nobody has checked yet, as a type of their own (rule R12).
//!
//! # Invariants
//!
//! 1. What came from a disk, a log, a client or the partner is `Unverified` until its own `verify` has accepted it; nothing
//!    else gives the value inside.
//! 2. `verify` looks at every byte of the structure, never panics, and does work bounded by the structure's size.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A structure as it was read, not yet checked.
#[derive(Clone, Debug)]
pub struct Unverified<T>(T);

/// How the raw form of a structure is checked.
pub trait Verify {
    /// What the reader knows beforehand: the address, the pool, the lane ...
    type Expected<'a>;
    /// What a successful check gives.
    type Verified;
    /// What can be wrong.
    type Error;

    /// Checks every byte of `self`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn verify(&self, expected: &Self::Expected<'_>) -> Result<Self::Verified, Self::Error>;
}

impl<T: FromBytes + KnownLayout + Immutable + Unaligned> Unverified<T> {
    /// The structure at the start of `bytes`, or `None` when they are too few.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        T::read_from_prefix(bytes).ok().map(|(raw, _rest)| Self(raw))
    }
}

impl<T: Verify> Unverified<T> {
    /// Checks the structure against what the reader expects.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self, expected: &T::Expected<'_>) -> Result<T::Verified, T::Error> {
        self.0.verify(expected)
    }
}
