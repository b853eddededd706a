//! A start, and what must be true when the pool is open: volumes, every byte, the pool's own maps.

use super::{Halt, History, Oracle, Order, found};
use crate::{
    clients::Ask,
    model::reservation::Deed,
    setup::{BLOCK, index},
};
use std::collections::BTreeMap;
use twinlog::{base::ObjectId, node::admin::AdminRequest};

/// Bytes of one read of the verification.
const READ_BYTES: u64 = 16 * BLOCK;

impl History {
    /// Starts a process, waits until it serves, and verifies everything.
    pub(super) fn recover(&mut self) -> Result<(), Halt> {
        let reactors_max = u64::from(self.setup.reactors_max);
        let count = u16::try_from(self.prng.between(1, reactors_max)).expect("at most two");
        self.unreadable = None;
        self.has_rested = false;
        self.open(count)?;
        self.ask(Order::Status, AdminRequest::Status)?;
        self.compare_volumes()?;
        self.report_reservations()?;
        self.read_everything()?;
        self.model.judge_crash()?;
        self.is_recovering = false;
        self.check_pool()?;
        self.figures.recoveries += 1;
        self.excuse.hole = false;
        Ok(())
    }

    /// Starts a process and waits until it serves. A disk that may have joined is configured, as people are told to; if it has not, the
    /// node says so, and is started without it.
    fn open(&mut self, reactors: u16) -> Result<(), Halt> {
        let may_have_grown = matches!(self.uncertain, Some(Order::Grow));
        if may_have_grown {
            self.machine().configure_spare(true);
        }
        let excused = self.excuse.stop;
        self.excuse.stop |= may_have_grown;
        let mut halt = self.start(reactors);
        self.excuse.stop = excused;
        if let (true, Err(Halt::Stopped(reason))) = (may_have_grown, &halt)
            && reason.contains("belongs to pool")
        {
            self.end_again();
            self.machine().configure_spare(false);
            halt = self.start(reactors);
        }
        if may_have_grown && halt.is_ok() {
            self.uncertain = None;
        }
        halt
    }

    pub(super) fn start(&mut self, reactors: u16) -> Result<(), Halt> {
        self.note(|_| format!("start with {reactors} reactors"));
        let mut node = self.machine().start(reactors);
        node.draw_laziness(&mut self.prng);
        self.node = Some(node);
        self.quiet_turns = 0;
        self.is_recovering = true;
        self.until(|history| history.node().is_serving())
    }

    pub(super) fn ask(&mut self, order: Order, request: AdminRequest) -> Result<(), Halt> {
        let replies = self.node().call(request).expect("nothing else was ordered");
        self.order = Some((order, replies));
        self.until(|history| history.order.is_none())
    }

    /// Compares the volumes that exist with those that should.
    fn compare_volumes(&mut self) -> Result<(), Halt> {
        self.ask(Order::List, AdminRequest::VolumeList)?;
        let listed = self.listed.take().ok_or_else(|| found(Oracle::Volumes, "volumes cannot be listed"))?;
        let mut listed: BTreeMap<ObjectId, (String, u64)> =
            listed.into_iter().map(|(id, name, size_bytes)| (id, (name, size_bytes))).collect();
        match self.uncertain.take() {
            Some(Order::Create { name, size_bytes }) => {
                let known = self.model.volumes().iter().find(|(_, volume)| volume.name == name).map(|(&id, _)| id);
                let made = listed.iter().find(|(_, (found, _))| *found == name).map(|(&id, _)| id);
                match (known, made) {
                    (None, Some(id)) => self.model.create(id, &name, size_bytes),
                    (Some(id), None) => self.model.delete(id),
                    _ => {}
                }
            }
            Some(Order::Resize { id, size_bytes, cut }) => {
                let has_happened = listed.get(&id).is_some_and(|(_, size)| *size == size_bytes);
                if has_happened {
                    self.model.end_resize(cut);
                } else {
                    self.model.refuse_write(cut)?;
                }
            }
            Some(Order::Delete { id }) if !listed.contains_key(&id) => self.model.delete(id),
            _ => {}
        }
        let missing: Vec<ObjectId> = self
            .model
            .volumes()
            .iter()
            .filter(|(id, volume)| !volume.is_lasting && !listed.contains_key(id))
            .map(|(&id, _)| id)
            .collect();
        missing.into_iter().for_each(|id| self.model.delete(id));
        // What is held of a volume that is offline may be another size.
        for (id, _) in self.node().offline() {
            if let (Some(volume), Some((_, size_bytes))) = (self.model.volumes().get(&id), listed.get_mut(&id)) {
                *size_bytes = volume.size_bytes;
            }
        }
        let expected: BTreeMap<ObjectId, (String, u64)> =
            self.model.volumes().iter().map(|(&id, volume)| (id, (volume.name.clone(), volume.size_bytes))).collect();
        if listed != expected {
            return Err(found(Oracle::Volumes, format!("there are {listed:?}, not {expected:?}")));
        }
        Ok(())
    }

    /// What was lost has happened or not, and who has registered is asked.
    fn report_reservations(&mut self) -> Result<(), Halt> {
        let Some(reserving) = &mut self.reserving else { return Ok(()) };
        reserving.settle(true);
        let volumes: Vec<ObjectId> = self.model.volumes().keys().copied().collect();
        for volume in volumes {
            self.until(|history| history.fly(0, volume, Ask::Reserve(1, Deed::Report), true))?;
            self.until(|history| history.flying.is_empty())?;
        }
        Ok(())
    }

    /// Reads every byte of every volume.
    fn read_everything(&mut self) -> Result<(), Halt> {
        self.read_volumes(|_| true)
    }

    /// Reads every byte of some volumes.
    pub(super) fn read_volumes(&mut self, is_wanted: impl Fn(ObjectId) -> bool) -> Result<(), Halt> {
        let volumes: Vec<(ObjectId, u64)> =
            self.model.volumes().iter().map(|(&id, volume)| (id, volume.size_bytes)).collect();
        let volumes: Vec<_> =
            volumes.into_iter().filter(|(id, _)| is_wanted(*id) && !self.is_out_of_reach(*id)).collect();
        for (volume, size_bytes) in volumes {
            let session = index(self.prng.below(self.setup.sessions as u64));
            let mut offset = 0;
            while offset < size_bytes {
                if self.setup.is_nbd {
                    self.until(|history| history.is_connected(session, volume))?;
                }
                // Larger steps where the pool is to be filled: most of it is holes.
                let step = if self.setup.fills_pool { 8 * READ_BYTES } else { READ_BYTES };
                let end = (offset + step).min(size_bytes);
                let ask = Ask::Read(offset..end);
                self.until(|history| history.flying.len() < 4 && history.fly(session, volume, ask.clone(), true))?;
                offset = end;
            }
            self.until(|history| history.flying.is_empty())?;
        }
        Ok(())
    }
}
