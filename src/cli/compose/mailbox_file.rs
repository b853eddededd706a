//! The mailbox as a file: its registers and beats, read and changed by whoever has it open: a node's own thread, or a witness.
//!
//! # Invariants
//!
//! 1. A register is read without a lock: each slot carries its checksum and its place, so a slot that is being written is read again until it is
//!    whole. What was read is made durable before it is returned. The newer slot was the register at some moment of the reading: had a later
//!    generation been written before the first slot was read, that or a later one would have been found.
//! 2. A register is changed under an exclusive OFD lock of its two slots, a new one under the lock of all, so that two are not made in one place. The
//!    lock is tried, never waited for: who has it may stand still for ever. The kernel releases it when its process ends.
//! 3. A damaged slot makes its own register unreadable, and pools of which no register is found, as it may be theirs. The other slot is no copy but the
//!    generation before or after it: nobody can tell which, so it is not believed.
//! 4. A beat needs neither lock nor flush: only its node writes it.
//! 5. Nothing counts that is found in a file which its path does not lead to any more: the other node may have opened another one there. Registers, beats and
//!    locks of a file that was removed or replaced fail with that reason, a change that was being made at that moment is not known to be made.

use crate::cli::pause;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use twinlog::{
    base::{
        PairId, PoolId,
        limits::{BLOCK_BYTES, PAIR_POOLS_MAX},
    },
    format::register::{
        Beat, HEADER_BLOCK, MAILBOX_BLOCKS, MailboxError, MailboxHeader, NODE_COUNT, NodeIndex, Register, locate,
        register_blocks,
    },
    pair::arbiter::SwapOutcome,
};
use twinlog_device::{BlockBuf, BlockBytes, BlockPool};
use twinlog_fence::Holder;

/// How often a block that is not whole is read again before it counts as damaged: a write of a sector takes far less.
const READS_MAX: u32 = 20;
/// Time between two of these reads.
const READ_PAUSE: Duration = Duration::from_millis(1);

/// Beats of a node after which its partner's that cannot be read counts as none.
pub(super) const DAMAGED_BEATS_MAX: u32 = 4;

/// An open mailbox.
pub(super) struct MailboxFile {
    file: File,
    path: PathBuf,
    buffer: BlockBuf,
    header: MailboxHeader,
    /// By node: how often its beat could not be read since it could.
    damaged_beats: [u32; NODE_COUNT],
}

