//! Recovery of a lane (rule R10): every record above the applied position is performed, in order, by the functions that requests use.
//!
//! Crash restart, takeover and giveback all end here: what differs is only whose portion the log memory is.
//!
//! Admission sees to it that a record can be performed (rule R8), but not that the disks keep what it needs. A record that cannot be performed on its
//! volume takes that volume offline: the record and all later ones of the volume are held, byte by byte as they stand in the log, in a tree of the
//! volume's that the consistency point at the end writes. So the log is trimmed as ever, nothing that was answered is lost, and whoever opens the pool next finds the
//! volume's state in its object record. What is a matter of the pool stops the pool: memory, space, a record that contradicts the object table.

use super::{
    Shard, State,
    change::{Entry, Obstacle, whole_blocks},
    pass::Passes,
    request::{Change, Kind, Request, Source},
};
use crate::{
    base::{
        BlockSize, Epoch, ObjectId,
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX},
        planted,
    },
    changelog::scan::{Scan, ScanEnd, ScanStart, ScanStep},
    cp::message::{ShardOpening, ToCoordinator, VolumeChange},
    format::{
        lane_header::LaneIdentity,
        object::{OfflineCause, is_valid_name, is_valid_size},
        record::{Draft, FLAG_BLOCKS_512, FLAG_KEEP_ALLOCATED, OwnedRecord, RecordKind},
        reservation::Reservation,
    },
    fs::volume::Volume,
    node::request::{Payload, VolumeError, VolumeOperation},
    pool::io::{Io, Tag},
};
use std::{collections::VecDeque, ops::Range};
use twinlog_device::{BlockDevice, LogMemory};

/// Records that are read ahead of the one in hand, at most.
const AHEAD_MAX: usize = 128;
/// Bytes of their payloads, about.
const AHEAD_BYTES_MAX: usize = 2 << 20;
/// How often a record's reads are tried: an error of a device may pass, and the volume stays offline until somebody acts.
const READS_MAX: u8 = 3;
/// Names the fetches of nodes that are read ahead: nobody takes them, they are for the cache.
const AHEAD: u64 = u64::MAX - 1;

/// A record that comes after the one in hand.
struct Ahead {
    record: OwnedRecord,
    /// Whether the nodes that its consistency point will copy were at hand.
    is_read: bool,
}

/// A lane being replayed.
pub(super) struct Replay<L: LogMemory> {
    scan: Scan<L>,
    identity: LaneIdentity,
    /// In which the lane goes on, and whether it is mirrored from the start.
    epoch: Epoch,
    is_mirrored: bool,
    is_power_on: bool,
    /// What the scan has returned: the record in hand first.
    ahead: VecDeque<Ahead>,
    ahead_bytes: usize,
    end: Option<ScanEnd>,
    /// The request of the record in hand, and how often its reads have failed.
    current: Option<u64>,
    failures: u8,
    records: u64,
    object_max: ObjectId,
}

/// Why a record is not performed.
enum Unperformed {
    /// It is a matter of its volume, in the words of the device if there are any.
    Volume(OfflineCause, String),
    /// It is a matter of the pool.
    Pool(String),
}

impl<L: LogMemory> Replay<L> {
    /// Takes what the scan has, as far as it is wanted.
    fn scan(&mut self) -> Result<(), String> {
        while self.end.is_none() && self.ahead.len() < AHEAD_MAX && self.ahead_bytes < AHEAD_BYTES_MAX {
            match self.scan.poll().map_err(|error| error.to_string())? {
                ScanStep::Pending => return Ok(()),
                ScanStep::Record(record) => {
                    self.ahead_bytes += record.payload.len();
                    self.ahead.push_back(Ahead { record, is_read: false });
                }
                ScanStep::End(end) => self.end = Some(end),
            }
        }
        Ok(())
    }

