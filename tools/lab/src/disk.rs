//! A guest's disk with a volatile write cache: what has not been flushed when the power is cut is lost in part, in any order, sector by sector.
//!
//! QEMU's own disks lie in files, and this machine's page cache outlives a killed QEMU: there a cut loses nothing. So the lab is the disk
//! itself, behind QEMU's NBD client on a Unix socket.
//!
//! Invariants:
//!
//! 1. A read returns what was written last.
//! 2. A write is one whole or nothing per sector of 512 bytes, the unit that the guest sees as the disk's block.
//! 3. After a cut a sector holds its content as of the last answered flush (or write with FUA), or any that was written to it since.
//! 4. A flush that was answered makes every write durable that was answered before it. Requests are performed one at a time, in the order in which
//!    they arrive, so that is every write before it.
//!
//! The disks choose an instant and stand still from then on, see [`Power`]: in the middle of what they do, with something volatile, or most cuts would
//! find everything flushed. Then the power goes; or they are copied ([`capture`]), as that instant would have left them, and go on. To the machine
//! they were slow for a moment.
//!
//! Standing still, they are as after a cut: a disk that ends what it was performing when another one chose the instant was performing it before, and
//! the other one was idle in between. What was answered until then is all that the machine can build on, and nothing is answered after it.
//!
//! The image holds the newest content; beside it lies, for each sector that is not durable, what it held since the last flush. A cut rolls
//! sectors back.

use crate::random::Random;
use anyhow::{Context as _, Result, bail};
use nix::unistd::{Whence, lseek};
use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    ops,
    os::unix::{
        fs::FileExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const SECTOR_BYTES: usize = 512;
type Sector = [u8; SECTOR_BYTES];

/// QEMU connects before it starts the guest.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

const OPTION_GO: u32 = 7;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REPLY_DONE: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
/// has flags, flush, FUA
const TRANSMISSION_FLAGS: u16 = 1 | 4 | 8;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const FUA: u16 = 1;
/// What any client of ours sends at most, in one request or option.
const REQUEST_BYTES_MAX: u32 = 32 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    On,
    /// Nothing is performed and nothing is answered until it is on again.
    Held,
    /// The same for ever: only the end of the client is awaited.
    Off,
}

/// What all disks of one machine share.
#[derive(Debug, Default)]
pub struct Power {
    phase: Mutex<Phase>,
    changed: Condvar,
    /// Whether flushes are answered without being performed. A proof that passes while they are proves nothing.
    lies: AtomicBool,
}

impl Power {
    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.changed.notify_all();
    }

    /// Whether the disks stand still, at the instant that one of them chose.
    #[must_use]
    pub fn is_held(&self) -> bool {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) == Phase::Held
    }

    /// Goes: what the disks have not performed they never will.
    pub fn go(&self) {
        self.set(Phase::Off);
    }

    /// On again: after [`Served::hold_after`], or for another machine.
    pub fn reset(&self) {
        self.set(Phase::On);
    }

    /// Flushes mean nothing from now on.
    pub fn lie(&self) {
        self.lies.store(true, Ordering::SeqCst);
    }

    fn is_truthful(&self) -> bool {
        !self.lies.load(Ordering::SeqCst)
    }

    /// Waits while it is held; what it is then.
    fn wait(&self) -> Phase {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        while *phase == Phase::Held {
            phase = self.changed.wait(phase).unwrap_or_else(PoisonError::into_inner);
        }
        *phase
    }
}

/// What a disk holds.
#[derive(Debug)]
struct Content {
    image: File,
    /// By sector: what it held at the last flush, then what was written since, less the newest.
    volatile: BTreeMap<u64, Vec<Sector>>,
}

/// A disk that no guest uses at the moment.
#[derive(Debug)]
pub struct Disk {
    content: Arc<Mutex<Content>>,
    size_bytes: u64,
    power: Arc<Power>,
    /// Volatile writes until the disks stand still; zero while they are to go on.
    countdown: Arc<AtomicU64>,
}

/// A disk in use.
#[derive(Debug)]
pub struct Served {
    thread: JoinHandle<Result<Disk>>,
    content: Arc<Mutex<Content>>,
    countdown: Arc<AtomicU64>,
    socket: PathBuf,
}

