//! A driver on a model, with time that moves by itself.

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::{cell::Cell, rc::Rc, time::Duration};
use twinlog_device::{BlockCompletion, BlockDevice, BlockPool, Nanos};
use twinlog_nvme::{
    Controller, ControllerOptions, ControllerState, NvmeDisk,
    model::{Model, ModelConfig, ModelFunction},
};

pub(crate) type Time = Rc<Cell<Nanos>>;
pub(crate) type Disk = NvmeDisk<ModelFunction, Time>;

/// Turns in which a controller must have come up or given up.
pub(crate) const TURNS_MAX: usize = 20_000;

/// A model and a driver of it.
pub(crate) struct Rig {
    pub(crate) model: Model,
    pub(crate) pool: BlockPool,
    pub(crate) time: Time,
    /// How far time moves with each turn.
    pub(crate) step: Duration,
    pub(crate) disks: Vec<Disk>,
    pub(crate) controller: Option<Controller<ModelFunction>>,
}

impl Rig {
    /// A model without a driver.
    pub(crate) fn new(config: ModelConfig, block_count: u32) -> Self {
        Self {
            model: Model::new(config),
            pool: BlockPool::new(block_count).expect("a small mapping"),
            time: Rc::new(Cell::new(Nanos(1))),
            step: Duration::from_millis(1),
            disks: Vec::new(),
            controller: None,
        }
    }

    pub(crate) fn turn(&self) {
        self.model.turn();
        self.time.set(self.time.get() + self.step);
    }

    /// Starts a driver and waits until it serves or has failed.
    pub(crate) fn start(&mut self, options: ControllerOptions) -> ControllerState {
        self.close();
        let controller = Controller::start(self.model.function(), &[&self.pool], options, self.time.get());
        let controller = controller.expect("a function that can be used");
        let state = self.settle(&controller);
        self.controller = Some(controller);
        state
    }

    pub(crate) fn settle(&self, controller: &Controller<ModelFunction>) -> ControllerState {
        for _ in 0..TURNS_MAX {
            match controller.poll(self.time.get()) {
                ControllerState::Starting => self.turn(),
                state => return state,
            }
        }
        panic!("a controller comes up or gives up");
    }

    pub(crate) fn controller(&self) -> &Controller<ModelFunction> {
        self.controller.as_ref().expect("a driver was started")
    }

    /// Opens one disk more on a namespace.
    pub(crate) fn open(&mut self, namespace: u32) -> usize {
        let disk = self.controller().open(namespace, self.time.clone()).expect("a namespace that can be opened");
        self.disks.push(disk);
        self.disks.len() - 1
    }

    /// Lets everything go on until `disk` has completed `count` operations.
    pub(crate) fn collect(&mut self, disk: usize, count: usize) -> Vec<BlockCompletion> {
        let mut completions = Vec::new();
        for _ in 0..TURNS_MAX {
            self.disks[disk].poll(&mut completions);
            if completions.len() >= count {
                assert_eq!(completions.len(), count, "an operation completes once");
                return completions;
            }
            self.turn();
        }
        panic!("{} of {count} operations completed", completions.len());
    }

    pub(crate) fn one(&mut self, disk: usize) -> BlockCompletion {
        self.collect(disk, 1).pop().expect("one was collected")
    }

    pub(crate) fn close(&mut self) {
        self.disks.clear();
        self.controller = None;
    }

    /// The model has nothing to say against the driver.
    pub(crate) fn expect_no_fault(&self) {
        assert_eq!(self.model.dma_faults(), [], "memory is reached as the driver allowed");
        assert_eq!(self.model.complaints(), [""; 0], "the driver keeps to the specification");
    }
}

/// Every block is back in the pool once everything is closed.
pub(crate) fn expect_whole(mut rig: Rig) {
    rig.expect_no_fault();
    rig.close();
    assert_eq!(rig.pool.free_count(), rig.pool.block_count(), "no block is lost");
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.close();
    }
}

/// How a reactor waits for the signals of its disks.
pub(crate) struct Sleep {
    epoll: Epoll,
    over_count: u64,
}

impl Sleep {
    pub(crate) fn new(disks: &[Disk]) -> Self {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll instance");
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        for disk in disks {
            let watch = disk.watch();
            if let Some(event) = watch.event() {
                // Two disks may have one counter.
                let _twice = epoll.add(event, EpollEvent::new(flags, 0));
            }
        }
        Self { epoll, over_count: 0 }
    }

    fn take(&self) -> bool {
        let mut signals = [EpollEvent::empty(); 8];
        self.epoll.wait(&mut signals, EpollTimeout::ZERO).expect("a poll that does not wait") > 0
    }

    /// Forgets every signal so far.
    pub(crate) fn listen(&mut self) {
        while self.take() {}
    }

    /// Whether there was a signal since then.
    pub(crate) fn is_over(&mut self) -> bool {
        let is_over = self.take();
        self.over_count += u64::from(is_over);
        is_over
    }

    pub(crate) fn over_count(&self) -> u64 {
        self.over_count
    }
}
