//! A small NBD server in memory, sound or with one defect: what the model is tested on.
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "an ordinary threaded server, not the engine")]

use crate::common::{
    self,
    nbd::{
        BLOCK_STATUS, CHUNK_DATA, CHUNK_DONE, CHUNK_MAGIC, CHUNK_STATUS, HOLE, NO_HOLE, READ, REQUEST_MAGIC,
        SIMPLE_MAGIC, TRIM, WRITE, WRITE_ZEROES, ZERO,
    },
};
use std::{
    io::{self, Read, Write},
    ops::Range,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};
use tempfile::TempDir;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

/// Every how many changes a defect that depends on chance shows.
const RARITY: u64 = 97;

/// A defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Now and then a write is acknowledged and forgotten.
    LostWrite,
    /// Now and then a write goes to the next block.
    MisdirectedWrite,
    /// Now and then one bit of a write changes.
    BitFlip,
    /// A trim of whole blocks takes the sector behind it along.
    TrimSectorTooLong,
    /// Write-zeroes leaves its last sector as it was.
    ZeroesSectorShort,
    /// A write that ends inside a sector ends at that sector's start.
    LostUnalignedTail,
    /// A block that was written again after a trim is still called a hole.
    LyingMap,
}

impl Bug {
    pub(crate) const ALL: [Self; 7] = [
        Self::LostWrite,
        Self::MisdirectedWrite,
        Self::BitFlip,
        Self::TrimSectorTooLong,
        Self::ZeroesSectorShort,
        Self::LostUnalignedTail,
        Self::LyingMap,
    ];
}

struct Volume {
    bug: Option<Bug>,
    bytes: Vec<u8>,
    /// Whether a block is allocated.
    allocated: Vec<bool>,
    trimmed: Vec<bool>,
    writes: u64,
}

/// The server; it ends with the test's process.
pub(crate) struct FaultyServer {
    _folder: TempDir,
    socket: PathBuf,
    volume: Arc<Mutex<Volume>>,
}

impl FaultyServer {
    pub(crate) fn start(bug: Option<Bug>, volume_bytes: usize) -> Self {
        let folder = common::folder();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("the folder is ours");
        let blocks = volume_bytes / BLOCK;
        let volume = Volume {
            bug,
            bytes: vec![0; volume_bytes],
            allocated: vec![false; blocks],
            trimmed: vec![false; blocks],
            writes: 0,
        };
        let volume = Arc::new(Mutex::new(volume));
        let shared = Arc::clone(&volume);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let volume = Arc::clone(&shared);
                // A client that goes away ends its thread with an error, as it should.
                thread::spawn(move || serve(stream, &volume));
            }
        });
        Self { _folder: folder, socket, volume }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Makes the volume new again.
    pub(crate) fn clear(&self) {
        let mut volume = lock(&self.volume);
        volume.bytes.fill(0);
        volume.allocated.fill(false);
        volume.trimmed.fill(false);
    }
}

fn lock(volume: &Mutex<Volume>) -> MutexGuard<'_, Volume> {
    volume.lock().expect("no thread panics with the lock held")
}

impl Volume {
    fn write(&mut self, start: usize, data: &[u8]) {
        self.writes += 1;
        let unlucky = self.writes.is_multiple_of(RARITY);
        let (mut start, mut data) = (start, data.to_vec());
        match self.bug {
            Some(Bug::LostWrite) if unlucky => return,
            Some(Bug::MisdirectedWrite) if unlucky && start + data.len() + BLOCK <= self.bytes.len() => start += BLOCK,
            Some(Bug::BitFlip) if unlucky => data[0] ^= 0x10,
            Some(Bug::LostUnalignedTail) => {
                let end = (start + data.len()) / SECTOR * SECTOR;
                data.truncate(end.saturating_sub(start).max(1));
            }
            _ => {}
        }
        self.bytes[start..start + data.len()].copy_from_slice(&data);
        for block in start / BLOCK..(start + data.len()).div_ceil(BLOCK) {
            self.allocated[block] = self.bug != Some(Bug::LyingMap) || !self.trimmed[block];
        }
    }