/// Where a guest finds a disk.
#[derive(Clone, Copy, Debug)]
pub enum Slot {
    /// A virtio disk of its own.
    Virtio,
    /// The namespace of this number of the NVMe controller with this name.
    Namespace(&'static str, u32),
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    /// Sectors whose newest content was not durable.
    pub volatile: usize,
    /// Of them, those that were rolled back.
    pub lost: usize,
}

impl ops::AddAssign for Loss {
    fn add_assign(&mut self, other: Self) {
        self.volatile += other.volatile;
        self.lost += other.lost;
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} sectors were not durable, {} of them were lost", self.volatile, self.lost)
    }
}

/// What was durable at least, and what a cut may leave, is part of it: whatever was in the middle of a change was not.
fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Content {
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.image.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        let old = self.read(offset, bytes.len())?;
        let (sectors, rest) = old.as_chunks::<SECTOR_BYTES>();
        if !rest.is_empty() || !offset.is_multiple_of(SECTOR_BYTES as u64) {
            return Err(io::Error::other(format!("{} bytes at {offset} are not whole sectors", bytes.len())));
        }
        for (sector, old) in (offset / SECTOR_BYTES as u64..).zip(sectors) {
            if durable {
                self.volatile.remove(&sector);
            } else {
                self.volatile.entry(sector).or_default().push(*old);
            }
        }
        self.image.write_all_at(bytes, offset)
    }

    fn cut(&mut self, random: &mut Random, all: bool) -> Result<Loss> {
        let volatile = std::mem::take(&mut self.volatile);
        let mut loss = Loss { volatile: volatile.len(), lost: 0 };
        for (sector, versions) in volatile {
            let choice = if all { 0 } else { random.below(versions.len() + 1) };
            // The newest is in the image.
            if let Some(version) = versions.get(choice) {
                self.image.write_all_at(version, sector * SECTOR_BYTES as u64)?;
                loss.lost += 1;
            }
        }
        Ok(loss)
    }

    /// A copy of it, whose image is the file `path`.
    fn copy(&self, path: &Path) -> Result<Self> {
        let image = new_image(path, self.image.metadata()?.len())?;
        let mut end = 0;
        // What was never written is no data of the image's.
        while let Ok(start) = lseek(&self.image, end, Whence::SeekData) {
            end = lseek(&self.image, start, Whence::SeekHole)?;
            let bytes = self.read(u64::try_from(start)?, usize::try_from(end - start)?)?;
            image.write_all_at(&bytes, u64::try_from(start)?)?;
        }
        Ok(Self { image, volatile: self.volatile.clone() })
    }
}

fn new_image(path: &Path, size_bytes: u64) -> Result<File> {
    let image = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    let image = image.with_context(|| format!("making {}", path.display()))?;
    image.set_len(size_bytes)?;
    Ok(image)
}

/// A copy of each disk as it is while all of them stand still, at the paths given.
///
/// # Errors
///
/// A file cannot be made.
pub fn capture(disks: &[Served], paths: &[PathBuf]) -> Result<Vec<Disk>> {
    // All before the first is copied: none is in the middle of a request, and none begins one.
    let contents: Vec<MutexGuard<'_, Content>> = disks.iter().map(|disk| lock(&disk.content)).collect();
    let one = |(content, path): (&MutexGuard<'_, Content>, &PathBuf)| {
        let content = content.copy(path)?;
        let size_bytes = content.image.metadata()?.len();
        Ok(Disk::of(content, size_bytes, &Arc::default()))
    };
    contents.iter().zip(paths).map(one).collect()
}

impl Disk {
    /// An empty disk.
    ///
    /// # Errors
    ///
    /// Its file cannot be made.
    pub fn new(path: &Path, size_bytes: u64, power: &Arc<Power>) -> Result<Self> {
        let content = Content { image: new_image(path, size_bytes)?, volatile: BTreeMap::new() };
        Ok(Self::of(content, size_bytes, power))
    }

    fn of(content: Content, size_bytes: u64, power: &Arc<Power>) -> Self {
        let content = Arc::new(Mutex::new(content));
        Self { content, size_bytes, power: Arc::clone(power), countdown: Arc::default() }
    }

