//! The driver, on a model, keeps the contracts of every block device.

use crate::support::{Disk, Rig, Sleep, TURNS_MAX};
use twinlog_device::{
    BlockDevice, BlockPool, Prng,
    conformance::{self, BlockHarness},
};
use twinlog_nvme::{
    ControllerOptions, ControllerState,
    model::{ModelConfig, ModelNamespace},
};

struct Disks {
    rig: Rig,
    prng: Prng,
    options: ControllerOptions,
    namespace: u32,
    /// Of the one reactor that has all disks.
    sleep: Option<Sleep>,
}

impl Disks {
    fn new(config: ModelConfig, options: ControllerOptions) -> Self {
        let prng = Prng::new(config.seed);
        let namespace = config.namespaces[0].id;
        let mut disks = Self { rig: Rig::new(config, 1024), prng, options, namespace, sleep: None };
        disks.open();
        disks
    }

    fn open(&mut self) {
        assert_eq!(self.rig.start(self.options), ControllerState::Live);
        for _ in 0..self.options.disk_count {
            self.rig.open(self.namespace);
        }
        self.sleep = self.options.interrupts.then(|| Sleep::new(&self.rig.disks));
    }
}

impl BlockHarness for Disks {
    type Device = Disk;

    fn blocks(&self) -> &BlockPool {
        &self.rig.pool
    }

    fn queue_count(&self) -> usize {
        self.rig.disks.len()
    }

    fn device(&mut self, queue: usize) -> &mut Disk {
        &mut self.rig.disks[queue]
    }

    fn turn(&mut self) {
        self.rig.turn();
        let Some(sleep) = &mut self.sleep else { return };
        sleep.listen();
        let is_idle = |disk: &Disk| disk.room() == disk.info().queue_depth as usize;
        let may_sleep = |disk: &Disk| is_idle(disk) || !disk.watch().longest_sleep().is_zero();
        if self.rig.disks.iter().all(is_idle) || !self.rig.disks.iter().all(may_sleep) {
            return;
        }
        for _ in 0..TURNS_MAX {
            if sleep.is_over() {
                return;
            }
            self.rig.turn();
        }
        panic!("nothing ends the sleep");
    }

    fn reopen(&mut self) {
        self.open();
    }

    fn power_cut(&mut self) -> bool {
        self.rig.model.power_cut(&mut self.prng);
        self.rig.expect_no_fault();
        self.open();
        true
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.rig.expect_no_fault();
            self.rig.close();
            assert_eq!(self.rig.pool.free_count(), self.rig.pool.block_count(), "no block is lost");
        }
    }
}

fn options(disk_count: u16, queue_depth: u16) -> ControllerOptions {
    ControllerOptions { disk_count, queue_depth, ..ControllerOptions::default() }
}

#[test]
fn a_usual_controller_conforms() {
    for seed in 0..3 {
        conformance::block_device(|| Disks::new(ModelConfig::new(seed), options(2, 32)));
    }
}

#[test]
fn formats_of_every_size_conform() {
    for lba_shift in 9..=12 {
        let mut config = ModelConfig::new(u64::from(lba_shift));
        config.namespaces = vec![ModelNamespace { id: 7, block_count: 1100, lba_shift }];
        conformance::block_device(|| Disks::new(config.clone(), options(1, 8)));
    }
}

#[test]
fn small_limits_conform() {
    // Queues of three entries, transfers of two blocks, doorbells 64 bytes apart, no write cache.
    let mut config = ModelConfig::new(1);
    (config.queue_entries_max, config.transfer_shift_max, config.doorbell_shift) = (3, 1, 4);
    config.has_write_cache = false;
    conformance::block_device(|| Disks::new(config.clone(), options(1, 128)));
}

#[test]
fn disks_that_share_a_queue_conform() {
    let mut config = ModelConfig::new(2);
    config.queues_max = 1;
    conformance::block_device(|| Disks::new(config.clone(), options(3, 16)));
}

#[test]
fn a_controller_with_scatter_gather_lists_conforms() {
    let config = ModelConfig { has_sgls: true, ..ModelConfig::new(5) };
    conformance::block_device(|| Disks::new(config.clone(), options(2, 32)));
}

/// A controller that ignores FUA, and says that it is of `model`.
fn without_fua(model: &'static str) -> ModelConfig {
    ModelConfig { model, ignores_fua: true, ..ModelConfig::new(4) }
}

#[test]
fn a_controller_that_is_known_to_ignore_fua_conforms() {
    conformance::block_device(|| Disks::new(without_fua("QEMU NVMe Ctrl"), options(2, 32)));
}

#[test]
fn a_controller_that_ignores_fua_conforms_once_the_driver_is_told() {
    let options = ControllerOptions { ignores_fua: true, ..options(2, 32) };
    conformance::block_device(|| Disks::new(without_fua("Model controller"), options));
}

#[test]
#[should_panic = "durable and flushed writes survive a power cut"]
fn a_controller_that_ignores_fua_unknown_to_the_driver_does_not_conform() {
    conformance::block_device(|| Disks::new(without_fua("Model controller"), options(2, 32)));
}

#[test]
fn a_reactor_that_sleeps_until_it_is_signalled_conforms() {
    for (seed, spares_signals) in [(1, false), (2, true)] {
        // The second has one vector for all.
        let vector_count = if spares_signals { 1 } else { 8 };
        let config = ModelConfig { vector_count, spares_signals, ..ModelConfig::new(seed) };
        let options = ControllerOptions { interrupts: true, ..options(2, 32) };
        conformance::block_device(|| Disks::new(config.clone(), options));
    }
}

#[test]
#[should_panic = "asks for room first"]
fn an_operation_without_room_is_refused() {
    conformance::block_device_overfilled(&mut Disks::new(ModelConfig::new(0), options(1, 4)));
}

#[test]
#[should_panic = "a transfer has 1 to"]
fn a_transfer_that_is_too_large_is_refused() {
    conformance::block_device_oversized(&mut Disks::new(ModelConfig::new(0), options(1, 4)));
}

#[test]
#[should_panic = "a transfer has 1 to"]
fn a_transfer_of_nothing_is_refused() {
    conformance::block_device_without_blocks(&mut Disks::new(ModelConfig::new(0), options(1, 4)));
}
