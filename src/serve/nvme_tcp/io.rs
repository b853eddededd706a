//! From a command of an I/O queue to what is asked of the volume, or to the status that answers it.
//!
//! Everything that can be refused is refused here, from the entry alone and before anything is reserved.

use super::{
    target::Target,
    wire::{
        command::{Command, Fuse, RANGE_BYTES, Status, feature, opcode, ranges},
        reservation,
    },
};
use crate::{
    base::{
        ObjectId,
        limits::{BLOCK_BYTES, CHANGE_BYTES_MAX},
    },
    fs::reservation::ReservationCommand,
    node::request::{VolumeError, VolumeOperation, VolumeService},
};
use std::{collections::VecDeque, ops::Range};

/// MDTS: most data of one command, as a power of two of pages of 4 KiB. What of it lies in 256 blocks of the pool is one change of the log, so that the
/// write is atomic across a crash; the most data can lie in one more where blocks have 512 bytes.
pub(super) const TRANSFER_PAGES_LOG: u8 = 8;
/// The same in bytes.
pub(super) const TRANSFER_BYTES_MAX: u64 = BLOCK_BYTES << TRANSFER_PAGES_LOG;
const _: () = assert!(TRANSFER_BYTES_MAX == CHANGE_BYTES_MAX);

/// ONCS: compare, dataset management, write zeroes, reservations, verify (base 2.0, figure 275).
pub(super) const OPTIONAL_COMMANDS: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 7;

/// The commands there are, and whether they change blocks.
pub(super) const COMMANDS: [(u8, bool); 11] = [
    (opcode::FLUSH, false),
    (opcode::WRITE, true),
    (opcode::READ, false),
    (opcode::COMPARE, false),
    (opcode::WRITE_ZEROES, true),
    (opcode::DATASET_MANAGEMENT, true),
    (opcode::VERIFY, false),
    (opcode::RESERVATION_REGISTER, false),
    (opcode::RESERVATION_REPORT, false),
    (opcode::RESERVATION_ACQUIRE, false),
    (opcode::RESERVATION_RELEASE, false),
];

/// FUSES: compare and write (base 2.0, figure 275).
pub(super) const FUSED_OPERATIONS: u16 = 1 << 0;
/// Blocks of a compare and write, at most: what ACWU says, which counts from 0.
const FUSED_BLOCKS_MAX: u64 = 1;

/// Metadata by an SGL segment (bit 7).
const UNSUPPORTED_FLAGS: u8 = 0b1000_0000;
/// Dword 12 of reads and writes.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Dword 12 of write zeroes.
const DEALLOCATE: u32 = 1 << 25;
/// Dword 11 of dataset management.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;
/// Data of a dataset management: 256 ranges.
pub(super) const RANGES_BYTES_MAX: u32 = 4096;
const _: () = assert!(RANGES_BYTES_MAX as usize == 256 * RANGE_BYTES);

/// In what the health log page counts data (base 2.0, section 5.16.1.3); the smallest blocks.
const SECTOR_BYTES: u64 = 512;

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Read,
    Write {
        durable: bool,
    },
    Compare,
    Flush,
    WriteZeroes {
        durable: bool,
        may_free: bool,
    },
    /// Reads what is left of the range, in parts, and drops it.
    Verify,
    /// Discards these ranges, one after the other. `None`: they have not come yet, and there are so many.
    Deallocate {
        count: usize,
        ranges: Option<VecDeque<Range<u64>>>,
    },
    /// Dataset management without an attribute that means something here.
    Advice,
    /// Register, acquire, release. `None`: the keys have not come yet.
    Reserve(Option<ReservationCommand>),
    /// Returns registrants and reservation in so many bytes.
    Report(u32),
    /// Returns whether they survive the loss of power.
    Persistence,
}

/// A valid command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) volume: ObjectId,
    /// Bytes of the volume.
    pub(super) range: Range<u64>,
    /// Of the whole range, whatever is left of it.
    pub(super) sectors: u64,
    pub(super) work: Work,
}

/// Which way a command's data goes, and how much of it there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    None,
    ToHost(u32),
    /// At least so many bytes, at most so many.
    FromHost(u32, u32),
}

