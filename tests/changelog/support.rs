//! What the tests of the change log share: a small lane, changes made by chance, and a scan that must end.

use std::time::Duration;
use twinlog::{
    base::{Epoch, LaneIndex, Lsn, ObjectId, PoolId, PortionId, Prng, checksum},
    changelog::{
        Draft, FLAG_KEEP_ALLOCATED, Format, Lane, LaneIdentity, OwnedRecord, PortionRole, RecordKind, Scan, ScanEnd,
        ScanError, ScanStart, ScanStep,
    },
};
use twinlog_device::{Nanos, Wait};
use twinlog_sim::{Agenda, LogMedium, LogShape, SimLog, SimWorld};

/// The lane of all tests.
pub(crate) const IDENTITY: LaneIdentity = LaneIdentity {
    pool: PoolId(0x1234_5678_9abc_def0_0fed_cba9_8765_4321),
    role: PortionRole::Own,
    lane: LaneIndex(1),
    lane_count: 2,
};

/// Its mirror.
pub(crate) const MIRROR: LaneIdentity = LaneIdentity { role: PortionRole::Mirror, ..IDENTITY };

/// The portion of all tests.
pub(crate) const PORTION: PortionId = PortionId(0x7070);

/// Where the ring begins.
pub(crate) const RING_START: usize = 4096;

/// Log memory with a formatted lane, which has no latency yet.
pub(crate) fn formatted(shape: LogShape) -> LogMedium {
    formatted_as(&SimWorld::new(1), shape, &IDENTITY)
}

/// As [`formatted`], of any lane, in a world of others.
pub(crate) fn formatted_as(world: &SimWorld, shape: LogShape, identity: &LaneIdentity) -> LogMedium {
    let medium = LogMedium::new(world, "log", LogShape { latency_ns: (0, 0), ..shape });
    let mut format = Format::new(open(&medium), identity, PORTION);
    assert_eq!(format.poll(), Ok(true));
    medium
}

/// Replaces log memory that is not open by a new one.
pub(crate) fn wipe(medium: &LogMedium, identity: &LaneIdentity) {
    medium.restore(&vec![0; medium.image().len()]);
    medium.set_latency_ns(0, 0);
    let mut format = Format::new(open(medium), identity, PORTION);
    assert_eq!(format.poll(), Ok(true));
}

/// Log memory of zeroes, which has no latency yet.
pub(crate) fn blank(shape: LogShape) -> LogMedium {
    LogMedium::new(&SimWorld::new(1), "log", LogShape { latency_ns: (0, 0), ..shape })
}

/// Opens log memory as a process does that has just started.
pub(crate) fn open(medium: &LogMedium) -> SimLog {
    medium.open(&Agenda::new(&medium.world()))
}

/// Lets `ns` nanoseconds and a little more pass; returns the time then.
pub(crate) fn pass(medium: &LogMedium, ns: u64) -> Nanos {
    let world = medium.world();
    let (agenda, target) = (Agenda::new(&world), world.now() + Duration::from_nanos(ns));
    while world.now() < target {
        agenda.turn(Wait::UpTo(target - world.now()));
    }
    world.now()
}

/// The shapes that real log memory has, and an odd one.
pub(crate) fn shapes(size_bytes: u64) -> [LogShape; 4] {
    let odd = LogShape { unit_bytes: 4096, pending_bytes_max: 16 << 10, ..LogShape::file(size_bytes) };
    let tight = LogShape { pending_bytes_max: 4096, ..LogShape::file(size_bytes) };
    [LogShape::pmem(size_bytes), LogShape::file(size_bytes), odd, tight]
}

/// A change of bytes.
pub(crate) fn write(object: u64, offset_bytes: u64) -> Draft {
    let (kind, object) = (RecordKind::Write, ObjectId(object));
    Draft { kind, object, offset_bytes, argument: 0, flags: 0, time_ns: 7, request_id: offset_bytes }
}

