//! A queue to a simulated medium.

use crate::{
    medium::{Medium, Request},
    world::Agenda,
};
use std::{cell::RefCell, rc::Rc};
use twinlog_device::{BlockBuf, BlockCompletion, BlockDevice, BlockRange, DeviceInfo, Persistence, SharedBlock, Token};

/// A queue of one reactor to a [`SimMedium`](crate::SimMedium). After a power cut or a kill it completes nothing any more.
///
/// Dropping it leaves what it has in flight to the next power cut or kill.
pub struct SimDisk {
    medium: Rc<RefCell<Medium>>,
    agenda: Agenda,
    info: DeviceInfo,
    /// Index of the queue in its medium, and the generation in which that is valid.
    queue: (usize, u64),
    in_flight: usize,
}

impl SimDisk {
    pub(crate) fn new(medium: Rc<RefCell<Medium>>, agenda: Agenda, info: DeviceInfo, queue: (usize, u64)) -> Self {
        Self { medium, agenda, info, queue, in_flight: 0 }
    }

    fn queue(&mut self, token: Token, request: Request) {
        assert!(self.room() > 0, "the caller asks for room first");
        self.in_flight += 1;
        let due = self.medium.borrow_mut().queue(self.queue, token, request);
        self.agenda.at(due);
    }

    fn check_transfer(&self, count: usize) {
        let maximum = self.info.transfer_blocks_max as usize;
        assert!((1..=maximum).contains(&count), "a transfer of {count} blocks is not one of 1 to {maximum}");
    }
}

impl BlockDevice for SimDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn room(&self) -> usize {
        self.info.queue_depth as usize - self.in_flight
    }

    fn read(&mut self, token: Token, first: u64, blocks: Vec<BlockBuf>) {
        self.check_transfer(blocks.len());
        self.queue(token, Request::Read { first, blocks });
    }

    fn write(&mut self, token: Token, first: u64, blocks: Vec<SharedBlock>, persistence: Persistence) {
        self.check_transfer(blocks.len());
        self.queue(token, Request::Write { first, blocks, persistence });
    }

    fn flush(&mut self, token: Token) {
        self.queue(token, Request::Flush);
    }

    fn discard(&mut self, token: Token, range: BlockRange) {
        self.queue(token, Request::Discard(range));
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        if self.in_flight == 0 {
            return;
        }
        let mut medium = self.medium.borrow_mut();
        while let Some(completion) = medium.next_completion(self.queue) {
            self.in_flight -= 1;
            completions.push(completion);
        }
    }
}
