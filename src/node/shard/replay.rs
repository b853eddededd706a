//! Recovery of a lane (rule R10): every record above the applied position is performed, in order, by the functions that requests use.
//!
//! Crash restart, takeover and giveback all end here: what differs is only whose portion the log memory is.

use super::{
    Shard, State,
    change::Obstacle,
    request::{Change, Kind, Request, Source},
};
use crate::{
    base::{Epoch, ObjectId, planted},
    changelog::scan::{Scan, ScanEnd, ScanStart, ScanStep},
    cp::message::{ShardOpening, ToCoordinator, VolumeChange},
    format::{
        lane_header::LaneIdentity,
        object::{is_valid_name, is_valid_size},
        record::{FLAG_KEEP_ALLOCATED, OwnedRecord, RecordKind},
    },
    fs::volume::Volume,
    node::request::{Payload, VolumeOperation},
    pool::io::Io,
};
use twinlog_device::{BlockDevice, LogMemory};

/// A lane being replayed.
pub(super) struct Replay<L: LogMemory> {
    scan: Scan<L>,
    identity: LaneIdentity,
    /// In which the lane goes on, and whether it is mirrored from the start.
    epoch: Epoch,
    is_mirrored: bool,
    /// The record in hand: its request.
    current: Option<u64>,
    records: u64,
    object_max: ObjectId,
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
        self.forwarded = opening.forwarded;
        self.volumes = opening.volumes.into_iter().map(|record| (record.id, Volume::open(record))).collect();
        let scan = Scan::new(log, start);
        let ShardOpening { epoch, is_mirrored, .. } = opening;
        let replay = Replay { scan, identity, epoch, is_mirrored, current: None, records: 0, object_max: ObjectId(0) };
        self.state = State::Scanning(Box::new(replay));
    }

    /// Performs the records that are at hand, a bounded number.
    pub(super) fn replay<D: BlockDevice>(&mut self, io: &mut Io<D>) {
        for _ in 0..super::REPLAYS_PER_TURN {
            let State::Scanning(replay) = &mut self.state else { return };
            let id = match replay.current {
                Some(id) => id,
                None => match replay.scan.poll() {
                    Ok(ScanStep::Pending) => return,
                    Ok(ScanStep::Record(record)) => {
                        replay.records += 1;
                        replay.object_max = replay.object_max.max(record.draft.object);
                        if !planted::is("replay-forgets-names") {
                            self.forwarded.note(record.draft.request_id);
                        }
                        if planted::is("replay-skips-discards") && record.draft.kind == RecordKind::Discard {
                            continue;
                        }
                        match self.replay_request(io, record) {
                            Ok(id) => id,
                            Err(reason) => return self.fail(reason),
                        }
                    }
                    Ok(ScanStep::End(end)) => return self.replay_end(end),
                    Err(error) => return self.fail(error.to_string()),
                },
            };
            if !self.replay_step(io, id) {
                return;
            }
        }
    }

    /// Performs the record in hand; false while something is on its way.
    fn replay_step<D: BlockDevice>(&mut self, io: &mut Io<D>, id: u64) -> bool {
        if self.reserved_active > self.options.dirty_blocks_max {
            // With the memory that it was admitted with it would fit: its cost was counted then.
            let limit_mib = io.blocks().block_count() / 256;
            self.fail(format!(
                "the log holds more changes than {limit_mib} MiB of memory have room for: raise `limit` in [memory] to what it was"
            ));
            return false;
        }
        let request = self.requests.get_mut(id).expect("a record in hand has a request");
        let Source::Replay(end) = request.source else { unreachable!("made by replay") };
        match self.try_append(io, id, Some(end)) {
            Ok(is_done) => {
                let State::Scanning(replay) = &mut self.state else { return false };
                replay.current = (!is_done).then_some(id);
                if is_done {
                    self.requests.remove(id);
                }
                true
            }
            Err(Obstacle::Refused(error)) => {
                self.fail(format!("the record that ends at position {end} cannot be performed: {error}"));
                false
            }
            Err(Obstacle::Wait | Obstacle::Space) => {
                self.fail(format!("memory is too small to perform the record that ends at position {end}"));
                false
            }
            Err(Obstacle::Fetch) => {
                let State::Scanning(replay) = &mut self.state else { return false };
                replay.current = Some(id);
                false
            }
        }
    }

    /// The request that a record describes.
    fn replay_request<D: BlockDevice>(&mut self, io: &mut Io<D>, record: OwnedRecord) -> Result<u64, String> {
        let draft = &record.draft;
        let wrong = |what: &str| format!("the record at position {} cannot be performed: {what}", record.lsn);
        let range = draft.offset_bytes..draft.offset_bytes + draft.argument;
        let source = Source::Replay(record.end);
        let operation = match draft.kind {
            RecordKind::Block | RecordKind::Write => {
                let range = draft.offset_bytes..draft.offset_bytes + record.payload.len() as u64;
                let mut blocks = Vec::new();
                for _ in range.start / 4096..range.end.div_ceil(4096) {
                    blocks.push(io.allocate().ok_or_else(|| wrong("memory is too small for what the log holds"))?);
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
                let change = volume_change(&record).map_err(wrong)?;
                let mut request = Request::new(source, draft.object, VolumeOperation::Flush, self.now);
                request.kind = Kind::Change { change: Change::Volume(change), durable: false };
                return Ok(self.requests.insert(request));
            }
            RecordKind::Pad | RecordKind::Mark => return Err(wrong("it is no change")),
        };
        Ok(self.requests.insert(Request::new(source, draft.object, operation, self.now)))
    }

    fn replay_end(&mut self, end: ScanEnd) {
        if let Some(hole) = end.hole {
            return self.fail(hole.to_string());
        }
        let state = std::mem::replace(&mut self.state, State::Stopped("changing state".to_owned()));
        let State::Scanning(replay) = state else { unreachable!("called while scanning") };
        let Replay { scan, identity, epoch, is_mirrored, records, object_max, .. } = *replay;
        if end.epoch > epoch {
            let newer = end.epoch;
            return self.fail(format!("the log holds records of epoch {newer}, and this node was granted {epoch}"));
        }
        self.state = State::Replayed { log: scan.into_log(), identity, epoch, head: end.new_head, is_mirrored };
        let volumes = self.volumes.values().map(|volume| volume.record().clone()).collect();
        let lane = self.options.lane;
        self.messages.push_back(ToCoordinator::Replayed { lane, records, volumes, object_max });
    }
}

/// The change of a volume that a record describes, checked as it was before it was logged.
fn volume_change(record: &OwnedRecord) -> Result<VolumeChange, &'static str> {
    let size_bytes = record.draft.argument;
    if record.draft.kind != RecordKind::Delete && !is_valid_size(size_bytes) {
        return Err("its size is none");
    }
    match record.draft.kind {
        RecordKind::Create => {
            let name = str::from_utf8(&record.payload).ok().filter(|name| is_valid_name(name));
            let name = name.ok_or("its name is none")?.to_owned();
            Ok(VolumeChange::Create { name, size_bytes, time_ns: record.draft.time_ns })
        }
        RecordKind::Resize => Ok(VolumeChange::Resize(size_bytes)),
        _ => Ok(VolumeChange::Delete),
    }
}