/// A change of any kind with its payload, at most `payload_max` bytes, which is at least 64.
pub(crate) fn any_change(prng: &mut Prng, payload_max: u64) -> (Draft, Vec<u8>) {
    let mut draft = write(prng.next_u64(), prng.below(1 << 40));
    draft.request_id = prng.next_u64();
    let mut payload_bytes = 0;
    match prng.below(7) {
        0 if payload_max >= 4096 => {
            draft.kind = RecordKind::Block;
            draft.offset_bytes &= !4095;
            payload_bytes = 4096 * prng.between(1, payload_max / 4096);
        }
        0..3 => payload_bytes = prng.between(1, payload_max),
        kind => {
            draft.argument = prng.between(1, 1 << 40);
            if kind < 5 {
                draft.kind = if kind == 3 { RecordKind::Discard } else { RecordKind::WriteZeroes };
                draft.flags = if kind == 4 && prng.chance(1, 2) { FLAG_KEEP_ALLOCATED } else { 0 };
            } else {
                draft.offset_bytes = 0;
                draft.kind = if kind == 5 { RecordKind::Create } else { RecordKind::Resize };
                payload_bytes = if kind == 5 { prng.between(1, 64) } else { 0 };
            }
        }
    }
    let mut payload = vec![0; index(payload_bytes)];
    prng.fill(&mut payload);
    (draft, payload)
}

/// Everything that a scan gives of what lies on the medium now; the medium's own opening goes on.
pub(crate) fn scan(
    medium: &LogMedium,
    applied: Lsn,
    epoch_min: Epoch,
) -> Result<(Vec<OwnedRecord>, ScanEnd, SimLog), ScanError> {
    scan_log(open(&quick_copy(medium)), applied, epoch_min)
}

/// As [`scan`], of any lane.
pub(crate) fn scan_as(
    medium: &LogMedium,
    identity: &LaneIdentity,
    applied: Lsn,
    epoch_min: Epoch,
) -> Result<(Vec<OwnedRecord>, ScanEnd), ScanError> {
    let scanned = scan_log_as(open(&quick_copy(medium)), identity, applied, epoch_min);
    scanned.map(|(records, end, _log)| (records, end))
}

fn quick_copy(medium: &LogMedium) -> LogMedium {
    let copy = medium.copy();
    copy.set_latency_ns(0, 0);
    copy
}

/// As [`scan`], of log memory that is open.
pub(crate) fn scan_log(
    log: SimLog,
    applied: Lsn,
    epoch_min: Epoch,
) -> Result<(Vec<OwnedRecord>, ScanEnd, SimLog), ScanError> {
    scan_log_as(log, &IDENTITY, applied, epoch_min)
}

/// As [`scan_log`], of any lane.
pub(crate) fn scan_log_as(
    log: SimLog,
    identity: &LaneIdentity,
    applied: Lsn,
    epoch_min: Epoch,
) -> Result<(Vec<OwnedRecord>, ScanEnd, SimLog), ScanError> {
    let mut scan = Scan::new(log, ScanStart { identity: *identity, applied, epoch_min });
    let mut records = Vec::new();
    for _ in 0..100_000 {
        match scan.poll()? {
            ScanStep::Pending => {}
            ScanStep::Record(record) => records.push(record),
            ScanStep::End(end) => return Ok((records, end, scan.into_log())),
        }
    }
    panic!("a scan ends");
}

/// Polls until everything appended is durable.
pub(crate) fn settle(lane: &mut Lane<SimLog>) {
    for _ in 0..10_000 {
        lane.poll(Nanos(0)).expect("no fault was asked for");
        if lane.durable() == lane.appended() {
            return;
        }
    }
    panic!("a lane settles");
}

/// Lets the lane be quiet until it has written its mark.
pub(crate) fn settle_with_mark(lane: &mut Lane<SimLog>) {
    settle(lane);
    let deadline = lane.next_deadline().expect("a mark is due");
    lane.poll(deadline).expect("no fault was asked for");
    settle(lane);
    assert_eq!(lane.next_deadline(), None);
}

/// Makes the checksum of the record header in `bytes` match again.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let lsn = u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
    let sum = checksum(lsn, &bytes[..120]);
    bytes[120..128].copy_from_slice(&sum.to_le_bytes());
}

/// A number as an index.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("64-bit machines only")
}