    /// What is volatile is lost: all of it, or each sector by lot.
    ///
    /// # Errors
    ///
    /// The image cannot be written.
    pub fn cut(&mut self, random: &mut Random, all: bool) -> Result<Loss> {
        lock(&self.content).cut(random, all)
    }

    /// Serves it to one client, QEMU, at a Unix socket, until the client goes.
    ///
    /// # Errors
    ///
    /// The socket cannot be made.
    pub fn serve(mut self, socket: &Path) -> Result<Served> {
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).with_context(|| format!("listening at {}", socket.display()))?;
        listener.set_nonblocking(true)?;
        let (content, countdown) = (Arc::clone(&self.content), Arc::clone(&self.countdown));
        countdown.store(0, Ordering::SeqCst);
        let thread = thread::spawn(move || {
            let start = Instant::now();
            let mut stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(_) if start.elapsed() < CONNECT_PATIENCE => thread::sleep(POLL),
                    Err(error) => return Err(error).context("qemu does not connect to its disk"),
                }
            };
            stream.set_nonblocking(false)?;
            handshake(&mut stream, self.size_bytes).context("the handshake with qemu")?;
            while self.request(&mut stream)? {}
            Ok(self)
        });
        Ok(Served { thread, content, countdown, socket: socket.to_owned() })
    }

    fn flush(&self, content: &mut Content) {
        if self.power.is_truthful() {
            content.volatile.clear();
        }
    }

    fn write(&self, content: &mut Content, offset: u64, bytes: &[u8], durable: bool) -> io::Result<()> {
        content.write(offset, bytes, durable && self.power.is_truthful())?;
        if durable {
            return Ok(());
        }
        let left = self.countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if left == Ok(1) {
            self.power.set(Phase::Held);
        }
        Ok(())
    }

    /// The content, when the disks do not stand still; none when the power has gone. Who has it is waited for by [`capture`].
    fn running(&self) -> Option<MutexGuard<'_, Content>> {
        loop {
            if self.power.wait() == Phase::Off {
                return None;
            }
            let content = lock(&self.content);
            // Else another disk has chosen the instant in between.
            if !self.power.is_held() {
                return Some(content);
            }
        }
    }

    /// Performs one request; false when the client has gone, be it in the middle of one.
    fn request(&mut self, stream: &mut UnixStream) -> Result<bool> {
        let mut header = [0; 28];
        if stream.read_exact(&mut header).is_err() {
            return Ok(false);
        }
        let short = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (flags, command, cookie, length) = (short(4), short(6), &header[8..16], word(24));
        let offset = (u64::from(word(16)) << 32) | u64::from(word(20));
        if word(0) != REQUEST_MAGIC || length > REQUEST_BYTES_MAX {
            bail!("not a request: {header:?}");
        }
        let length = usize::try_from(length)?;
        let mut data = vec![0; if command == WRITE { length } else { 0 }];
        if stream.read_exact(&mut data).is_err() {
            return Ok(false);
        }
        let Some(mut content) = self.running() else {
            // Until the client has gone, or an error would show that this is no silence.
            io::copy(stream, &mut io::sink()).unwrap_or_default();
            return Ok(false);
        };
        let mut answer = [&REPLY_MAGIC.to_be_bytes()[..], &[0; 4], cookie].concat();
        match command {
            READ => answer.extend(content.read(offset, length)?),
            WRITE => self.write(&mut content, offset, &data, flags & FUA != 0)?,
            FLUSH => self.flush(&mut content),
            DISCONNECT => return Ok(false),
            _ => bail!("command {command}, which was not offered"),
        }
        drop(content);
        Ok(stream.write_all(&answer).is_ok())
    }
}

impl Served {
    /// The part of QEMU's arguments that makes this the guest's disk of that name.
    #[must_use]
    pub fn devices(&self, name: &str, slot: Slot) -> [String; 4] {
        let socket = self.socket.display();
        let backend = format!("driver=nbd,node-name={name},server.type=unix,server.path={socket}");
        let device = match slot {
            Slot::Virtio => format!("virtio-blk-pci,drive={name},serial={name},write-cache=on"),
            Slot::Namespace(controller, number) => {
                format!("nvme-ns,drive={name},bus={controller},nsid={number},write-cache=on")
            }
        };
        ["-blockdev".to_owned(), backend, "-device".to_owned(), device]
    }

