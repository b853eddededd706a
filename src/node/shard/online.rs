//! Bringing a volume back that is offline: its held records are performed in order, by the functions that requests use, or dropped.
//!
//! # Life of a call
//!
//! ```text
//! queued --> performing --------------------------------> ending --durable--> answered: online
//!            records, a bounded number in a turn   |
//!                                                  '----> answered: why the first one left cannot be performed, or that the pool is handed over
//! ```
//!
//! # Invariants
//!
//! 1. Nothing of it is in the log. Each consistency point contains what has been performed and where the next held record begins; a crash goes on
//!    from there.
//! 2. Held records go only after the consistency point that contains them is durable, or when an operator has said so.

use super::{
    Shard,
    change::{Entry, Obstacle},
    replay::{RecordObstacle, cause_of},
    request::Source,
};
use crate::{
    base::{Lsn, ObjectId, limits::BLOCK_BYTES, planted},
    cp::message::ToCoordinator,
    format::{
        object::{Offline, OfflineCause},
        record::{OwnedRecord, RECORD_HEADER_BYTES, RecordExpected, RecordHeader},
        reference::BlockKey,
    },
    pool::{
        io::{Io, Tag},
        tree::{Walk, walk},
    },
};
use std::{collections::BTreeMap, ops::Range};
use twinlog_device::{BlockDevice, LogMemory, SharedBlock};

/// Names the fetches of held records.
pub(super) const HELD: u64 = u64::MAX;

/// A call that brings a volume back.
pub(super) struct Online {
    call: u64,
    id: ObjectId,
    accept_loss: bool,
    /// Blocks of held records that have arrived.
    arrived: BTreeMap<BlockKey, Result<SharedBlock, String>>,
    /// The record in hand: its request, its position, and where the next one begins.
    current: Option<(u64, Lsn, u64)>,
    /// Whether nothing is left to do but to wait for a consistency point.
    is_ending: bool,
}

/// How a turn of a call has ended.
enum Turn {
    /// There is more to do.
    Again,
    /// Something is on its way.
    Pending,
}

impl<L: LogMemory> Shard<L> {
    /// Why nobody can use a volume; `None`: it is online, or there is none.
    pub(super) fn offline_reason(&self, id: ObjectId) -> Option<String> {
        let volume = self.volumes.get(&id).filter(|volume| volume.is_offline())?;
        let offline = volume.record().offline;
        Some(offline.map_or("it comes back with the next consistency point".to_owned(), |offline| offline.to_string()))
    }

    pub(super) fn begin_online(&mut self, call: u64, id: ObjectId, accept_loss: bool) {
        let online = Online { call, id, accept_loss, arrived: BTreeMap::new(), current: None, is_ending: false };
        self.onlines.push_back(online);
    }

    /// A block of held records.
    pub(super) fn held_arrived(&mut self, key: BlockKey, result: Result<SharedBlock, String>) {
        if let Some(online) = self.onlines.front_mut() {
            online.arrived.insert(key, result);
        }
    }

    /// Goes on with the first call for one turn. Returns whether there is more to do at once.
    pub(super) fn online_turn<D: BlockDevice>(&mut self, io: &mut Io<D>) -> bool {
        for _ in 0..super::REPLAYS_PER_TURN {
            if self.onlines.is_empty() {
                return false;
            }
            match self.online_step(io) {
                Ok(Turn::Again) => {}
                Ok(Turn::Pending) => return false,
                Err(reason) => self.end_online(Err(reason)),
            }
        }
        true
    }

    /// Consistency points that contain a volume's last held record answer its call.
    pub(super) fn end_onlines(&mut self) {
        let Some(online) = self.onlines.front().filter(|online| online.is_ending) else { return };
        match self.volumes.get(&online.id) {
            Some(volume) if volume.is_offline() => self.want_cp(),
            _ => self.end_online(Ok(())),
        }
    }