    /// The record in hand is done.
    fn pop(&mut self) -> Option<OwnedRecord> {
        (self.current, self.failures) = (None, 0);
        let Ahead { record, .. } = self.ahead.pop_front()?;
        self.ahead_bytes -= record.payload.len();
        Some(record)
    }
}

impl<L: LogMemory> Shard<L> {
    pub(super) fn begin_replay(&mut self, opening: ShardOpening) {
        let state = std::mem::replace(&mut self.state, State::Stopped("changing state".to_owned()));
        let State::Closed(log) = state else {
            self.state = state;
            return;
        };
        let lane = self.options.lane;
        let identity = LaneIdentity { pool: opening.pool, role: opening.role, lane, lane_count: opening.lane_count };
        let start = ScanStart { identity, applied: opening.applied, epoch_min: opening.epoch_min };
        self.cp_number = opening.cp;
        self.pool = opening.pool;
        self.forwarded = opening.forwarded;
        self.passes = Passes::new(opening.epoch);
        self.volumes = opening.volumes.into_iter().map(|record| (record.id, Volume::open(record))).collect();
        let scan = Scan::new(log, start);
        let ShardOpening { epoch, is_mirrored, is_power_on, .. } = opening;
        let (ahead, ahead_bytes, end, current) = (VecDeque::new(), 0, None, None);
        let (records, object_max) = (0, ObjectId(0));
        let replay = Replay {
            scan,
            identity,
            epoch,
            is_mirrored,
            is_power_on,
            ahead,
            ahead_bytes,
            end,
            current,
            failures: 0,
            records,
            object_max,
        };
        self.state = State::Scanning(Box::new(replay));
    }

    /// Performs the records that are at hand, a bounded number. Returns whether there is more to do at once: not while a disk or the log has to end a
    /// read first.
    pub(super) fn replay<D: BlockDevice>(&mut self, io: &mut Io<D>) -> bool {
        match self.replay_some(io) {
            Ok(is_more) => is_more,
            Err(reason) => {
                self.fail(reason);
                true
            }
        }
    }

    fn replay_some<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<bool, String> {
        self.read_ahead(io)?;
        for step in 0..super::REPLAYS_PER_TURN {
            let State::Scanning(replay) = &mut self.state else { return Ok(true) };
            let performed = match (replay.current, replay.ahead.is_empty(), replay.end) {
                (Some(id), ..) => self.replay_step(io, id),
                (None, false, _) => self.replay_first(io),
                (None, true, Some(end)) => {
                    self.replay_end(end);
                    return Ok(true);
                }
                // What was ahead is done, and the scan may have more at hand than was wanted at once.
                (None, true, None) => return Ok(step > 0 || !replay.scan.is_awaited()),
            };
            match performed {
                Ok(true) => {}
                Ok(false) => return Ok(!io.is_awaited()),
                Err(Unperformed::Volume(cause, why)) => self.take_offline(io, cause, &why)?,
                Err(Unperformed::Pool(reason)) => return Err(reason),
            }
        }
        Ok(true)
    }

    /// Reads what the next records need of their volumes' trees, all at once: one after the other they would wait for a disk each.
    fn read_ahead<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<(), String> {
        let State::Scanning(replay) = &mut self.state else { return Ok(()) };
        replay.scan()?;
        let tag = Tag { owner: self.options.owners.requests, id: AHEAD };
        for Ahead { record, is_read } in replay.ahead.iter_mut().filter(|ahead| !ahead.is_read) {
            let (blocks, is_freed) = touched(record);
            let volume = self.volumes.get(&record.draft.object);
            match volume.and_then(|volume| volume.missing_path(&blocks, is_freed, |key| io.cached(key).cloned())) {
                Some((node, _)) => drop(io.fetch(&node, tag)),
                None => *is_read = true,
            }
        }
        Ok(())
    }