    /// Lets all disks stand still right after one of this disk's next writes that are not durable: the first for 1.
    pub fn hold_after(&self, writes: u64) {
        self.countdown.store(writes, Ordering::SeqCst);
    }

    /// The disk, when QEMU has gone.
    ///
    /// # Errors
    ///
    /// The disk has failed in between.
    pub fn join(self) -> Result<Disk> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the disk's thread has panicked"))?
    }
}

fn word(stream: &mut UnixStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn reply(option: u32, kind: u32, content: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(content.len())?;
    let header = [option.to_be_bytes(), kind.to_be_bytes(), length.to_be_bytes()].concat();
    Ok([&OPTION_REPLY_MAGIC.to_be_bytes()[..], &header, content].concat())
}

/// Fixed newstyle, until the client chooses the export.
fn handshake(stream: &mut UnixStream, size_bytes: u64) -> Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    word(stream)?;
    loop {
        let mut magic = [0; 8];
        stream.read_exact(&mut magic)?;
        let (option, length) = (word(stream)?, word(stream)?);
        if magic != *b"IHAVEOPT" || length > REQUEST_BYTES_MAX {
            bail!("not an option: {magic:?}");
        }
        let mut content = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut content)?;
        if option == OPTION_GO {
            let export = [&[0, 0], &size_bytes.to_be_bytes()[..], &TRANSMISSION_FLAGS.to_be_bytes()].concat();
            let blocks = [512_u32, 4096, REQUEST_BYTES_MAX].map(u32::to_be_bytes).concat();
            stream.write_all(&reply(option, REPLY_INFO, &export)?)?;
            stream.write_all(&reply(option, REPLY_INFO, &[&[0, 3], &blocks[..]].concat())?)?;
            stream.write_all(&reply(option, REPLY_DONE, &[])?)?;
            return Ok(());
        }
        stream.write_all(&reply(option, REPLY_UNSUPPORTED, &[])?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(lies: bool) -> (tempfile::TempDir, Disk) {
        let folder = tempfile::tempdir().unwrap();
        let power = Arc::new(Power::default());
        if lies {
            power.lie();
        }
        let disk = Disk::new(&folder.path().join("disk"), 1 << 20, &power).unwrap();
        (folder, disk)
    }

    fn write(disk: &Disk, bytes: &[u8], durable: bool) {
        disk.write(&mut lock(&disk.content), 0, bytes, durable).unwrap();
    }

    fn flush(disk: &Disk) {
        disk.flush(&mut lock(&disk.content));
    }

    fn read(disk: &Disk, length: usize) -> Vec<u8> {
        lock(&disk.content).read(0, length).unwrap()
    }

    /// What sector 0 holds after each of many cuts, when it held 1 durably and then 2 and 3 were written.
    fn seen(durable: impl Fn(&Disk), lies: bool) -> Vec<u8> {
        let mut found: Vec<u8> = (0..64)
            .map(|seed| {
                let (_folder, mut disk) = disk(lies);
                write(&disk, &[1; 512], false);
                durable(&disk);
                write(&disk, &[2; 512], false);
                write(&disk, &[3; 512], false);
                assert_eq!(read(&disk, 512), [3; 512], "I1");
                disk.cut(&mut Random::new(seed), seed % 2 == 0).unwrap();
                read(&disk, 1)[0]
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn a_cut_leaves_the_flushed_content_or_a_later_one() {
        assert_eq!(seen(flush, false), [1, 2, 3]);
        assert_eq!(seen(|disk| write(disk, &[1; 512], true), false), [1, 2, 3]);
        assert_eq!(seen(|_| {}, false), [0, 1, 2, 3], "nothing was flushed");
        assert_eq!(seen(flush, true), [0, 1, 2, 3], "a disk that lies");
    }

    #[test]
    fn sectors_are_lost_one_by_one() {
        let torn = (0..64).any(|seed| {
            let (_folder, mut disk) = disk(false);
            write(&disk, &[9; 4096], false);
            let loss = disk.cut(&mut Random::new(seed), seed % 2 == 0).unwrap();
            assert_eq!(loss.volatile, 8);
            loss.lost > 0 && loss.lost < 8
        });
        assert!(torn);
    }

    fn connected(folder: &tempfile::TempDir, disk: Disk) -> (Served, UnixStream) {
        let socket = folder.path().join("socket");
        let served = disk.serve(&socket).unwrap();
        let mut client = UnixStream::connect(&socket).unwrap();
        client.read_exact(&mut [0; 18]).unwrap();
        client.write_all(&[0, 0, 0, 3]).unwrap();
        client.write_all(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0").unwrap();
        client.read_exact(&mut [0; 20 + 12 + 20 + 14 + 20]).unwrap();
        (served, client)
    }

    /// The head of a request that writes 1024 bytes at 0.
    fn write_1024() -> [u8; 28] {
        let mut request = [0; 28];
        request[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        request[7] = 1;
        request[26] = 4;
        request
    }

    #[test]
    fn nothing_is_performed_or_answered_once_the_power_has_gone() {
        let (folder, disk) = disk(false);
        let power = Arc::clone(&disk.power);
        let (served, mut client) = connected(&folder, disk);
        served.hold_after(2);
        for byte in [1, 2] {
            assert!(!power.is_held());
            client.write_all(&write_1024()).unwrap();
            client.write_all(&[byte; 1024]).unwrap();
            client.read_exact(&mut [0; 16]).unwrap();
        }
        assert!(power.is_held());
        client.write_all(&write_1024()).unwrap();
        client.write_all(&[3; 1024]).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let silence = client.read(&mut [0; 16]).unwrap_err();
        assert_eq!(silence.kind(), io::ErrorKind::WouldBlock);
        power.go();
        let silence = client.read(&mut [0; 16]).unwrap_err();
        assert_eq!(silence.kind(), io::ErrorKind::WouldBlock);
        drop(client);
        let mut disk = served.join().unwrap();
        assert_eq!(read(&disk, 1024), [2; 1024]);
        assert_eq!(disk.cut(&mut Random::new(1), true).unwrap().lost, 2);
        assert_eq!(read(&disk, 1024), [0; 1024]);
    }

    #[test]
    fn disks_that_stand_still_are_copied_and_go_on() {
        let (folder, disk) = disk(false);
        let power = Arc::clone(&disk.power);
        let (served, mut client) = connected(&folder, disk);
        let send = |client: &mut UnixStream, byte| {
            client.write_all(&write_1024()).unwrap();
            client.write_all(&[byte; 1024]).unwrap();
        };
        served.hold_after(1);
        send(&mut client, 1);
        client.read_exact(&mut [0; 16]).unwrap();
        send(&mut client, 2);
        assert!(power.is_held());
        let paths = [folder.path().join("copy")];
        let mut copy = capture(std::slice::from_ref(&served), &paths).unwrap().pop().unwrap();
        power.reset();
        client.read_exact(&mut [0; 16]).unwrap();
        assert_eq!(read(&copy, 1024), [1; 1024], "what was on its way is not in it");
        assert_eq!(lock(&copy.content).volatile.len(), 2, "what may be lost is");
        assert_eq!(copy.cut(&mut Random::new(1), true).unwrap().lost, 2);
        assert_eq!(fs::read(&paths[0]).unwrap(), vec![0; 1 << 20]);
        drop(client);
        assert_eq!(read(&served.join().unwrap(), 1024), [2; 1024]);
    }

    #[test]
    fn a_client_that_goes_in_the_middle_of_a_write_has_not_written() {
        let (folder, disk) = disk(false);
        let (served, mut client) = connected(&folder, disk);
        let request = write_1024();
        client.write_all(&request).unwrap();
        client.write_all(&[7; 1024]).unwrap();
        client.read_exact(&mut [0; 16]).unwrap();
        client.write_all(&request).unwrap();
        client.write_all(&[8; 1000]).unwrap();
        drop(client);
        let disk = served.join().unwrap();
        assert_eq!(read(&disk, 1024), [7; 1024]);
        assert_eq!(lock(&disk.content).volatile.len(), 2);
    }
}
