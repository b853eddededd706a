//! Log memory in a file or on a block device.
//!
//! Stores are copied to a staging buffer, a ring of its own; a persist is one synchronous write (`RWF_DSYNC`) of everything stored
//! since the last one: group commit. Where the region of the file was written through once, the write changes no metadata.
//!
//! On a device with a volatile cache and without FUA the kernel would end a synchronous write to a file in a thread that is bound to the
//! processor of the disk's interrupt; any program that keeps that processor busy, related to us or not, makes each write take a
//! time slice (4 ms instead of 60 us were measured on Linux 6.18). There a persist is two operations, a write and, when it has
//! ended, a flush (`fdatasync`): its thread goes wherever there is room, for 10 % more time on a quiet machine.
//!
//! ```text
//!   region   ....|=== persist 7 ===|=== persist 8 ===|-- stored --|......
//!   staging        ^ released up to here              ^ begins the next persist
//! ```
//!
//! # Invariants
//!
//! 1. Bytes of the staging buffer from a store until its persist has been reported belong to that persist. `head - tail` never
//!    exceeds the buffer.
//! 2. Persists are written at the same time and reported in the order in which they were queued.
//! 3. After a persist has failed nothing is written or read any more; everything later is reported as failed.
//!
//! # Failure cases
//!
//! - A write that ends early goes on where it stopped, in whole units. The flush begins when all of it is written, and the persist is
//!   reported when that has ended.
//! - An error, or a write without progress, fails the region (invariant 3): which of the later writes arrived is not known, so
//!   none is reported as durable.

// Operations name the staging buffer by address.
#![expect(unsafe_code, reason = "submission entries carry raw addresses")]

use crate::{
    Access, Cache, FileError, Ring, StorageFile,
    buffer::PageBuffer,
    ring::{Event, Port, RegisteredFile},
};
use io_uring::{opcode, types::FsyncFlags};
use std::{collections::VecDeque, ops::Range, path::Path};
use twinlog_device::{DeviceError, DeviceErrorKind, LogCompletion, LogInfo, LogMemory, Token};
use twinlog_file::error_kind;

/// Persists and reads in flight together, by the contract of [`LogMemory::persist`].
const OPERATIONS_MAX: usize = 8;

/// Bytes of the staging buffer: several changes of the largest size (1 MiB) can wait.
const STAGING_BYTES: usize = 8 << 20;

/// Longest read, by the contract of [`LogMemory::read`].
const READ_BYTES_MAX: usize = 1 << 20;

/// Interruptions of one operation that are taken up again before it is an error.
const RESUMES_MAX: u32 = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// A read or a write.
    InFlight,
    /// The flush after a write.
    Flushing,
    Ended(Result<(), DeviceErrorKind>),
}

/// One operation in flight.
struct Slot {
    state: State,
    token: Token,
    /// The buffer of a read; none for a persist.
    target: Option<PageBuffer>,
    /// First byte in the region.
    offset_bytes: u64,
    /// What a persist writes, in the stream of staged bytes.
    staged: Range<u64>,
    length_bytes: usize,
    done_bytes: usize,
    resumes: u32,
    /// The two parts of a write that wraps around the end of the staging buffer.
    vector: [libc::iovec; 2],
}

/// One lane in a region of a file.
pub struct FileLog {
    // First, so that it is dropped, and the kernel has finished, before the buffers go.
    port: Port,
    registered: RegisteredFile,
    file: StorageFile,
    /// First byte of the region in the file.
    region_bytes: u64,
    info: LogInfo,
    staging: PageBuffer,
    /// Its place in the table of registered buffers.
    staging_index: Option<u16>,
    /// Positions in the stream of staged bytes: what is reported, what persists cover, what is stored.
    tail: u64,
    covered: u64,
    head: u64,
    /// Where in the region the next contiguous store goes; `None` right after a persist.
    next_bytes: Option<u64>,
    slots: Vec<Slot>,
    /// Slots of persists, in their order.
    persists: VecDeque<u32>,
    failed: Option<DeviceErrorKind>,
    events: Vec<Event>,
    finished: Vec<LogCompletion>,
}