impl MailboxFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        // Past the page cache: what was read survives a power cut. It is no way to share the file with another machine: locks tell of this one's processes only
        // (the configuration refuses that).
        let file = match open(libc::O_DIRECT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0)?,
            opened => opened?,
        };
        let mut buffer = BlockPool::new(1)?.allocate().expect("a new pool has its block");
        let bytes = read_block(&file, &mut buffer, HEADER_BLOCK)?;
        let header = MailboxHeader::verify(&bytes, None).map_err(io::Error::other)?;
        Ok(Self { file, path: path.to_owned(), buffer, header, damaged_beats: [0; NODE_COUNT] })
    }

    /// Fails when its path leads to another file, or to none (I5).
    fn check_place(&self) -> io::Result<()> {
        let what = match fs::metadata(&self.path) {
            Ok(found) if identity(&found) == identity(&self.file.metadata()?) => return Ok(()),
            Ok(_) => "another file lies there now".to_owned(),
            Err(error) => error.to_string(),
        };
        let path = self.path.display();
        Err(io::Error::other(format!(
            "{path} is not what this process has open: {what}; bring the right file back, then restart whoever uses it"
        )))
    }

    pub(super) fn pair(&self) -> PairId {
        self.header.pair
    }

    pub(super) fn nodes(&self) -> &[String; NODE_COUNT] {
        &self.header.nodes
    }

    /// Takes the lock that says that `node` lives; false: another process has it.
    pub(super) fn lock_life(&self, node: NodeIndex) -> io::Result<bool> {
        self.lock(node.beat_block(), 1)
    }

    /// Whether no process has the lock that says that `node` lives. It is looked at and not taken: the node may be about to take it.
    pub(super) fn is_dead(&self, node: NodeIndex) -> io::Result<bool> {
        self.check_place()?;
        let mut lock = range(libc::F_WRLCK, node.beat_block(), 1);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(i32::from(lock.l_type) == libc::F_UNLCK)
    }

    /// The other processes of this machine that have the lock that says that `node` lives; this process has that of the other node.
    pub(super) fn holders(&self, node: NodeIndex) -> io::Result<Vec<Holder>> {
        self.check_place()?;
        let first = node.beat_block() * BLOCK_BYTES;
        Holder::find(&self.file, &(first..first + BLOCK_BYTES))
    }

    /// The register of a pool.
    pub(super) fn read(&mut self, pool: PoolId) -> io::Result<Option<Register>> {
        Ok(self.find(pool)?.1)
    }

    /// Where the register of `pool` is, or would be made.
    fn find(&mut self, pool: PoolId) -> io::Result<(Option<usize>, Option<Register>)> {
        let mut slots = Vec::with_capacity(PAIR_POOLS_MAX);
        for index in 0..PAIR_POOLS_MAX {
            let [even, odd] = register_blocks(index);
            slots.push([self.read_whole(even, Register::verify)?, self.read_whole(odd, Register::verify)?]);
        }
        // Another node's change is not believed before it is durable.
        self.file.sync_data()?;
        self.check_place()?;
        locate(&slots, self.pair(), pool).map_err(io::Error::other)
    }

    /// Has `new` replace `old`, if that is the register; `None`: another process is changing it.
    pub(super) fn try_swap(&mut self, old: Option<Register>, new: Register) -> io::Result<Option<SwapOutcome>> {
        let [first, _] = register_blocks(0);
        let (first, count) = match self.find(new.pool)? {
            (Some(index), Some(_)) => (register_blocks(index)[0], 2),
            _ => (first, MAILBOX_BLOCKS - first),
        };
        if !self.lock(first, count)? {
            return Ok(None);
        }
        let done = self.swap(old, new);
        self.unlock(first, count)?;
        done.map(Some)
    }

    fn swap(&mut self, old: Option<Register>, new: Register) -> io::Result<SwapOutcome> {
        let (index, now) = self.find(new.pool)?;
        if now != old {
            return Ok(SwapOutcome::Changed(now));
        }
        let index = index.ok_or_else(|| io::Error::other("it has no room for a further pool"))?;
        self.write_block(new.block(index), &new.encode(self.pair(), index))?;
        self.file.sync_data()?;
        let written = self.read_whole(new.block(index), Register::verify)?;
        self.check_place()?;
        match Register::verify(&written, self.pair(), new.block(index)).map_err(io::Error::other)? {
            Some(register) if register == new => Ok(SwapOutcome::Done(new)),
            _ => Err(io::Error::other("it does not hold what was written")),
        }
    }

    /// Writes a node's beat.
    pub(super) fn write_beat(&mut self, beat: &Beat) -> io::Result<()> {
        self.write_block(beat.node.beat_block(), &beat.encode(self.pair()))
    }

    /// Makes everything durable that was written.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// A node's newest beat, read with every beat of the other node. One that stays damaged counts as none: a node that lives would have written another.
    pub(super) fn read_beat(&mut self, node: NodeIndex) -> io::Result<Option<Beat>> {
        let bytes = self.read_whole(node.beat_block(), |bytes, pair, _| Beat::verify(bytes, pair, node))?;
        self.check_place()?;
        let beat = Beat::verify(&bytes, self.pair(), node);
        let damaged = &mut self.damaged_beats[node.index()];
        match beat {
            Ok(beat) => {
                *damaged = 0;
                Ok(beat)
            }
            Err(_) if *damaged >= DAMAGED_BEATS_MAX => Ok(None),
            Err(error) => {
                *damaged += 1;
                Err(io::Error::other(error))
            }
        }
    }

    /// A block that somebody may be writing; the last reading of it, if it does not become whole.
    fn read_whole<T>(
        &mut self,
        block: u64,
        verify: impl Fn(&BlockBytes, PairId, u64) -> Result<T, MailboxError>,
    ) -> io::Result<BlockBytes> {
        let mut bytes = read_block(&self.file, &mut self.buffer, block)?;
        for _ in 1..READS_MAX {
            if verify(&bytes, self.pair(), block).is_ok() {
                break;
            }
            pause(READ_PAUSE);
            bytes = read_block(&self.file, &mut self.buffer, block)?;
        }
        Ok(bytes)
    }

    fn write_block(&mut self, block: u64, bytes: &BlockBytes) -> io::Result<()> {
        self.buffer.copy_from_slice(bytes);
        self.file.write_all_at(&self.buffer[..], block * BLOCK_BYTES)
    }

    /// Takes the lock of some blocks; false: another process has it.
    pub(super) fn lock(&self, first: u64, count: u64) -> io::Result<bool> {
        match fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_WRLCK, first, count))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn unlock(&self, first: u64, count: u64) -> io::Result<()> {
        fcntl(&self.file, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, first, count)))?;
        Ok(())
    }
}

