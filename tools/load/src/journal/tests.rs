//! What a journal keeps, what it forgives and what it refuses.

use super::*;
use crate::{prng::Prng, units::index};

const HEADER: Header =
    Header { run: 11, seed: 12, region: Region { offset: 4096, size_bytes: 65536, cell_bytes: 4096 }, blank: true };

fn change(event: Event, version: u64, fua: bool) -> Record {
    Record { event, fua, version, offset: 4096 * (1 + version % 16), length: 4096 }
}

fn write(path: &Path, records: &[Record]) {
    let mut journal = Journal::create(path, HEADER).unwrap();
    records.iter().for_each(|record| journal.append(record));
    journal.write_out().unwrap();
}

fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    (dir, path)
}

#[test]
fn what_was_written_is_read_back() {
    let (_dir, path) = scratch();
    let write_1 = Event::Issued(Change::Write);
    let acknowledged = Event::Acknowledged(Change::Write);
    write(
        &path,
        &[
            change(write_1, 1, false),
            change(acknowledged, 1, false),
            change(write_1, 2, true),
            change(Event::Failed(Change::Zero), 3, false),
        ],
    );
    let replay = replay(&path).unwrap();
    assert_eq!(replay.header, HEADER);
    let Totals { issued, acknowledged, failed, records, last_version, .. } = replay.totals;
    assert_eq!((issued, acknowledged, failed, records, last_version), (2, 1, 1, 5, 3));
    assert_eq!(replay.model.floors(4096, 65536)[..3], [0, 1, 0]);
    assert!(Journal::create(&path, HEADER).is_err(), "an existing file is not overwritten");
}

#[test]
fn a_flush_covers_what_was_acknowledged_before_its_issue_in_its_session() {
    let (_dir, path) = scratch();
    let acknowledged = |version| change(Event::Acknowledged(Change::Write), version, version == 5);
    write(
        &path,
        &[
            acknowledged(1),
            Record::bare(Event::FlushIssued, 2),
            acknowledged(3),
            Record::bare(Event::Flushed, 2),
            acknowledged(5),
            Record::bare(Event::FlushIssued, 6),
            Record::bare(Event::Session, 0),
            acknowledged(7),
            Record::bare(Event::Flushed, 6),
        ],
    );
    let replay = replay(&path).unwrap();
    let cells: Vec<_> = [1, 3, 5, 7].map(|cell| replay.model.durable(cell)).to_vec();
    assert_eq!(cells, [(1, Promise::Flushed), (0, Promise::Fua), (5, Promise::Fua), (0, Promise::Fua)]);
    assert_eq!((replay.totals.acknowledged, replay.totals.fua, replay.totals.flushed), (4, 1, 1));
}

#[test]
fn a_torn_tail_is_cut_off_and_the_journal_goes_on() {
    let (_dir, path) = scratch();
    write(&path, &[change(Event::Issued(Change::Write), 1, false)]);
    let whole = std::fs::read(&path).unwrap();
    for torn in 1..RECORD_BYTES {
        std::fs::write(&path, &whole[..whole.len() - torn]).unwrap();
        assert_eq!(replay(&path).unwrap().totals.records, 1, "only the session's record");
    }
    let mut journal = Journal::resume(&path, HEADER, 1).unwrap();
    journal.append(&change(Event::Issued(Change::Trim), 9, false));
    journal.write_out().unwrap();
    let replay = replay(&path).unwrap();
    assert_eq!((replay.totals.records, replay.totals.last_version), (3, 9));
}

#[test]
fn every_flipped_bit_and_swapped_record_is_an_error() {
    let (_dir, path) = scratch();
    write(
        &path,
        &[change(Event::Issued(Change::Write), 1, false), change(Event::Acknowledged(Change::Write), 1, false)],
    );
    let whole = std::fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        assert!(replay(&path).is_err(), "bit {bit}");
    }
    let swapped = [&whole[..96], &whole[128..160], &whole[96..128]].concat();
    std::fs::write(&path, swapped).unwrap();
    assert!(matches!(replay(&path), Err(JournalError::Damaged(96))));
}

#[test]
fn hostile_headers_and_records_with_right_checksums_are_refused() {
    let good = HEADER.region;
    let regions = [
        Region { cell_bytes: 0, ..good },
        Region { cell_bytes: 31, size_bytes: 31 * 16, ..good },
        Region { size_bytes: 0, ..good },
        Region { size_bytes: 4097, ..good },
        Region { size_bytes: (CELLS_LIMIT + 1) * 4096, ..good },
        Region { offset: u64::MAX - 10, ..good },
    ];
    for region in regions {
        let header = Header { region, ..HEADER };
        assert_eq!(decode_header(&encode_header(&header)), None, "{region:?}");
    }
    let largest = Region { offset: 0, size_bytes: CELLS_LIMIT * 4096, cell_bytes: 4096 };
    assert!(decode_header(&encode_header(&Header { region: largest, ..HEADER })).is_some());
    let outside = Record { offset: 4096 + 65536, ..change(Event::Issued(Change::Write), 1, false) };
    assert_eq!(decode_record(&HEADER, 0, &encode_record(&HEADER, 0, &outside)), None);
    let inside = Record { offset: 65536, ..outside };
    assert_eq!(decode_record(&HEADER, 0, &encode_record(&HEADER, 0, &inside)), Some(inside));
}

#[test]
fn garbage_never_panics() {
    let (_dir, path) = scratch();
    let mut prng = Prng::new(5);
    for _ in 0..500 {
        let mut bytes = vec![0; index(prng.below(400))];
        prng.fill(&mut bytes);
        if prng.percent(50) && bytes.len() >= HEADER_BYTES {
            bytes[..HEADER_BYTES].copy_from_slice(&encode_header(&HEADER));
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(replay(&path).is_err() || bytes.len() < HEADER_BYTES + RECORD_BYTES);
    }
}