impl Request {
    /// Decides what `command` asks for.
    pub(super) fn new<S: VolumeService>(target: &Target, service: &S, command: &Command) -> Result<Self, Status> {
        if command.flags & UNSUPPORTED_FLAGS != 0 || !is_fusable(command) {
            return Err(Status::INVALID_FIELD);
        }
        if !COMMANDS.iter().any(|(opcode, _)| *opcode == command.opcode) {
            return Err(Status::INVALID_OPCODE);
        }
        let namespace = target.find(service, command.namespace.get()).ok_or(Status::INVALID_NAMESPACE)?;
        let options = command.word(12);
        let durable = options & FORCE_UNIT_ACCESS != 0;
        let work = match command.opcode {
            opcode::FLUSH => Work::Flush,
            opcode::DATASET_MANAGEMENT if command.word(11) & ATTRIBUTE_DEALLOCATE == 0 => Work::Advice,
            opcode::DATASET_MANAGEMENT => {
                let [count, ..] = command.word(10).to_le_bytes();
                Work::Deallocate { count: usize::from(count) + 1, ranges: None }
            }
            opcode::READ => Work::Read,
            opcode::WRITE => Work::Write { durable },
            opcode::COMPARE => Work::Compare,
            opcode::WRITE_ZEROES => Work::WriteZeroes { durable, may_free: options & DEALLOCATE != 0 },
            opcode::RESERVATION_REPORT => {
                let bytes = reservation::report_bytes(command)?;
                let bytes = u32::try_from(bytes).ok().filter(|&bytes| u64::from(bytes) <= TRANSFER_BYTES_MAX);
                Work::Report(bytes.ok_or(Status::INVALID_FIELD)?)
            }
            opcode if reservation::data_bytes(opcode).is_some() => {
                reservation::check(command)?;
                Work::Reserve(None)
            }
            _ => Work::Verify,
        };
        let range = match work {
            Work::Read | Work::Write { .. } | Work::Compare | Work::WriteZeroes { .. } | Work::Verify => {
                let (first, count) = command.blocks();
                namespace.bytes_of(first, count)?
            }
            _ => 0..0,
        };
        let is_transfer = matches!(work, Work::Read | Work::Write { .. } | Work::Compare);
        if is_transfer && range.end - range.start > TRANSFER_BYTES_MAX {
            return Err(Status::INVALID_FIELD);
        }
        if command.fuse() != Fuse::Alone && command.blocks().1 > FUSED_BLOCKS_MAX {
            return Err(Status::ATOMIC_UNIT_EXCEEDED);
        }
        Ok(Self { volume: namespace.volume, sectors: (range.end - range.start) / SECTOR_BYTES, range, work })
    }

    /// What a command of an admin queue asks of a volume's reservation; `None`: nothing.
    pub(super) fn of_feature<S: VolumeService>(
        target: &Target,
        service: &S,
        command: &Command,
    ) -> Option<Result<Self, Status>> {
        let (word, value) = (command.word(10), command.word(11));
        let [id, select, _, save] = word.to_le_bytes();
        let work = match command.opcode {
            _ if id != feature::RESERVATION_PERSISTENCE || command.fabrics().is_some() => return None,
            opcode::GET_FEATURES if select & 0b111 == 0 => Work::Persistence,
            opcode::SET_FEATURES if save >> 7 == 0 => {
                Work::Reserve(Some(ReservationCommand::SetPersistence(value & 1 != 0)))
            }
            _ => return None,
        };
        let namespace = target.find(service, command.namespace.get()).ok_or(Status::INVALID_NAMESPACE);
        Some(namespace.map(|namespace| Self { volume: namespace.volume, range: 0..0, sectors: 0, work }))
    }

    /// The data of the command.
    pub(super) fn transfer(&self, command: &Command) -> Transfer {
        let length = u32::try_from(self.range.end - self.range.start).unwrap_or(u32::MAX);
        match &self.work {
            Work::Read => Transfer::ToHost(length),
            Work::Write { .. } | Work::Compare => Transfer::FromHost(length, length),
            Work::Deallocate { count, .. } => {
                let least = u32::try_from(count * RANGE_BYTES).expect("at most 256 ranges");
                Transfer::FromHost(least, RANGES_BYTES_MAX)
            }
            Work::Advice => Transfer::FromHost(1, RANGES_BYTES_MAX),
            Work::Report(bytes) => Transfer::ToHost(*bytes),
            Work::Reserve(None) => {
                let bytes = reservation::data_bytes(command.opcode).expect("planned as one of those");
                Transfer::FromHost(bytes, bytes)
            }
            Work::Flush | Work::WriteZeroes { .. } | Work::Verify | Work::Reserve(Some(_)) | Work::Persistence => {
                Transfer::None
            }
        }
    }