impl FileLog {
    /// Opens the file and the region in it. For several lanes in one file, open a [`StorageFile`] once and use [`Self::new`].
    ///
    /// # Errors
    /// When the file cannot be opened or locked, or the region does not lie in it.
    pub fn open(ring: &Ring, path: &Path, offset_bytes: u64, length_bytes: u64) -> Result<Self, FileError> {
        let file = StorageFile::open(path, Access::Exclusive, Cache::Bypass)?;
        Self::new(ring, &file, offset_bytes, length_bytes)
    }

    /// A region of an open file; offset and length are multiples of 4096.
    ///
    /// # Errors
    /// When the region does not lie in the file.
    pub fn new(ring: &Ring, file: &StorageFile, offset_bytes: u64, length_bytes: u64) -> Result<Self, FileError> {
        file.check_region(offset_bytes, length_bytes)?;
        let staging_bytes = usize::try_from(length_bytes).unwrap_or(usize::MAX).min(STAGING_BYTES);
        let info = LogInfo {
            name: file.name(),
            backend: "file",
            size_bytes: length_bytes,
            unit_bytes: file.sector_bytes(),
            atomic_bytes: file.sector_bytes(),
            durability: file.durability(),
            pending_bytes_max: staging_bytes as u64,
        };
        let staging = PageBuffer::new(staging_bytes);
        let staging_index = ring.core().register_buffer(staging.address(&(0..staging_bytes)), staging_bytes);
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let slot = || Slot {
            state: State::Free,
            token: Token(0),
            target: None,
            offset_bytes: 0,
            staged: 0..0,
            length_bytes: 0,
            done_bytes: 0,
            resumes: 0,
            vector: [empty; 2],
        };
        Ok(Self {
            port: Port::open(ring),
            registered: RegisteredFile::new(ring, file),
            file: file.clone(),
            region_bytes: offset_bytes,
            info,
            staging,
            staging_index,
            tail: 0,
            covered: 0,
            head: 0,
            next_bytes: None,
            slots: (0..OPERATIONS_MAX).map(|_| slot()).collect(),
            persists: VecDeque::with_capacity(OPERATIONS_MAX),
            failed: None,
            events: Vec::new(),
            finished: Vec::new(),
        })
    }

    /// The open file, for another lane in it.
    #[must_use]
    pub fn file(&self) -> &StorageFile {
        &self.file
    }

    /// Where in the staging buffer a position of the stream lies.
    fn place(&self, position: u64) -> usize {
        usize::try_from(position % self.staging.len() as u64).expect("below the buffer's length")
    }

    /// A free slot for an operation on `length_bytes` at `offset_bytes`.
    fn start(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) -> u32 {
        let free =
            self.slots.iter().position(|slot| slot.state == State::Free).expect("the caller asks for room first");
        let slot = &mut self.slots[free];
        (slot.token, slot.offset_bytes, slot.length_bytes) = (token, offset_bytes, length_bytes);
        (slot.done_bytes, slot.resumes) = (0, 0);
        u32::try_from(free).expect("there are eight slots")
    }

    /// Hands the rest of a slot's operation to the ring, or ends it when there is nothing to do.
    fn submit(&mut self, index: u32) {
        let target = self.registered.target();
        let position = self.slots[index as usize].staged.start;
        let capacity = self.staging.len();
        let place = self.place(position + self.slots[index as usize].done_bytes as u64);
        let slot = &mut self.slots[index as usize];
        slot.state = State::InFlight;
        let left = slot.length_bytes - slot.done_bytes;
        let offset = self.region_bytes + slot.offset_bytes + slot.done_bytes as u64;
        let length = u32::try_from(left).expect("an operation is at most the staging buffer");
        let entry = if let Some(buffer) = &slot.target {
            let address = buffer.address(&(slot.done_bytes..slot.length_bytes));
            opcode::Read::new(target.fd(), address, length).offset(offset).build()
        } else if place + left > capacity {
            let part = |range: Range<usize>| libc::iovec {
                iov_len: range.len(),
                iov_base: self.staging.address(&range).cast(),
            };
            slot.vector = [part(place..capacity), part(0..place + left - capacity)];
            let vector = slot.vector.as_ptr();
            opcode::Writev::new(target.fd(), vector, 2).offset(offset).rw_flags(self.write_flags()).build()
        } else {
            let address = self.staging.address(&(place..place + left));
            match self.staging_index {
                Some(buffer) => opcode::WriteFixed::new(target.fd(), address, length, buffer)
                    .offset(offset)
                    .rw_flags(self.write_flags())
                    .build(),
                None => {
                    opcode::Write::new(target.fd(), address, length).offset(offset).rw_flags(self.write_flags()).build()
                }
            }
        };
        // SAFETY: the buffers belong to the operation until it is reported (invariant 1; a read's is in its slot), the vector is on
        // the heap with its slot, and the port is dropped first.
        unsafe { self.port.push(index, target.seal(entry)) };
    }

