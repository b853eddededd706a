//! The workload: requests that overlap, orders between them, and the ends in good order.

use super::{Flying, Halt, History, Oracle, Order, Sizes, found};
use crate::{
    clients::{Ask, nbd, withdraw},
    pattern::WriteId,
    setup::{BLOCK, block_bytes_of, index},
};
use std::ops::Range;
use twinlog::{base::ObjectId, node::admin::AdminRequest};

/// Names of volumes.
const NAMES: [&str; 4] = ["one", "two", "three", "four"];

impl History {
    /// So many requests, with others still in flight at the end.
    pub(super) fn work(&mut self, requests: u64) -> Result<(), Halt> {
        self.make_volumes()?;
        let mut left = requests;
        let eagerness = self.prng.between(1, 4);
        while left > 0 {
            if self.flying.len() < self.setup.depth && self.prng.chance(eagerness, 4) && self.submit() {
                left -= 1;
            }
            if self.order.is_none() && self.prng.chance(1, 32) {
                self.draw_order();
            }
            if self.setup.is_nbd && self.prng.chance(1, 200) {
                self.reset_some_session();
            }
            self.turn()?;
            if self.model.volumes().is_empty() {
                self.make_volumes()?;
            }
        }
        Ok(())
    }

    /// Makes volumes where there are none.
    fn make_volumes(&mut self) -> Result<(), Halt> {
        if !self.model.volumes().is_empty() {
            return Ok(());
        }
        for name in &NAMES[..self.volume_count()] {
            let size_bytes = self.draw_size();
            self.until(|history| history.order.is_none())?;
            self.create(name, size_bytes);
            self.until(|history| history.order.is_none())?;
        }
        if !self.setup.answers_last() {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Volumes that a machine begins with.
    fn volume_count(&self) -> usize {
        if self.setup.answers_last() { self.setup.volumes_max } else { 1 }
    }

    fn draw_size(&mut self) -> u64 {
        if self.setup.fills_pool {
            // Three times the pool in all: it fills, and no more holes are read after every recovery than that takes.
            let pool_blocks: u64 = self.setup.device_blocks.iter().sum();
            return 3 * pool_blocks / self.volume_count() as u64 * BLOCK;
        }
        self.prng.between(1, self.setup.volume_blocks_max) * BLOCK
    }

    fn call(&mut self, order: Order, request: AdminRequest) {
        if let Some(replies) = self.node().call(request.clone()) {
            self.note(|_| format!("order {request:?}"));
            self.flying.values_mut().for_each(|flying| flying.sizes.beside(&order, flying.volume));
            self.order = Some((order, replies));
        }
    }

    pub(super) fn create(&mut self, name: &str, size_bytes: u64) {
        let order = Order::Create { name: name.to_owned(), size_bytes };
        let block_bytes = block_bytes_of(name);
        self.call(order, AdminRequest::VolumeCreate { name: name.to_owned(), size_bytes, block_bytes });
    }

    /// An order of any kind.
    fn draw_order(&mut self) {
        let volumes: Vec<(ObjectId, &str)> =
            self.model.volumes().iter().map(|(&id, volume)| (id, volume.name.as_str())).collect();
        let changes_volumes = self.setup.answers_last() && !volumes.is_empty();
        match self.prng.below(14) {
            0..=3 => self.ask_checkpoint(),
            4 | 5 => self.call(Order::Check, AdminRequest::PoolCheck),
            6 => self.call(Order::Status, AdminRequest::Status),
            7 if changes_volumes && volumes.len() < self.setup.volumes_max => {
                let unused = NAMES.into_iter().find(|name| volumes.iter().all(|(_, used)| used != name));
                let size_bytes = self.draw_size();
                if let Some(name) = unused {
                    self.create(name, size_bytes);
                }
            }
            8..=10 if changes_volumes => {
                let (id, _) = *self.prng.pick(&volumes);
                let size_bytes = self.draw_size();
                self.resize(id, size_bytes);
            }
            11 if changes_volumes && volumes.len() > 1 => {
                let (id, _) = *self.prng.pick(&volumes);
                self.delete(id);
            }
            _ if self.machine().can_grow() => self.grow(),
            _ => {}
        }
    }

    pub(super) fn resize(&mut self, id: ObjectId, size_bytes: u64) {
        let name = self.model.volumes()[&id].name.clone();
        let cut = self.model.begin_resize(id, size_bytes);
        self.call(Order::Resize { id, size_bytes, cut }, AdminRequest::VolumeResize { name, size_bytes });
        if self.order.is_none() {
            self.model.withdraw(cut);
        }
    }

    pub(super) fn delete(&mut self, id: ObjectId) {
        let name = self.model.volumes()[&id].name.clone();
        self.call(Order::Delete { id }, AdminRequest::VolumeDelete { name });
    }

    /// The spare disk joins the pool.
    pub(super) fn grow(&mut self) {
        let device = self.machine().media.last().expect("there is a spare disk").name();
        self.call(Order::Grow, AdminRequest::PoolGrow { device });
    }

    /// What a volume may be now.
    fn sizes(&self, volume: ObjectId) -> Sizes {
        let mut sizes = Sizes::exactly(self.model.volumes()[&volume].size_bytes);
        if let Some((order, _)) = &self.order {
            sizes.beside(order, volume);
        }
        sizes
    }

    pub(super) fn ask_checkpoint(&mut self) {
        let began = self.model.begin();
        self.call(Order::Checkpoint { began }, AdminRequest::Checkpoint);
        if self.order.is_none() {
            self.model.end(began);
        }
    }

    /// A range in a volume of `size_bytes`, at most `length_max` long.
    fn draw_range(&mut self, size_bytes: u64, length_max: u64) -> Range<u64> {
        let grain = match self.prng.below(4) {
            0 | 1 => BLOCK,
            _ if self.setup.is_uniform => BLOCK,
            _ if self.setup.any_byte => 1,
            _ => 512,
        };
        let length_max = if self.prng.chance(1, 2) { length_max.min(2 * BLOCK) } else { length_max };
        let units = size_bytes / grain;
        // Half of all requests meet in the first blocks.
        let near = if self.prng.chance(1, 2) { (3 * BLOCK / grain).min(units) } else { units };
        let first = self.prng.below(near);
        let count = self.prng.between(1, (length_max / grain).clamp(1, units - first));
        first * grain..(first + count) * grain
    }

    /// Where a request may end: as a rule inside its volume, whatever comes of an order under way; now and then beyond.
    fn draw_end(&mut self, sizes: Sizes) -> u64 {
        match self.prng.below(64) {
            0 => sizes.largest + BLOCK,
            1..=7 => sizes.largest,
            _ => sizes.smallest,
        }
    }

    /// Submits a request by any client; false when it could not.
    fn submit(&mut self) -> bool {
        let volumes = self.model.volumes().keys().copied();
        let volumes: Vec<ObjectId> = volumes.filter(|&id| !self.is_out_of_reach(id)).collect();
        if volumes.is_empty() {
            // Where nobody can connect, nobody waits for it.
            return self.is_damaged();
        }
        let session = index(self.prng.below(self.setup.sessions as u64));
        let mut volume = *self.prng.pick(&volumes);
        // A connection stays with its volume for a while.
        if let Some(open) = &self.sessions[session]
            && volumes.contains(&open.volume)
            && self.prng.chance(31, 32)
        {
            volume = open.volume;
        }
        if self.setup.is_nbd && !self.is_connected(session, volume) {
            return false;
        }
        let size_bytes = self.draw_end(self.sizes(volume));
        let durable = self.prng.chance(1, 6);
        let ask = match self.prng.below(100) {
            _ if self.setup.fills_pool && self.prng.chance(1, 2) => {
                let first = self.prng.below(size_bytes / BLOCK);
                let end = (first + self.prng.between(64, 250)).min(size_bytes / BLOCK);
                Ask::Zero(first * BLOCK..end * BLOCK, false, false)
            }
            0..=49 => {
                let length_max = if self.setup.is_uniform { BLOCK } else { self.setup.write_bytes_max };
                let range = self.draw_range(size_bytes, length_max);
                Ask::Write(range, WriteId(0), durable)
            }
            50..=71 => Ask::Read(self.draw_range(size_bytes, 8 * BLOCK)),
            72..=79 => Ask::Discard(self.draw_range(size_bytes, size_bytes.min(64 * BLOCK)), durable),
            80..=88 => {
                let (range, may_free) = (self.draw_range(size_bytes, 16 * BLOCK), self.prng.chance(1, 2));
                Ask::Zero(range, may_free, durable)
            }
            89..=95 => Ask::Flush,
            _ if self.setup.is_nbd => Ask::Flush,
            _ => Ask::Status(self.draw_range(size_bytes, size_bytes.min(64 * BLOCK))),
        };
        let deed = self.reserving.as_mut().and_then(|reserving| reserving.draw_deed(volume, None));
        let exchange = self.exchanging.as_mut().and_then(|exchanging| {
            let are_whole = self.setup.is_uniform;
            exchanging.draw_ask(&self.model, volume, are_whole)
        });
        let ask = deed.or(exchange).unwrap_or(ask);
        self.fly(session, volume, ask, false)
    }

    /// Sends a request; false while memory is short.
    pub(super) fn fly(&mut self, session: usize, volume: ObjectId, mut ask: Ask, is_verification: bool) -> bool {
        let begun = ask.begin(&mut self.model, volume);
        self.next_id += 1;
        let id = self.next_id;
        let host = self.reserving.as_mut().map_or(0, |reserving| reserving.host_of(&ask, None));
        let is_sent = if self.setup.is_nbd {
            let session = self.sessions[session].as_mut().expect("the caller connected it");
            session.send(id, &ask);
            true
        } else {
            let reactor = session % self.node().reactor_count();
            self.node().port(reactor).submit(&self.machine().blocks, (id, host), volume, &ask)
        };
        if !is_sent {
            withdraw(&mut self.model, begun);
            return false;
        }
        let (write, began) = begun;
        self.note(|_| format!("  {id}: {ask:?} of {volume} by host {host}"));
        if let Some(reserving) = &mut self.reserving {
            reserving.begin((id, host), volume, &ask, write);
        }
        let (sizes, turn) = (self.sizes(volume), self.figures.turns);
        self.flying.insert(id, Flying { ask, volume, write, began, sizes, is_verification, turn });
        true
    }

    /// Whether a session is connected to a volume; connects it otherwise.
    pub(super) fn is_connected(&mut self, session: usize, volume: ObjectId) -> bool {
        if let Some(open) = &self.sessions[session] {
            if open.volume == volume {
                return open.is_open();
            }
            // One connection, one volume: it leaves when nothing is owed to it.
            if open.unanswered().next().is_none() {
                self.sessions[session] = None;
            }
            return false;
        }
        let name = self.model.volumes()[&volume].name.clone();
        let reactor = session % self.node().reactor_count();
        let is_structured = session % 2 == 1;
        let connected =
            self.node().listener(reactor).map(|listener| nbd::Session::connect(listener, volume, &name, is_structured));
        self.sessions[session] = connected;
        false
    }

    /// Whether nobody can connect to a volume: over NBD, to one that damage keeps offline.
    pub(super) fn is_out_of_reach(&self, volume: ObjectId) -> bool {
        self.setup.is_nbd && self.is_damaged() && self.node().offline().iter().any(|(id, _)| *id == volume)
    }

    fn reset_some_session(&mut self) {
        let position = index(self.prng.below(self.sessions.len() as u64));
        if let Some(session) = self.sessions[position].take() {
            let unanswered = session.reset();
            self.note(|_| format!("a client goes away with {unanswered:?}"));
            unanswered.into_iter().for_each(|id| self.forget(id));
        }
    }

    /// Waits until every request has its answer.
    pub(super) fn finish_requests(&mut self) -> Result<(), Halt> {
        self.until(|history| history.flying.is_empty() && history.order.is_none())
    }

    /// Takes a consistency point and waits for it.
    pub(super) fn checkpoint(&mut self) -> Result<(), Halt> {
        self.until(|history| history.order.is_none())?;
        self.until(|history| {
            history.ask_checkpoint();
            history.order.is_some()
        })?;
        self.until(|history| history.order.is_none())
    }

    /// Proves the pool whole.
    pub(super) fn check_pool(&mut self) -> Result<(), Halt> {
        self.until(|history| history.order.is_none())?;
        self.call(Order::Check, AdminRequest::PoolCheck);
        self.until(|history| history.order.is_none())
    }

    /// Judges the report of a check.
    pub(super) fn judge_check(&mut self, problems: &[String]) -> Result<(), Halt> {
        let unreadable = self.unreadable.take();
        let may_have_some = self.is_damaged() || self.excuse.read;
        match problems.first() {
            Some(first) if !may_have_some => {
                Err(found(Oracle::Check, format!("{} problems, the first: {first}", problems.len())))
            }
            None if unreadable.is_some() && !self.excuse.read => {
                let reason = unreadable.unwrap_or_default();
                Err(found(Oracle::Damage, format!("the check finds nothing, though a read said: {reason}")))
            }
            _ => Ok(()),
        }
    }

    /// Stops the node in order.
    pub(super) fn stop(&mut self) -> Result<(), Halt> {
        self.until(|history| history.order.is_none())?;
        self.is_stopping = true;
        let result = self.stop_and_wait();
        self.is_stopping = false;
        result
    }

    fn stop_and_wait(&mut self) -> Result<(), Halt> {
        self.call(Order::Stop, AdminRequest::Stop);
        self.until(|history| history.order.is_none())?;
        self.until(|history| history.flying.is_empty())?;
        // Clients that have their answers leave.
        self.sessions.iter_mut().for_each(|session| *session = None);
        self.until(|history| history.node().has_ended())
    }

    /// Frees everything in a pool that may be full, and writes again: space must have come back.
    pub(super) fn empty_and_use_again(&mut self) -> Result<(), Halt> {
        let volumes: Vec<(ObjectId, u64)> =
            self.model.volumes().iter().map(|(&id, volume)| (id, volume.size_bytes)).collect();
        for &(volume, size_bytes) in &volumes {
            self.ask_and_wait(volume, Ask::Discard(0..size_bytes, false))?;
        }
        for _ in 0..3 {
            self.checkpoint()?;
        }
        self.setup.fills_pool = false;
        for &(volume, _) in &volumes {
            self.ask_and_wait(volume, Ask::Write(0..BLOCK, WriteId(0), false))?;
        }
        Ok(())
    }

    fn ask_and_wait(&mut self, volume: ObjectId, ask: Ask) -> Result<(), Halt> {
        if self.setup.is_nbd {
            self.until(|history| history.is_connected(0, volume))?;
        }
        self.until(|history| history.fly(0, volume, ask.clone(), false))?;
        self.until(|history| history.flying.is_empty())
    }
}