    /// The pool is handed over, or the node stops: neither waits for what is held.
    pub(in crate::node) fn interrupt_onlines(&mut self) {
        while self.onlines.back().is_some_and(|online| !online.is_ending) {
            let what = "the pool is shutting down, or handed over: what was performed stays, and the rest is held";
            self.onlines.rotate_right(1);
            self.end_online(Err(what.to_owned()));
        }
    }

    fn end_online(&mut self, result: Result<(), String>) {
        let Some(Online { call, id, current, .. }) = self.onlines.pop_front() else { return };
        if let Some((request, ..)) = current {
            self.requests.remove(request);
        }
        let record = self.volumes.get(&id).map(|volume| volume.record().clone());
        let volume = match (result, record) {
            (Ok(()), Some(record)) => Ok(Some(record)),
            (Ok(()), None) => Err("it was deleted".to_owned()),
            (Err(reason), _) => Err(reason),
        };
        self.messages.push_back(ToCoordinator::VolumeDone { call, volume });
    }

    fn online_step<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<Turn, String> {
        let Some(online) = self.onlines.front_mut() else { return Ok(Turn::Pending) };
        let Some(volume) = self.volumes.get_mut(&online.id) else { return Err("it was deleted".to_owned()) };
        if online.is_ending {
            return Ok(Turn::Pending);
        }
        let Some(offline) = volume.record().offline else {
            online.is_ending = true;
            self.want_cp();
            if planted::is("online-before-cp") {
                self.end_online(Ok(()));
            }
            return Ok(Turn::Pending);
        };
        let is_dropped = online.accept_loss && !planted::is("accept-loss-skips-one");
        let is_dropped = is_dropped || planted::is("held-records-dropped");
        if is_dropped || offline.start_bytes == offline.end_bytes {
            volume.end_held();
            return Ok(Turn::Again);
        }
        match online.current {
            Some((request, lsn, end)) => self.perform_held(io, (request, lsn), end),
            None => self.read_held(io, &offline),
        }
    }

    /// Reads the first held record and makes a request of it.
    fn read_held<D: BlockDevice>(&mut self, io: &mut Io<D>, offline: &Offline) -> Result<Turn, String> {
        let start = offline.start_bytes;
        let Some(header) = self.held_bytes(io, offline, start..start + RECORD_HEADER_BYTES)? else {
            return Ok(Turn::Pending);
        };
        let Some(online) = self.onlines.front_mut() else { return Ok(Turn::Pending) };
        let id = online.id;
        let volume = self.volumes.get_mut(&id).expect("looked up before");
        if header.iter().all(|&byte| byte == 0) && !start.is_multiple_of(BLOCK_BYTES) {
            // What was held at another recovery begins with a block.
            volume.skip_held(start.next_multiple_of(BLOCK_BYTES));
            return Ok(Turn::Again);
        }
        let expected = RecordExpected { pool: self.pool, lane: offline.lane };
        let wrong = |error: &dyn std::fmt::Display| format!("the held record at byte {start} is none: {error}");
        let header = RecordHeader::read(&header, &expected).map_err(|error| wrong(&error))?;
        let end = start + (header.end.0 - header.lsn.0);
        if online.accept_loss && planted::is("accept-loss-skips-one") {
            online.accept_loss = false;
            volume.pass_held(end);
            return Ok(Turn::Again);
        }
        let body = start + RECORD_HEADER_BYTES..end;
        let Some(body) = self.held_bytes(io, offline, body)? else { return Ok(Turn::Pending) };
        let record = OwnedRecord::new(&header, &body).map_err(|error| wrong(&error))?;
        if record.draft.object != id {
            return Err(wrong(&"it is of another volume"));
        }
        let lsn = record.lsn;
        match self.record_request(io, &record) {
            Ok(request) => {
                if planted::is("held-passed-when-read") {
                    self.volumes.get_mut(&id).expect("looked up before").pass_held(end);
                }
                let Some(online) = self.onlines.front_mut() else { return Ok(Turn::Pending) };
                online.arrived.clear();
                online.current = Some((request, lsn, end));
                Ok(Turn::Again)
            }
            Err(RecordObstacle::Memory) => {
                self.want_cp();
                Ok(Turn::Pending)
            }
            Err(RecordObstacle::Invalid(what)) => Err(self.keep_held(id, lsn, OfflineCause::Invalid, what)),
            Err(RecordObstacle::Pool(what)) => Err(wrong(&what)),
        }
    }

