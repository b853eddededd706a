//! Files and block devices through io_uring: one ring, registered file, O_DIRECT unless asked otherwise.
//!
//! FUA is RWF_DSYNC, flush is fdatasync, zero and trim are fallocate (which block devices turn into WRITE_ZEROES and discard). A file
//! does not go away and come back: `recover` refuses.
#![expect(unsafe_code, reason = "the kernel reads and writes the slots' memory; SAFETY comments say why that is sound")]

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    time::Instant,
};

use io_uring::{IoUring, opcode, squeue, types};

use crate::{
    engine::{Buffers, Completion, Engine, Geometry, Kind, Lost, Request, Wait},
    units::{index, nanoseconds},
};

/// The file is the only registered one.
const FILE: types::Fixed = types::Fixed(0);
/// What O_DIRECT demands where the device's own block size is not known: 512 bytes, or the page for file systems on 4 KiB disks.
const DIRECT_BLOCK_CANDIDATES: [u64; 4] = [512, 1024, 2048, 4096];
/// One request's longest range: what fits into the 32-bit result of a read or write with room to spare.
const REQUEST_LIMIT: u64 = 32 << 20;

/// How a path is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileOptions {
    /// Through the page cache instead of O_DIRECT.
    pub(crate) buffered: bool,
    /// The workload changes the content.
    pub(crate) writes: bool,
    /// Create the file, or make it longer, so that it has this many bytes.
    pub(crate) size_bytes: Option<u64>,
}

/// A file or block device under load.
pub(crate) struct FileEngine {
    ring: IoUring,
    file: File,
    geometry: Geometry,
    buffers: Buffers,
    lengths: Vec<u64>,
    slots: usize,
    in_flight: usize,
}

impl FileEngine {
    /// Opens `path` with a ring for `slots` requests.
    pub(crate) fn open(path: &Path, options: FileOptions, slots: usize) -> Result<Self, String> {
        let named = |what: &str, error: std::io::Error| format!("{what} {}: {error}", path.display());
        let mut file = open_file(path, options).map_err(|error| {
            let busy = error.raw_os_error() == Some(libc::EBUSY);
            named("cannot open", error) + if busy { ": it is mounted, or another program has claimed it" } else { "" }
        })?;
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(|error| named("cannot size", error))?;
        let block_bytes =
            if options.buffered { 1 } else { direct_block(&mut file).map_err(|error| named("cannot read", error))? };
        let entries = u32::try_from(slots.next_power_of_two()).expect("slots are bounded by the command line");
        let ring = new_ring(entries).map_err(|error| format!("this kernel or sandbox offers no io_uring: {error}"))?;
        ring.submitter().register_files(&[file.as_raw_fd()]).map_err(|error| named("cannot register", error))?;
        let geometry = Geometry {
            size_bytes,
            block_bytes,
            request_limit_bytes: REQUEST_LIMIT,
            read_only: !options.writes,
            can_flush: options.writes,
            can_fua: true,
            can_trim: true,
            can_zero: true,
            multi_conn: true,
        };
        Ok(Self { ring, file, geometry, buffers: Buffers::new(0, 0), lengths: vec![0; slots], slots, in_flight: 0 })
    }

    /// Gives the engine its slots' memory.
    pub(crate) fn with_slots(mut self, buffers: Buffers) -> Self {
        self.buffers = buffers;
        self
    }