    /// Takes what the data of `command` says beyond its entry: ranges, or keys.
    pub(super) fn take_data<S: VolumeService>(
        &mut self,
        (target, service): (&Target, &S),
        command: &Command,
        data: &[u8],
    ) -> Result<(), Status> {
        if let Work::Reserve(asked) = &mut self.work {
            *asked = Some(reservation::parse(command, data)?);
            return Ok(());
        }
        let Work::Deallocate { count, ranges: place } = &mut self.work else { return Ok(()) };
        let namespace = target.find(service, command.namespace.get()).ok_or(Status::INVALID_NAMESPACE)?;
        let wanted = ranges(data).take(*count).filter(|(_, count)| *count > 0);
        let found: Result<VecDeque<_>, Status> =
            wanted.map(|(first, count)| namespace.bytes_of(first, count)).collect();
        *place = Some(found?);
        Ok(())
    }

    /// The next thing to ask of the volume; what has a payload is made by the caller. `None`: nothing is left.
    pub(super) fn next(&mut self) -> Option<VolumeOperation> {
        let range = self.range.clone();
        match &mut self.work {
            Work::Read | Work::Compare => Some(VolumeOperation::Read(range)),
            Work::Write { .. } => unreachable!("its payload is the caller's"),
            Work::Flush => Some(VolumeOperation::Flush),
            Work::WriteZeroes { durable, may_free } => {
                Some(VolumeOperation::WriteZeroes { range, may_free: *may_free, durable: *durable })
            }
            Work::Verify => {
                let end = range.end.min(range.start + TRANSFER_BYTES_MAX);
                self.range.start = end;
                (range.start < end).then_some(VolumeOperation::Read(range.start..end))
            }
            Work::Deallocate { ranges, .. } => {
                let range = ranges.as_mut()?.pop_front()?;
                Some(VolumeOperation::Discard { range, durable: false })
            }
            Work::Advice | Work::Reserve(None) => None,
            Work::Reserve(Some(command)) => Some(VolumeOperation::Reserve(*command)),
            Work::Report(_) | Work::Persistence => Some(VolumeOperation::Reservation),
        }
    }

    /// Whether it leaves a record.
    pub(super) fn is_change(&self) -> bool {
        match self.work {
            Work::Write { .. } | Work::WriteZeroes { .. } | Work::Deallocate { .. } | Work::Reserve(_) => true,
            Work::Read
            | Work::Compare
            | Work::Flush
            | Work::Verify
            | Work::Advice
            | Work::Report(_)
            | Work::Persistence => false,
        }
    }

    /// Whether the volume is asked several things, one after the other.
    pub(super) fn has_steps(&self) -> bool {
        matches!(self.work, Work::Verify | Work::Deallocate { .. })
    }
}

/// Whether the command may be the part of a fused operation that it says it is: a compare and a write are fused, and nothing else.
fn is_fusable(command: &Command) -> bool {
    match command.fuse() {
        Fuse::Alone => true,
        Fuse::First => command.opcode == opcode::COMPARE,
        Fuse::Second => command.opcode == opcode::WRITE,
        Fuse::Reserved => false,
    }
}

/// The status for the engine's error.
pub(super) fn status_of(error: &VolumeError) -> Status {
    match error {
        VolumeError::NoSuchVolume => Status::INVALID_NAMESPACE,
        VolumeError::OutOfRange => Status::OUT_OF_RANGE,
        VolumeError::NoSpace => Status::CAPACITY_EXCEEDED,
        VolumeError::Unreadable { .. } => Status::UNRECOVERED_READ,
        VolumeError::Stopped(_) => Status::INTERNAL_ERROR,
        VolumeError::Offline(_) => Status::NOT_READY,
        VolumeError::ReservationConflict => Status::RESERVATION_CONFLICT,
        VolumeError::ReservationInvalid => Status::INVALID_FIELD,
        VolumeError::RegistrantsFull => Status::INTERNAL_ERROR,
        VolumeError::Preempted => Status::PREEMPTED,
        VolumeError::Differs => Status::COMPARE_FAILURE,
        // The host reads how its paths stand, and keeps the command until one leads there.
        VolumeError::Unserved(_) => Status::ACCESS_INACCESSIBLE,
        // Another path may lead there; with none, the host asks again.
        VolumeError::Interrupted(_) | VolumeError::Late(_) | VolumeError::ShuttingDown => Status::PATH_ERROR,
    }
}