    /// Performs the record in hand.
    fn perform_held<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        (request, lsn): (u64, Lsn),
        end: u64,
    ) -> Result<Turn, String> {
        let Source::Replay(record_end) = self.requests.get_mut(request).expect("made for it").source else {
            unreachable!("made like one of a replay")
        };
        let id = self.onlines.front().expect("one is under way").id;
        match self.try_append(io, request, Entry::Held(record_end)) {
            Ok(false) => Ok(Turn::Again),
            Ok(true) => {
                self.requests.remove(request);
                self.onlines.front_mut().expect("one is under way").current = None;
                if !planted::is("held-passed-when-read") {
                    self.volumes.get_mut(&id).expect("it was performed on it").pass_held(end);
                }
                Ok(Turn::Again)
            }
            Err(Obstacle::Fetch | Obstacle::Wait) => Ok(Turn::Pending),
            Err(Obstacle::Space) => Err("the pool has no room for the held records: delete or discard something, or `twinlog pool grow`, and try again".to_owned()),
            Err(Obstacle::Refused(error) | Obstacle::Forbidden(error)) => {
                let cause = cause_of(&error).ok_or_else(|| error.to_string())?;
                Err(self.keep_held(id, lsn, cause, &error.to_string()))
            }
        }
    }

    /// The first held record still cannot be performed. Returns that as a sentence.
    fn keep_held(&mut self, id: ObjectId, lsn: Lsn, cause: OfflineCause, why: &str) -> String {
        let volume = self.volumes.get_mut(&id).expect("it is a matter of the volume");
        volume.keep_held(lsn, cause);
        let left = volume.record().offline.map_or(0, |offline| offline.records);
        self.want_cp();
        format!(
            "the record of log lane {} at position {lsn} still cannot be performed: {why}; {left} record(s) are held",
            self.options.lane
        )
    }

    /// Bytes of held records; `None` while some are on their way.
    fn held_bytes<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        offline: &Offline,
        range: Range<u64>,
    ) -> Result<Option<Vec<u8>>, String> {
        if range.end > offline.end_bytes {
            return Err(format!("the held records end at byte {} in the middle of one", offline.end_bytes));
        }
        let tag = Tag { owner: self.options.owners.requests, id: HELD };
        let Some(online) = self.onlines.front() else { return Ok(None) };
        let known = |io: &mut Io<D>, key: BlockKey| match online.arrived.get(&key) {
            Some(Err(reason)) => Err(format!("the held records cannot be read: {reason}")),
            Some(Ok(block)) => Ok(Some(block.clone())),
            None => Ok(io.cached(key).cloned()),
        };
        let mut bytes = Vec::new();
        let mut is_complete = true;
        for index in range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) {
            let mut failed = None;
            let found = walk(&offline.held, index, |key| {
                known(io, key).unwrap_or_else(|reason| {
                    failed = Some(reason);
                    None
                })
            });
            let reference = match found {
                Walk::Hole(_) => return Err(format!("the held records have a hole at block {index}")),
                Walk::Found(reference) | Walk::Missing(reference) => reference,
            };
            if let Some(reason) = failed {
                return Err(reason);
            }
            let block = if let Walk::Found(_) = found { known(io, reference.key())? } else { None };
            match block.or_else(|| io.fetch(&reference, tag).filter(|_| matches!(found, Walk::Found(_)))) {
                Some(block) => {
                    let first = index * BLOCK_BYTES;
                    let small = |number: u64| usize::try_from(number - first).expect("inside a block");
                    let within = small(range.start.max(first))..small(range.end.min(first + BLOCK_BYTES));
                    bytes.extend_from_slice(&block[within]);
                }
                None => is_complete = false,
            }
        }
        Ok(is_complete.then_some(bytes))
    }
}
