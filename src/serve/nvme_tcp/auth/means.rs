//! What authentication needs beyond its messages: random bytes, and somebody who computes powers.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};
use twinlog_chap::{EXPONENT_BYTES, Group, Hash};

/// Bytes of a seed.
const SEED_BYTES: usize = 32;

/// Where a power appears when it is there.
pub(super) type Power = Arc<OnceLock<Vec<u8>>>;

/// A power to be computed.
pub struct Job {
    group: Group,
    /// `None`: the group's generator.
    base: Option<Vec<u8>>,
    exponent: [u8; EXPONENT_BYTES],
    result: Power,
}

impl fmt::Debug for Job {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Job").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Job {
    /// Computes it: about 1 ms for the group of 2048 bits, 20 ms for that of 8192.
    pub fn run(self) {
        let power = match &self.base {
            None => self.group.element(&self.exponent),
            Some(base) => self.group.common(base, &self.exponent),
        };
        // Nobody else has the job.
        let _ = self.result.set(power);
    }
}

/// Somebody who computes powers.
pub trait Calculator: fmt::Debug + Send + Sync {
    /// Has `job` run once, now or soon; whoever may wait for it looks again then. Returns whether it will be: false when too many wait.
    fn start(&self, job: Job) -> bool;
}

/// Computes at once, in the caller's time: for tests.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Calculator for Here {
    fn start(&self, job: Job) -> bool {
        job.run();
        true
    }
}

/// What authentication needs; shared by the node's reactors.
pub struct Means {
    /// Random, and known to nobody.
    seed: [u8; SEED_BYTES],
    drawn: AtomicU64,
    calculator: Box<dyn Calculator>,
}

impl fmt::Debug for Means {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Means").field("calculator", &self.calculator).finish_non_exhaustive()
    }
}

impl Means {
    /// `seed`: the kernel's random bytes, new in each life of the process; all that is random here is made from them.
    #[must_use]
    pub fn new(seed: [u8; SEED_BYTES], calculator: Box<dyn Calculator>) -> Self {
        Self { seed, drawn: AtomicU64::new(0), calculator }
    }

    /// Bytes that nobody without the seed can foresee, never the same.
    pub(super) fn draw(&self) -> [u8; EXPONENT_BYTES] {
        let count = self.drawn.fetch_add(1, Ordering::Relaxed);
        let bytes = Hash::Sha512.mac(&self.seed, &[b"twinlog nvme/tcp", &count.to_le_bytes()]);
        bytes.try_into().expect("SHA-512 makes 64 bytes")
    }

    /// The power of `base`, or of the generator, which appears later. Of the null group it is nothing, at once. `None`: too many wait.
    pub(super) fn power(&self, group: Group, base: Option<&[u8]>, exponent: &[u8; EXPONENT_BYTES]) -> Option<Power> {
        if group == Group::Null {
            return Some(Arc::new(OnceLock::from(Vec::new())));
        }
        let result = Power::default();
        let job = Job { group, base: base.map(<[u8]>::to_vec), exponent: *exponent, result: Arc::clone(&result) };
        self.calculator.start(job).then_some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_is_new_and_nobody_else_s() {
        let (means, other) = (Means::new([1; 32], Box::new(Here)), Means::new([2; 32], Box::new(Here)));
        let drawn = [means.draw(), means.draw(), other.draw()];
        assert!(drawn[0] != drawn[1] && drawn[0] != drawn[2] && drawn[1] != drawn[2]);
        assert_eq!(Means::new([1; 32], Box::new(Here)).draw(), drawn[0]);
        assert!(!format!("{means:?}").contains("seed"));
    }
}
