//! What a subsystem keeps: the content of its namespaces and their reservations.

use super::{ModelConfig, ModelNamespace, reservations::Reservations};
use std::collections::BTreeMap;
use twinlog_device::{BLOCK_BYTES, Prng};

/// Namespaces, shared by the controllers of a subsystem.
pub(super) struct Subsystem {
    pub(super) namespaces: Vec<Medium>,
    pub(super) has_write_cache: bool,
}

impl Subsystem {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let medium = |&shape: &ModelNamespace| Medium {
            shape,
            durable: BTreeMap::new(),
            cached: BTreeMap::new(),
            reservations: Reservations::default(),
        };
        Self { namespaces: config.namespaces.iter().map(medium).collect(), has_write_cache: config.has_write_cache }
    }

    pub(super) fn find(&mut self, id: u32) -> Option<&mut Medium> {
        self.namespaces.iter_mut().find(|medium| medium.shape.id == id)
    }
}

/// One namespace. Logical blocks that lie nowhere are zero.
pub(super) struct Medium {
    pub(super) shape: ModelNamespace,
    durable: BTreeMap<u64, Vec<u8>>,
    /// The newest version of what is not durable.
    cached: BTreeMap<u64, Vec<u8>>,
    pub(super) reservations: Reservations,
}

impl Medium {
    pub(super) fn lba_bytes(&self) -> usize {
        1 << self.shape.lba_shift
    }

    pub(super) fn lba_count(&self) -> u64 {
        self.shape.block_count * (BLOCK_BYTES as u64 >> self.shape.lba_shift)
    }

    /// Whether `count` logical blocks from `first` lie in the namespace.
    pub(super) fn holds(&self, first: u64, count: u64) -> bool {
        first.checked_add(count).is_some_and(|end| end <= self.lba_count())
    }

    pub(super) fn read(&self, lba: u64, bytes: &mut [u8]) {
        match self.cached.get(&lba).or_else(|| self.durable.get(&lba)) {
            Some(content) => bytes.copy_from_slice(content),
            None => bytes.fill(0),
        }
    }

    pub(super) fn write(&mut self, lba: u64, bytes: Vec<u8>, is_durable: bool) {
        if is_durable {
            self.cached.remove(&lba);
            self.durable.insert(lba, bytes);
        } else {
            self.cached.insert(lba, bytes);
        }
    }

    pub(super) fn flush(&mut self) {
        self.durable.append(&mut self.cached);
    }

    pub(super) fn deallocate(&mut self, first: u64, count: u64) {
        let range = first..first + count;
        for content in [&mut self.cached, &mut self.durable] {
            let inside: Vec<u64> = content.range(range.clone()).map(|(&lba, _)| lba).collect();
            for lba in inside {
                content.remove(&lba);
            }
        }
    }

    /// Any subset of what is not durable becomes so; the rest is lost.
    pub(super) fn lose_power(&mut self, prng: &mut Prng) {
        let odds = prng.below(5);
        let cached = std::mem::take(&mut self.cached);
        self.durable.extend(cached.into_iter().filter(|_| prng.chance(odds, 4)));
        self.reservations.lose_power();
    }
}