    /// Begins with the first record that was read ahead.
    fn replay_first<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<bool, Unperformed> {
        let State::Scanning(replay) = &mut self.state else { return Ok(false) };
        let Some(Ahead { record, .. }) = replay.ahead.front() else { return Ok(false) };
        replay.records += 1;
        replay.object_max = replay.object_max.max(record.draft.object);
        let offline = self.volumes.get(&record.draft.object).filter(|volume| volume.is_offline());
        let is_forgotten = offline.is_some() && planted::is("held-names-forgotten");
        if !is_forgotten && !planted::is("replay-forgets-names") {
            self.forwarded.note(record.draft.request_id);
        }
        if planted::is("replay-skips-discards") && record.draft.kind == RecordKind::Discard {
            replay.pop();
            return Ok(true);
        }
        if planted::is("replay-skips-reservations") && record.draft.kind == RecordKind::Reserve {
            replay.pop();
            return Ok(true);
        }
        let offline = offline.and_then(|volume| volume.record().offline);
        // A volume that is deleted needs nothing of what is held, and a reservation nothing of the volume's blocks.
        let waits = !matches!(record.draft.kind, RecordKind::Delete | RecordKind::Reserve);
        if let Some(offline) = offline.filter(|_| waits)
            && !planted::is("performs-later-records-of-an-offline-volume")
        {
            return Err(Unperformed::Volume(offline.cause, String::new()));
        }
        let record = record.clone();
        let id = self.record_request(io, &record).map_err(|obstacle| {
            let wrong = |what: &str| format!("the record at position {} cannot be performed: {what}", record.lsn);
            match obstacle {
                RecordObstacle::Memory => Unperformed::Pool(wrong("memory is too small for what the log holds")),
                RecordObstacle::Pool(what) => Unperformed::Pool(wrong(what)),
                RecordObstacle::Invalid(what) if self.volumes.contains_key(&record.draft.object) => {
                    Unperformed::Volume(OfflineCause::Invalid, what.to_owned())
                }
                RecordObstacle::Invalid(what) => Unperformed::Pool(wrong(what)),
            }
        })?;
        let State::Scanning(replay) = &mut self.state else { return Ok(false) };
        replay.current = Some(id);
        Ok(true)
    }

    /// Performs the record in hand; false while something is on its way.
    fn replay_step<D: BlockDevice>(&mut self, io: &mut Io<D>, id: u64) -> Result<bool, Unperformed> {
        if self.reserved_active > self.options.dirty_blocks_max {
            // With the memory that it was admitted with it would fit: its cost was counted then.
            let limit_mib = io.blocks().block_count() / 256;
            return Err(Unperformed::Pool(format!(
                "the log holds more changes than {limit_mib} MiB of memory have room for: raise `limit` in [memory] to what it was"
            )));
        }
        let request = self.requests.get_mut(id).expect("a record in hand has a request");
        let Source::Replay(end) = request.source else { unreachable!("made by replay") };
        match self.try_append(io, id, Entry::Replayed(end)) {
            Ok(is_done) => {
                let State::Scanning(replay) = &mut self.state else { return Ok(false) };
                if is_done {
                    self.requests.remove(id);
                    replay.pop();
                }
                Ok(true)
            }
            Err(Obstacle::Refused(VolumeError::Unreadable { .. })) if self.may_read_again(id) => Ok(true),
            Err(Obstacle::Refused(error) | Obstacle::Forbidden(error)) => {
                self.requests.remove(id);
                let reason = format!("the record that ends at position {end} cannot be performed: {error}");
                Err(match cause_of(&error) {
                    Some(cause) => Unperformed::Volume(cause, error.to_string()),
                    None => Unperformed::Pool(reason),
                })
            }
            Err(Obstacle::Wait | Obstacle::Space) => {
                Err(Unperformed::Pool(format!("memory is too small to perform the record that ends at position {end}")))
            }
            Err(Obstacle::Fetch) => Ok(false),
        }
    }