/// Which file or device it is, whatever it is called.
fn identity(metadata: &Metadata) -> (u64, u64) {
    // The node of a block device may be made anew; its number stays.
    let is_device = metadata.file_type().is_block_device();
    if is_device { (metadata.rdev(), 0) } else { (metadata.dev(), metadata.ino()) }
}

fn read_block(file: &File, buffer: &mut BlockBuf, block: u64) -> io::Result<BlockBytes> {
    file.read_exact_at(&mut buffer[..], block * BLOCK_BYTES)?;
    let mut bytes = [0; twinlog_device::BLOCK_BYTES];
    bytes.copy_from_slice(&buffer[..]);
    Ok(bytes)
}

fn range(kind: i32, first: u64, count: u64) -> libc::flock {
    let narrow = |value: i32| i16::try_from(value).expect("lock constants are small");
    let place = |blocks: u64| i64::try_from(blocks * BLOCK_BYTES).expect("a mailbox is small");
    libc::flock {
        l_type: narrow(kind),
        l_whence: narrow(libc::SEEK_SET),
        l_start: place(first),
        l_len: place(count),
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::provision;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tempfile::TempDir;
    use twinlog::{
        base::{Epoch, Incarnation, PortionId},
        pair::ownership,
    };

    fn made() -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("mailbox");
        provision::make_mailbox(&path, ["b", "a"]).expect("made");
        (directory, path)
    }

    #[test]
    fn a_file_that_was_removed_or_replaced_counts_no_more() {
        let (directory, path) = made();
        let mut file = MailboxFile::open(&path).expect("made");
        let beat = Beat { node: NodeIndex::First, incarnation: Incarnation(1), count: 1, fences: None, time_ns: 0 };
        let first = ownership::create(PoolId(7), Epoch(2), PortionId(5), 0);
        let mut outcomes = || {
            [
                file.read(PoolId(7)).map(drop),
                file.try_swap(None, first).map(drop),
                file.write_beat(&beat).and_then(|()| file.read_beat(NodeIndex::Second)).map(drop),
                file.is_dead(NodeIndex::Second).map(drop),
                file.holders(NodeIndex::Second).map(drop),
            ]
            .map(|outcome| outcome.err().map(|error| error.to_string()))
        };
        assert_eq!(outcomes().iter().flatten().count(), 1, "only who holds no lock cannot look for holders");
        let aside = directory.path().join("aside");
        fs::rename(&path, &aside).expect("moved");
        let says = |outcomes: [Option<String>; 5], what: &str| {
            outcomes.iter().all(|said| said.as_ref().is_some_and(|said| said.contains(what)))
        };
        assert!(says(outcomes(), "No such file"));
        provision::make_mailbox(&path, ["b", "a"]).expect("made anew");
        assert!(says(outcomes(), "another file lies there now"));
        let mut other = MailboxFile::open(&path).expect("made");
        assert_eq!(other.read(PoolId(7)).expect("its own"), None);
        fs::rename(&aside, &path).expect("brought back");
        assert_eq!(outcomes().iter().flatten().count(), 1);
        assert!(other.read(PoolId(7)).is_err());
    }

    #[test]
    fn who_looks_at_a_life_does_not_keep_anybody_from_it() {
        let (_directory, path) = made();
        let (looker, node) = (MailboxFile::open(&path).expect("made"), MailboxFile::open(&path).expect("made"));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    looker.is_dead(NodeIndex::First).expect("looked");
                }
            });
            let refused = (0..20_000).filter(|_| {
                let is_taken = node.lock_life(NodeIndex::First).expect("tried");
                node.unlock(NodeIndex::First.beat_block(), 1).expect("let go");
                !is_taken
            });
            let refused = refused.count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(refused, 0, "a node that starts would not have started");
        });
        assert!(node.lock_life(NodeIndex::First).expect("tried"));
        assert!(!looker.is_dead(NodeIndex::First).expect("looked"));
        drop(node);
        assert!(looker.is_dead(NodeIndex::First).expect("looked"));
    }
}