    fn entry(&mut self, request: &Request) -> squeue::Entry {
        let durable = if request.fua { libc::RWF_DSYNC } else { 0 };
        let length = u32::try_from(request.length).expect("requests are at most 32 MiB");
        let memory = self.buffers.slot_mut(request.slot);
        assert!(
            request.kind != Kind::Read && request.kind != Kind::Write || request.length <= memory.len() as u64,
            "the slot holds it"
        );
        let entry = match request.kind {
            Kind::Read => opcode::Read::new(FILE, memory.as_mut_ptr(), length).offset(request.offset).build(),
            Kind::Write => {
                opcode::Write::new(FILE, memory.as_ptr(), length).offset(request.offset).rw_flags(durable).build()
            }
            Kind::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Kind::Zero => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(FILE, request.length).offset(request.offset).mode(mode).build()
            }
            Kind::Trim => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(FILE, request.length).offset(request.offset).mode(mode).build()
            }
        };
        entry.user_data(request.slot as u64)
    }

    /// Enters the kernel: submits, and waits until `deadline` for one completion when there is one to wait for.
    fn enter(&mut self, deadline: Option<Instant>) -> Result<(), Lost> {
        let result = match deadline {
            None => self.ring.submit(),
            Some(deadline) => {
                let left = nanoseconds(deadline.saturating_duration_since(Instant::now()));
                let timeout = types::Timespec::new().sec(left / 1_000_000_000).nsec(subsecond(left));
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&timeout))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) =>
            {
                Ok(())
            }
            Err(error) => Err(Lost(format!("io_uring_enter failed: {error}"))),
        }
    }

    fn collect(&mut self, done: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let slot = usize::try_from(entry.user_data()).expect("64-bit platforms only");
            assert!(slot < self.slots, "the kernel answers what was asked");
            let expected = self.lengths[slot];
            let errno = match entry.result() {
                result if result < 0 => -result,
                // A short transfer on a range inside the target is an error of the medium or a full file system.
                result if u64::try_from(result).is_ok_and(|count| count != expected) => libc::EIO,
                _ => 0,
            };
            self.in_flight -= 1;
            done.push(Completion { slot, errno });
        }
    }
}

impl Engine for FileEngine {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.buffers.slot_mut(slot)
    }

    fn submit(&mut self, request: Request) {
        self.lengths[request.slot] = if matches!(request.kind, Kind::Read | Kind::Write) { request.length } else { 0 };
        let entry = self.entry(&request);
        // SAFETY: the entry's memory is the slot's, which lives until the request completes (`Drop` leaks it otherwise), and which
        // nobody touches until then (invariant 1 of `Engine`). The registered file lives as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has an entry for every slot");
        self.in_flight += 1;
    }

    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> Result<(), Lost> {
        let before = done.len();
        self.collect(done);
        match wait {
            Wait::Until(deadline) if done.len() == before => self.enter(Some(deadline))?,
            _ => self.enter(None)?,
        }
        self.collect(done);
        Ok(())
    }

    fn abandon(&mut self) {}

    fn recover(&mut self) -> Result<usize, Lost> {
        Err(Lost(format!("a file or device is not opened again ({:?})", self.file)))
    }
}

impl Drop for FileEngine {
    fn drop(&mut self) {
        if self.in_flight > 0 {
            // A hung device may still write into the slots: their memory must never be used for anything else.
            std::mem::forget(std::mem::replace(&mut self.buffers, Buffers::new(0, 0)));
        } else {
            // The kernel takes a ring down some time after its owner; until then its file, and the claim on a device, would stay.
            // A failure only means that the claim ends later.
            let _ = self.ring.submitter().unregister_files();
        }
    }
}

fn subsecond(nanoseconds: u64) -> u32 {
    u32::try_from(nanoseconds % 1_000_000_000).expect("below a second")
}

/// A ring for one thread; older kernels get one without the hints.
fn new_ring(entries: u32) -> std::io::Result<IoUring> {
    IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(entries).or_else(|_| IoUring::new(entries))
}

fn open_file(path: &Path, options: FileOptions) -> std::io::Result<File> {
    let mut flags = if options.buffered { 0 } else { libc::O_DIRECT };
    let device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    if device && options.writes {
        // Refuses a device that is mounted or otherwise claimed.
        flags |= libc::O_EXCL;
    }
    let create = options.size_bytes.is_some() && options.writes && !path.starts_with("/dev");
    let file = OpenOptions::new()
        .read(true)
        .write(options.writes)
        .create(create)
        .truncate(false)
        .custom_flags(flags)
        .open(path)?;
    if let Some(size) = options.size_bytes.filter(|_| create && !device)
        && file.metadata()?.len() < size
    {
        file.set_len(size)?;
    }
    Ok(file)
}

/// The smallest block that O_DIRECT takes here, found by reading.
fn direct_block(file: &mut File) -> std::io::Result<u64> {
    let mut buffers = Buffers::new(1, 4096);
    let mut last = std::io::Error::from_raw_os_error(libc::EINVAL);
    for block in DIRECT_BLOCK_CANDIDATES {
        file.seek(SeekFrom::Start(0))?;
        // A file that is shorter answers with fewer bytes, which says as much.
        let read = file.read(&mut buffers.slot_mut(0)[..index(block)]);
        match read {
            Ok(_) => return Ok(block),
            Err(error) => last = error,
        }
    }
    Err(last)
}