    /// Whether a persist needs a flush after its write.
    fn flushes(&self) -> bool {
        !self.file.writes_through()
    }

    fn write_flags(&self) -> i32 {
        if self.flushes() { 0 } else { libc::RWF_DSYNC }
    }

    fn submit_flush(&mut self, index: u32) {
        self.slots[index as usize].state = State::Flushing;
        let target = self.registered.target();
        let entry = opcode::Fsync::new(target.fd()).flags(FsyncFlags::DATASYNC).build();
        self.port.begin_assisted();
        // SAFETY: a flush names no memory.
        unsafe { self.port.push(index, target.seal(entry)) };
    }

    fn end(&mut self, index: u32, result: Result<(), DeviceErrorKind>) {
        self.slots[index as usize].state = State::Ended(result);
        self.port.ring().set_ready();
    }

    fn handle(&mut self, event: Event) {
        let index = event.index as usize;
        let flushed = self.slots[index].state == State::Flushing;
        if flushed {
            self.port.end_assisted();
        }
        match (u32::try_from(event.result), -event.result) {
            (Ok(_), _) if flushed => self.slots[index].state = State::Ended(Ok(())),
            (Ok(count), _) => self.advance(event.index, count as usize),
            (Err(_), number @ (libc::EAGAIN | libc::EINTR)) => self.resume(event.index, number),
            (Err(_), number) => self.slots[index].state = State::Ended(Err(error_kind(number))),
        }
    }

    /// `count` bytes more have been read or written.
    fn advance(&mut self, index: u32, count: usize) {
        let unit = self.info.unit_bytes as usize;
        let flushes = self.flushes();
        let slot = &mut self.slots[index as usize];
        slot.done_bytes += count;
        if slot.done_bytes >= slot.length_bytes {
            if flushes && slot.target.is_none() {
                self.submit_flush(index);
            } else {
                slot.state = State::Ended(Ok(()));
            }
        } else if count == 0 {
            slot.state = State::Ended(Err(DeviceErrorKind::Beyond));
        } else {
            slot.done_bytes -= slot.done_bytes % unit;
            self.resume(index, libc::EIO);
        }
    }

    /// Takes an interrupted operation up again.
    fn resume(&mut self, index: u32, error_number: i32) {
        let slot = &mut self.slots[index as usize];
        if slot.resumes >= RESUMES_MAX {
            slot.state = State::Ended(Err(error_kind(error_number)));
            return;
        }
        slot.resumes += 1;
        if slot.state == State::Flushing { self.submit_flush(index) } else { self.submit(index) }
    }

    fn error(&self, operation: &'static str, index: usize, kind: DeviceErrorKind) -> DeviceError {
        let slot = &self.slots[index];
        let first = slot.offset_bytes / 4096;
        let count = (slot.offset_bytes + slot.length_bytes as u64).div_ceil(4096) - first;
        DeviceError { device: self.info.name.clone(), operation, first, count, kind }
    }