    /// Whether the reads of the record in hand are tried once more.
    fn may_read_again(&mut self, id: u64) -> bool {
        let State::Scanning(replay) = &mut self.state else { return false };
        replay.failures += 1;
        let request = self.requests.get_mut(id).expect("a record in hand has a request");
        request.arrived.retain(|_, result| result.is_ok());
        replay.failures < READS_MAX
    }

    /// Holds the record in hand, which cannot be performed, or follows one that could not: its volume is offline. The reason is empty for the latter.
    fn take_offline<D: BlockDevice>(&mut self, io: &mut Io<D>, cause: OfflineCause, why: &str) -> Result<(), String> {
        let State::Scanning(replay) = &mut self.state else { return Ok(()) };
        let record = replay.pop().expect("it is in hand");
        let volume = self.volumes.get_mut(&record.draft.object).expect("it is a matter of the volume");
        if !why.is_empty() {
            let (lane, lsn, name) = (record.lane.0, record.lsn.0, &volume.record().name);
            tracing::error!(volume = %name, lane, lsn, reason = %why, "a record cannot be performed: its volume is offline");
        }
        let bytes = record.to_bytes(self.pool);
        let room = (0..volume.hold_blocks(bytes.len() as u64)).map(|_| io.allocate()).collect::<Option<Vec<_>>>();
        let name = volume.record().name.clone();
        let room = room.ok_or_else(|| format!("memory is too small to hold the records of volume {name}"))?;
        let taken = volume.hold(&record, cause, &bytes, room);
        self.reserved_active += taken;
        self.oldest_change.get_or_insert(self.now);
        // Changes of the same blocks were promised one place together; here each has its own.
        let budget = &self.options.budget;
        if budget.reserve(taken) || budget.reserve_urgent(taken) {
            return Ok(());
        }
        let (lane, lsn) = (record.lane, record.lsn);
        Err(format!(
            "the record of lane {lane} at position {lsn} cannot be performed, and the pool has no room to hold it: {cause}"
        ))
    }

    /// The request that a record describes.
    pub(super) fn record_request<D: BlockDevice>(
        &mut self,
        io: &mut Io<D>,
        record: &OwnedRecord,
    ) -> Result<u64, RecordObstacle> {
        let draft = &record.draft;
        let range = draft.offset_bytes..draft.offset_bytes + draft.argument;
        let source = Source::Replay(record.end);
        let operation = match draft.kind {
            RecordKind::Block | RecordKind::Write => {
                let range = draft.offset_bytes..draft.offset_bytes + record.payload.len() as u64;
                let mut blocks = Vec::new();
                for _ in range.start / 4096..range.end.div_ceil(4096) {
                    blocks.push(io.allocate().ok_or(RecordObstacle::Memory)?);
                }
                let mut payload = Payload::new(range, blocks);
                payload.fill(0, &record.payload);
                VolumeOperation::Write { payload, durable: false }
            }
            RecordKind::Discard => VolumeOperation::Discard { range, durable: false },
            RecordKind::WriteZeroes => {
                let may_free = draft.flags & FLAG_KEEP_ALLOCATED == 0;
                VolumeOperation::WriteZeroes { range, may_free, durable: false }
            }
            RecordKind::Create | RecordKind::Resize | RecordKind::Delete => {
                let change = volume_change(record)?;
                let mut request = Request::new(source, draft.object, VolumeOperation::Flush, self.now);
                request.kind = Kind::Change { change: Change::Volume(change), durable: false };
                return Ok(self.requests.insert(request));
            }
            RecordKind::Reserve => {
                let next = Reservation::read(&record.payload).map_err(RecordObstacle::Invalid)?;
                let mut request = Request::new(source, draft.object, VolumeOperation::Flush, self.now);
                request.kind = Kind::Change { change: Change::SetReservation(Box::new(next)), durable: false };
                return Ok(self.requests.insert(request));
            }
            RecordKind::Pad | RecordKind::Mark => return Err(RecordObstacle::Pool("it is no change")),
        };
        Ok(self.requests.insert(Request::new(source, draft.object, operation, self.now)))
    }

