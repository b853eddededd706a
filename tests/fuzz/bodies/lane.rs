//! The change log: one record, and a whole lane as recovery and inspection read it.

use super::take;
use std::{collections::BTreeSet, io};
use twinlog::{
    base::{Epoch, LaneIndex, Lsn, PoolId, PortionId, checksum},
    changelog::{
        LaneIdentity, PortionRole, Ring,
        inspect::{Inspector, Row},
    },
    format::{
        lane_header::RawLaneHeader,
        record::{RECORD_HEADER_BYTES, RecordExpected, RecordHeader},
    },
};
use zerocopy::IntoBytes;

/// Whose lane it is, unless the input says otherwise.
pub(crate) const IDENTITY: LaneIdentity =
    LaneIdentity { pool: PoolId(0x7777), role: PortionRole::Own, lane: LaneIndex(1), lane_count: 2 };

/// Bytes of the ring of a fuzzed lane: small, so that laps happen.
pub(crate) const RING_BYTES: usize = 16 << 10;

const HEADER: usize = 128;

/// Makes the checksums of the record at the start of `bytes` right: what a fuzzer cannot guess. Returns the bytes of its body, if that
/// is all there.
fn seal(bytes: &mut [u8], with_body: bool) -> usize {
    let (payload, _) = take::<4>(&bytes[12..]);
    let (lsn, _) = take::<8>(&bytes[24..]);
    let lsn = u64::from_le_bytes(lsn);
    let body = usize::try_from(u32::from_le_bytes(payload)).unwrap_or(usize::MAX).checked_next_multiple_of(128);
    let body = body.and_then(|body| bytes.get(HEADER..HEADER.saturating_add(body)));
    let body_bytes = body.map_or(0, <[u8]>::len);
    if let Some(sum) = body.filter(|_| with_body).map(|body| checksum(lsn, body)) {
        bytes[80..88].copy_from_slice(&sum.to_le_bytes());
    }
    let sum = checksum(lsn, &bytes[..120]);
    bytes[120..128].copy_from_slice(&sum.to_le_bytes());
    body_bytes
}

/// Bytes: one that says what is mended, then a record with its body.
pub(crate) fn record(data: &[u8]) -> bool {
    let ([mend], data) = take::<1>(data);
    let mut bytes = data.to_vec();
    bytes.resize(bytes.len().max(HEADER), 0);
    if mend % 4 != 0 {
        seal(&mut bytes, mend % 4 == 1);
    }
    let expected = RecordExpected { pool: IDENTITY.pool, lane: IDENTITY.lane };
    let Ok(header) = RecordHeader::read(&bytes, &expected) else { return false };
    assert!(header.lsn < header.end && header.stable_lsn <= header.lsn);
    assert!(header.payload_bytes <= header.end.0 - header.lsn.0 - RECORD_HEADER_BYTES);
    assert_eq!(header.draft.check(header.payload_bytes), Ok(()));
    let body = usize::try_from(header.body_bytes()).expect("at most four GiB");
    match bytes.get(HEADER..HEADER.saturating_add(body)).map(|body| header.payload(body)) {
        Some(Ok(payload)) => {
            assert!(payload.is_empty() || payload.len() as u64 == header.payload_bytes);
            true
        }
        _ => false,
    }
}

/// Bytes: applied position and epoch (4), what is mended (1), then the ring. Every record that stands in its place can be mended.
pub(crate) fn lane(data: &[u8]) -> bool {
    let ([low, high, laps, epoch, mend], data) = take::<5>(data);
    let applied = Lsn(u64::from(u16::from_le_bytes([low, high])) * 128 + u64::from(laps) * RING_BYTES as u64);
    let header = RawLaneHeader::new(&IDENTITY, PortionId(9), RING_BYTES as u64);
    let mut image = header.as_bytes().to_vec();
    image.extend_from_slice(&data[..data.len().min(RING_BYTES)]);
    image.resize(4096 + RING_BYTES, 0);
    if mend & 1 != 0 {
        let mut at = 4096;
        while at < image.len() {
            let is_record = image[at..].starts_with(b"TWLR");
            at += HEADER + if is_record { seal(&mut image[at..], mend & 2 != 0) } else { 0 };
        }
    }
    if mend & 4 != 0 {
        image[usize::from(low) * 16] ^= 1 << (high % 8);
    }
    judge(&image, applied, Epoch(u64::from(epoch)))
}

/// What recovery and inspection make of a region: bounded work, the same twice, every byte read within the region.
fn judge(image: &[u8], applied: Lsn, epoch: Epoch) -> bool {
    let mut reads = 0_u64;
    let read = |offset: u64, buffer: &mut [u8]| {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        reads += buffer.len() as u64;
        buffer.copy_from_slice(image.get(start..start + buffer.len()).ok_or_else(|| io::Error::other("beyond"))?);
        Ok(())
    };
    let Ok(mut inspector) = Inspector::open(read, image.len() as u64) else { return false };
    let mut seen = BTreeSet::new();
    let newest = inspector.lane().newest_lsn;
    inspector
        .rows(|row| {
            let (lsn, end) = match row {
                Row::Record(record) => (record.lsn, record.end_lsn),
                Row::Gap { lsn, end_lsn } => (lsn, end_lsn),
            };
            assert!(lsn < end && end <= newest.next_multiple_of(128) + RING_BYTES as u64, "{lsn} to {end} of {newest}");
            assert!(seen.insert(lsn), "a place is shown once");
            true
        })
        .expect("memory can be read");
    let first = inspector.verify(Some((applied, epoch)));
    assert_eq!(first, inspector.verify(Some((applied, epoch))), "a scan changes nothing");
    let _damage_that_is_harmless = inspector.verify(None);
    let ring = Ring::of_region(image.len() as u64).expect("a region of this size");
    let changes = match first {
        Ok(verdict) => {
            assert!(verdict.end_lsn >= applied.0 && verdict.end_lsn - applied.0 <= ring.bytes());
            assert!(verdict.payload_bytes <= ring.bytes() && verdict.epoch >= epoch.0);
            verdict.changes
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            0
        }
    };
    assert!(reads < 16 * image.len() as u64, "every look reads the region about once: {reads} bytes");
    changes > 0
}