    /// Reports the persists that have ended, up to the first that has not.
    fn report_persists(&mut self) {
        while let Some(&index) = self.persists.front() {
            let index = index as usize;
            let State::Ended(result) = self.slots[index].state else { return };
            if let Err(kind) = result {
                self.failed.get_or_insert(kind);
            }
            let result = match self.failed {
                None => Ok(Vec::new()),
                Some(kind) => Err(self.error("write", index, kind)),
            };
            self.tail = self.slots[index].staged.end;
            self.slots[index].state = State::Free;
            self.persists.pop_front();
            self.finished.push(LogCompletion { token: self.slots[index].token, result });
        }
        if self.tail == self.head {
            // Begins at the front again: the same few pages stay in the processor's cache.
            (self.tail, self.covered, self.head) = (0, 0, 0);
        }
    }

    fn report_reads(&mut self) {
        for index in 0..self.slots.len() {
            let State::Ended(result) = self.slots[index].state else { continue };
            let Some(buffer) = self.slots[index].target.take() else { continue };
            let result = match result {
                // SAFETY: the read has ended, and the buffer is ours alone.
                Ok(()) => Ok(unsafe { buffer.bytes(0..self.slots[index].length_bytes) }.to_vec()),
                Err(kind) => Err(self.error("read", index, kind)),
            };
            self.slots[index].state = State::Free;
            self.finished.push(LogCompletion { token: self.slots[index].token, result });
        }
    }
}

impl LogMemory for FileLog {
    fn info(&self) -> &LogInfo {
        &self.info
    }

    fn room_bytes(&self) -> u64 {
        self.info.pending_bytes_max - (self.head - self.tail)
    }

    fn store(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let length = bytes.len() as u64;
        let unit = u64::from(self.info.unit_bytes);
        assert!(offset_bytes.is_multiple_of(unit) && length.is_multiple_of(unit), "stores have whole units");
        assert!(length <= self.room_bytes(), "the caller asks for room first");
        let end = offset_bytes.checked_add(length).filter(|&end| end <= self.info.size_bytes);
        let end = end.expect("a store lies in the region");
        assert!(self.next_bytes.is_none_or(|next| next == offset_bytes), "stores between persists are contiguous");
        self.next_bytes = Some(end);
        let place = self.place(self.head);
        let (front, back) = bytes.split_at(bytes.len().min(self.staging.len() - place));
        // SAFETY: these bytes are between head and tail plus capacity, which no persist covers (invariant 1).
        unsafe { self.staging.write(place, front) };
        // SAFETY: as above, from the front of the buffer.
        unsafe { self.staging.write(0, back) };
        self.head += length;
    }

    fn persist(&mut self, token: Token) {
        let staged = self.covered..self.head;
        let length = usize::try_from(staged.end - staged.start).expect("at most the staging buffer");
        let offset_bytes = self.next_bytes.take().unwrap_or(0) - length as u64;
        self.covered = self.head;
        let index = self.start(token, offset_bytes, length);
        self.slots[index as usize].staged = staged;
        self.persists.push_back(index);
        match self.failed {
            Some(kind) => self.end(index, Err(kind)),
            None if length == 0 => self.end(index, Ok(())),
            None => self.submit(index),
        }
    }

    fn room(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == State::Free).count()
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        let end = offset_bytes.checked_add(length_bytes as u64).filter(|&end| end <= self.info.size_bytes);
        assert!(
            end.is_some() && (1..=READ_BYTES_MAX).contains(&length_bytes),
            "a read lies in the region, at most 1 MiB"
        );
        assert!(offset_bytes.is_multiple_of(4096) && length_bytes.is_multiple_of(4096), "reads have whole blocks");
        let index = self.start(token, offset_bytes, length_bytes);
        self.slots[index as usize].target = Some(PageBuffer::new(length_bytes));
        match self.failed {
            Some(kind) => self.end(index, Err(kind)),
            None => self.submit(index),
        }
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        let mut events = std::mem::take(&mut self.events);
        self.port.take_events(&mut events);
        for event in events.drain(..) {
            self.handle(event);
        }
        self.events = events;
        if !self.persists.is_empty() {
            self.report_persists();
        }
        self.report_reads();
        completions.append(&mut self.finished);
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        self.port.drain();
        if let Some(index) = self.staging_index {
            self.port.ring().core().unregister_buffer(index);
        }
    }
}