    fn trim(&mut self, range: &Range<usize>) {
        let whole = range.start.div_ceil(BLOCK)..range.end / BLOCK;
        for block in whole.clone() {
            self.bytes[block * BLOCK..(block + 1) * BLOCK].fill(0);
            self.allocated[block] = false;
            self.trimmed[block] = true;
        }
        if self.bug == Some(Bug::TrimSectorTooLong) && !whole.is_empty() && whole.end < self.allocated.len() {
            self.bytes[whole.end * BLOCK..whole.end * BLOCK + SECTOR].fill(0);
        }
    }

    fn zero(&mut self, range: &Range<usize>, keep: bool) {
        let short = if self.bug == Some(Bug::ZeroesSectorShort) { SECTOR } else { 0 };
        let end = range.end.saturating_sub(short).max(range.start);
        self.bytes[range.start..end].fill(0);
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            let whole = range.start <= block * BLOCK && (block + 1) * BLOCK <= range.end;
            if whole || keep {
                self.allocated[block] = keep;
            }
        }
    }

    fn extents(&self, range: &Range<usize>) -> Vec<u8> {
        let mut found: Vec<(usize, bool)> = Vec::new();
        let mut position = range.start;
        while position < range.end {
            let end = ((position / BLOCK + 1) * BLOCK).min(range.end);
            let allocated = self.allocated[position / BLOCK];
            match found.last_mut() {
                Some((length, state)) if *state == allocated => *length += end - position,
                _ => found.push((end - position, allocated)),
            }
            position = end;
        }
        let pair = |(length, allocated): (usize, bool)| {
            let flags = if allocated { 0 } else { HOLE | ZERO };
            [u32::try_from(length).expect("small").to_be_bytes(), flags.to_be_bytes()].concat()
        };
        [vec![0, 0, 0, 1], found.into_iter().flat_map(pair).collect()].concat()
    }
}

fn take<const COUNT: usize>(stream: &mut UnixStream) -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn serve(mut stream: UnixStream, volume: &Mutex<Volume>) -> io::Result<()> {
    negotiate(&mut stream, lock(volume).bytes.len())?;
    loop {
        let request: [u8; 28] = take(&mut stream)?;
        assert_eq!(request[..4], REQUEST_MAGIC.to_be_bytes(), "the model speaks NBD");
        let keep = number(&request[4..6]) & usize::from(NO_HOLE) != 0;
        let command = u16::try_from(number(&request[6..8])).expect("two bytes");
        let start = number(&request[16..24]);
        let range = start..start + number(&request[24..28]);
        let cookie = &request[8..16];
        let mut data = vec![0; if command == WRITE { range.len() } else { 0 }];
        stream.read_exact(&mut data)?;
        let mut volume = lock(volume);
        let (kind, payload) = match command {
            READ => (CHUNK_DATA, [&request[16..24], &volume.bytes[range]].concat()),
            BLOCK_STATUS => (CHUNK_STATUS, volume.extents(&range)),
            _ => {
                match command {
                    WRITE => volume.write(start, &data),
                    TRIM => volume.trim(&range),
                    WRITE_ZEROES => volume.zero(&range, keep),
                    _ => {}
                }
                drop(volume);
                stream.write_all(&[&SIMPLE_MAGIC.to_be_bytes()[..], &[0; 4], cookie].concat())?;
                continue;
            }
        };
        drop(volume);
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        let (magic, done) = (CHUNK_MAGIC.to_be_bytes(), CHUNK_DONE.to_be_bytes());
        stream.write_all(&[&magic[..], &done, &kind.to_be_bytes(), cookie, &length, &payload].concat())?;
    }
}

/// Exactly what the model's client asks for, in any order.
fn negotiate(stream: &mut UnixStream, volume_bytes: usize) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    let _flags: [u8; 4] = take(stream)?;
    loop {
        let header: [u8; 16] = take(stream)?;
        let mut data = vec![0; number(&header[12..])];
        stream.read_exact(&mut data)?;
        let option = &header[8..12];
        let mut reply = |kind: u32, data: &[u8]| {
            let length = u32::try_from(data.len()).expect("short").to_be_bytes();
            let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
            stream.write_all(&[&magic[..], option, &kind.to_be_bytes(), &length, data].concat())
        };
        match number(option) {
            10 => reply(4, b"\x00\x00\x00\x01base:allocation")?,
            7 => reply(3, &[&[0, 0][..], &(volume_bytes as u64).to_be_bytes(), &[0x0f, 0xff]].concat())?,
            _ => {}
        }
        reply(1, &[])?;
        if number(option) == 7 {
            return Ok(());
        }
    }
}
