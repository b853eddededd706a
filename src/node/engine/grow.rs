//! A device joins the pool while it serves.
//!
//! 1. Every reactor opens the device as its last. Crash: nothing has changed.
//! 2. The places of its superblocks are read: a device that holds anything is refused, and closed again.
//! 3. The next consistency point is committed, to the new device first (`pool/superblocks.rs`). Crash: the device belongs to the pool, or
//!    not. Its own failure: it does not, and is closed again.
//! 4. That consistency point is durable: the allocator may use the new space.

use super::{
    Engine, GROW_OWNER, ReactorMessage,
    admin::{answer, refused},
};
use crate::{
    base::checksum,
    format::superblock::{DEVICE_BLOCKS_MIN, HEAD_BLOCKS, PoolDevice, TAIL_BLOCKS},
    node::admin::AdminReply,
    pool::{
        io::{IoEvent, Tag},
        superblocks::check_empty,
    },
};
use crossbeam_channel::Sender;
use twinlog_device::{BlockDevice, LogMemory};

/// A device on its way into the pool.
pub(super) struct Growing {
    pub(super) reply: Sender<AdminReply>,
    name: String,
    /// Reactors that have answered.
    answers: u16,
    block_count: u64,
    problem: Option<String>,
    /// Raw reads that have not come back.
    reads: u8,
}

impl<D: BlockDevice, L: LogMemory> Engine<D, L> {
    pub(super) fn begin_grow(&mut self, name: String, reply: Sender<AdminReply>) {
        if self.admin.growing.is_some() {
            return answer(&reply, refused("another device is joining", "twinlog status"));
        }
        if self.coordinator.as_ref().and_then(|coordinator| coordinator.superblock()).is_none() {
            return answer(&reply, refused("the pool does not serve", "twinlog status"));
        }
        let (answers, block_count, problem, reads) = (0, 0, None, 0);
        self.admin.growing = Some(Growing { reply, name: name.clone(), answers, block_count, problem, reads });
        self.broadcast(|| ReactorMessage::OpenDevice(name.clone()));
    }

    /// A reactor has opened the device, or cannot.
    pub(super) fn device_arrived(&mut self, result: Result<u64, String>) {
        let Some(growing) = &mut self.admin.growing else { return };
        growing.answers += 1;
        match result {
            Ok(blocks) => growing.block_count = blocks,
            Err(problem) => growing.problem = Some(problem),
        }
        if growing.answers < self.reactor_count {
            return;
        }
        if growing.problem.is_none() && growing.block_count < DEVICE_BLOCKS_MIN {
            growing.problem = Some(format!("{} has fewer than {DEVICE_BLOCKS_MIN} blocks of 4 KiB", growing.name));
        }
        if growing.problem.is_some() {
            return self.refuse_device();
        }
        growing.reads = 2;
        let (device, tail) = (self.io.devices().len() - 1, growing.block_count - TAIL_BLOCKS);
        let head_count = usize::try_from(HEAD_BLOCKS).expect("a few");
        self.io.read_raw(Tag { owner: GROW_OWNER, id: 0 }, device, 0, head_count);
        self.io.read_raw(Tag { owner: GROW_OWNER, id: tail }, device, tail, 2);
    }

    /// What lies in the places of the superblocks.
    pub(super) fn grow_event(&mut self, event: IoEvent) {
        let (IoEvent::Done { tag, result }, Some(growing)) = (event, &mut self.admin.growing) else { return };
        growing.reads -= 1;
        let empty = result
            .map_err(|error| error.to_string())
            .and_then(|blocks| check_empty(&growing.name, tag.id, &blocks).map_err(|error| error.to_string()));
        if let Err(problem) = empty {
            growing.problem = Some(problem);
        }
        if growing.reads > 0 {
            return;
        }
        if growing.problem.is_some() {
            return self.refuse_device();
        }
        self.join_device();
    }

    fn join_device(&mut self) {
        let (Some(growing), Some(coordinator)) = (&mut self.admin.growing, &mut self.coordinator) else { return };
        let superblock = coordinator.superblock().expect("it serves");
        // Unlike any other device of this pool: its name, its place in the table and the consistency point make the id.
        let seed = superblock.cp.0 ^ (superblock.devices.len() as u64).rotate_left(48);
        let id = superblock.pool.0.rotate_left(64) ^ u128::from(checksum(seed, growing.name.as_bytes()));
        if let Err(problem) = coordinator.join(PoolDevice { id, block_count: growing.block_count, plex: 0 }) {
            growing.problem = Some(problem);
            self.refuse_device();
        }
    }

    /// The device belongs to the pool, or has failed.
    pub(super) fn device_joined(&mut self, result: Result<(), String>) {
        match result {
            Ok(()) => {
                if let Some(growing) = self.admin.growing.take() {
                    answer(&growing.reply, AdminReply::Done);
                }
            }
            Err(problem) => {
                if let Some(growing) = &mut self.admin.growing {
                    growing.problem = Some(problem);
                }
                self.refuse_device();
            }
        }
    }

    fn refuse_device(&mut self) {
        let Some(growing) = self.admin.growing.take() else { return };
        let superblock = self.coordinator.as_ref().and_then(|coordinator| coordinator.superblock());
        let count = superblock.map_or(0, |superblock| superblock.devices.len());
        self.broadcast(|| ReactorMessage::CloseDevice(count));
        let problem = growing.problem.unwrap_or_default();
        answer(&growing.reply, refused(&format!("{} cannot join the pool: {problem}", growing.name), "twinlog doctor"));
    }
}