    fn replay_end(&mut self, end: ScanEnd) {
        if let Some(hole) = end.hole {
            return self.fail(hole.to_string());
        }
        let state = std::mem::replace(&mut self.state, State::Stopped("changing state".to_owned()));
        let State::Scanning(replay) = state else { unreachable!("called while scanning") };
        let Replay { scan, identity, epoch, is_mirrored, is_power_on, records, object_max, .. } = *replay;
        if end.epoch > epoch {
            let newer = end.epoch;
            return self.fail(format!("the log holds records of epoch {newer}, and this node was granted {epoch}"));
        }
        if is_power_on {
            self.volumes.values_mut().for_each(Volume::lose_power);
        }
        self.state = State::Replayed { log: scan.into_log(), identity, epoch, head: end.new_head, is_mirrored };
        let volumes = self.volumes.values().map(|volume| volume.record().clone()).collect();
        let lane = self.options.lane;
        self.messages.push_back(ToCoordinator::Replayed { lane, records, volumes, object_max });
    }
}

/// What stands in the way of a record's becoming a request.
pub(super) enum RecordObstacle {
    /// Memory for its payload.
    Memory,
    /// It asks for what no volume can have.
    Invalid(&'static str),
    /// It contradicts the pool.
    Pool(&'static str),
}

/// Why the volume of a record that was refused with `error` goes offline; `None`: that is a matter of the pool. A record about a volume that does not
/// exist, or that makes one that does, contradicts the object table, and nobody can tell which of them is wrong.
pub(super) fn cause_of(error: &VolumeError) -> Option<OfflineCause> {
    match error {
        VolumeError::Unreadable { block, .. } => Some(OfflineCause::Unreadable(*block)),
        VolumeError::OutOfRange => Some(OfflineCause::BeyondEnd),
        _ => None,
    }
}

/// The blocks whose nodes the consistency point of a record copies, and whether they are freed. A record that says more than one can is judged when
/// its turn comes.
fn touched(record: &OwnedRecord) -> (Range<u64>, bool) {
    let Draft { kind, offset_bytes, argument, flags, .. } = record.draft;
    let covered = |length: u64| {
        let length = length.min(CHANGE_BYTES_MAX);
        (offset_bytes / BLOCK_BYTES..(offset_bytes + length).div_ceil(BLOCK_BYTES), false)
    };
    match kind {
        RecordKind::Block | RecordKind::Write => covered(record.payload.len() as u64),
        RecordKind::WriteZeroes if flags & FLAG_KEEP_ALLOCATED != 0 => covered(argument),
        RecordKind::WriteZeroes | RecordKind::Discard => (whole_blocks(&(offset_bytes..offset_bytes + argument)), true),
        _ => (0..0, false),
    }
}

/// The change of a volume that a record describes, checked as it was before it was logged.
fn volume_change(record: &OwnedRecord) -> Result<VolumeChange, RecordObstacle> {
    let size_bytes = record.draft.argument;
    if record.draft.kind != RecordKind::Delete && !is_valid_size(size_bytes) {
        return Err(RecordObstacle::Invalid("its size is none"));
    }
    match record.draft.kind {
        RecordKind::Create => {
            let name = str::from_utf8(&record.payload).ok().filter(|name| is_valid_name(name));
            let name = name.ok_or(RecordObstacle::Pool("its name is none"))?.to_owned();
            let is_fine = record.draft.flags & FLAG_BLOCKS_512 != 0 && !planted::is("replay-forgets-blocks");
            let block_size = if is_fine { BlockSize::Bytes512 } else { BlockSize::Bytes4096 };
            Ok(VolumeChange::Create { name, size_bytes, block_size, time_ns: record.draft.time_ns })
        }
        RecordKind::Resize => Ok(VolumeChange::Resize(size_bytes)),
        _ => Ok(VolumeChange::Delete),
    }
}
