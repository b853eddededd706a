//! I/O commands.

use super::device::{Device, Pending};
use crate::spec::{DeallocateRange, PAGE_BYTES, Status, SubmissionEntry, USES_SGL, io_opcode};
use twinlog_device::Prng;
use zerocopy::FromBytes;

/// A read, write or write zeroes.
struct Transfer {
    first: u64,
    count: u64,
    asks_durable: bool,
}

impl Transfer {
    fn new(entry: &SubmissionEntry) -> Self {
        let [low, high, third] = [0, 1, 2].map(|index| entry.arguments[index].get());
        Self {
            first: u64::from(high) << 32 | u64::from(low),
            count: u64::from(third & 0xFFFF) + 1,
            asks_durable: third >> 30 & 1 == 1,
        }
    }
}

impl Device {
    /// Performs a command; `is_under_way`: no reservation keeps it from that.
    pub(super) fn perform_io(&mut self, entry: &SubmissionEntry, is_under_way: bool) -> Status {
        let subsystem = self.subsystem.clone();
        let mut subsystem = subsystem.borrow_mut();
        let has_write_cache = subsystem.has_write_cache;
        let Some(medium) = subsystem.find(entry.namespace.get()) else { return Status::INVALID_NAMESPACE };
        let lba_bytes = medium.lba_bytes();
        let host = self.host();
        let transfer = Transfer::new(entry);
        let is_transfer = matches!(entry.opcode, io_opcode::READ | io_opcode::WRITE | io_opcode::WRITE_ZEROES);
        if is_transfer && !medium.holds(transfer.first, transfer.count) {
            return Status::OUT_OF_RANGE;
        }
        let writes =
            matches!(entry.opcode, io_opcode::WRITE | io_opcode::WRITE_ZEROES | io_opcode::DATASET | io_opcode::FLUSH);
        let is_kept_out = (writes && !medium.reservations.may_write(host))
            || (entry.opcode == io_opcode::READ && !medium.reservations.may_read(host));
        if is_kept_out && !is_under_way {
            return Status::RESERVED;
        }
        let lbas = transfer.first..transfer.first + transfer.count;
        let is_durable = transfer.asks_durable && !self.config.ignores_fua || !has_write_cache;
        match entry.opcode {
            io_opcode::READ => {
                let mut bytes = vec![0; usize::try_from(transfer.count).expect("sixteen bits") * lba_bytes];
                for (lba, part) in lbas.zip(bytes.chunks_exact_mut(lba_bytes)) {
                    medium.read(lba, part);
                }
                bytes.resize(self.told_bytes(entry, &transfer), 0);
                if !self.scatter(entry, &bytes) {
                    return Status(0x04);
                }
            }
            io_opcode::WRITE => {
                let length = self.told_bytes(entry, &transfer);
                let Some(bytes) = self.gather(entry, length) else { return Status(0x04) };
                for (lba, part) in lbas.zip(bytes.chunks_exact(lba_bytes)) {
                    medium.write(lba, part.to_vec(), is_durable);
                }
            }
            io_opcode::WRITE_ZEROES => {
                for lba in lbas {
                    medium.write(lba, vec![0; lba_bytes], is_durable);
                }
            }
            io_opcode::FLUSH => medium.flush(),
            io_opcode::DATASET => {
                let count = usize::from(entry.arguments[0].get().to_le_bytes()[0]) + 1;
                let Some(bytes) = self.gather(entry, count * size_of::<DeallocateRange>()) else { return Status(0x04) };
                let ranges = bytes.chunks_exact(size_of::<DeallocateRange>());
                let ranges = ranges.map(|chunk| DeallocateRange::read_from_bytes(chunk).expect("a chunk is a range"));
                if ranges.clone().map(|range| u64::from(range.count.get())).sum::<u64>() > self.config.discard_lbas_max
                {
                    return Status::TOO_LARGE;
                }
                for range in ranges {
                    let (first, count) = (range.first.get(), u64::from(range.count.get()));
                    if !medium.holds(first, count) {
                        return Status::OUT_OF_RANGE;
                    }
                    medium.deallocate(first, count);
                }
            }
            _ => return self.perform_reservation(entry, &mut medium.reservations),
        }
        self.performed_count += 1;
        Status::SUCCESS
    }

    /// Bytes of a transfer, as the driver was told.
    fn told_bytes(&self, entry: &SubmissionEntry, transfer: &Transfer) -> usize {
        let shift = self.told_shifts.get(&entry.namespace.get()).copied().unwrap_or(9);
        usize::try_from(transfer.count).expect("sixteen bits") << shift.min(12)
    }

    fn perform_reservation(
        &mut self,
        entry: &SubmissionEntry,
        reservations: &mut super::reservations::Reservations,
    ) -> Status {
        let first = entry.arguments[0].get();
        if entry.opcode == io_opcode::RESERVATION_REPORT {
            let mut bytes = reservations.report((usize::try_from(first).expect("small") + 1) * 4);
            let rate = self.mischief.lie;
            if self.fails(rate) {
                super::mischief::lie(&mut self.prng, &mut bytes);
            }
            return if self.scatter(entry, &bytes) { Status::SUCCESS } else { Status(0x04) };
        }
        let length = if entry.opcode == io_opcode::RESERVATION_RELEASE { 8 } else { 16 };
        let Some(bytes) = self.gather(entry, length) else { return Status(0x04) };
        let key = |place: usize| {
            bytes.get(place..place + 8).map_or(0, |part| u64::from_le_bytes(part.try_into().expect("eight bytes")))
        };
        let keys = [key(0), key(8)];
        match entry.opcode {
            io_opcode::RESERVATION_REGISTER => reservations.register((self.host(), self.controller_id), first, keys),
            io_opcode::RESERVATION_ACQUIRE => reservations.acquire(self.host(), first, keys),
            io_opcode::RESERVATION_RELEASE => reservations.release(self.host(), first, keys[0]),
            _ => Status::INVALID_OPCODE,
        }
    }

    /// Pieces of memory that a command names for `length` bytes: address and length of each.
    fn pieces(&mut self, entry: &SubmissionEntry, length: usize) -> Option<Vec<(u64, usize)>> {
        if entry.flags != USES_SGL {
            return self.pages(entry, length);
        }
        let pieces = self.descriptors(entry)?;
        if pieces.iter().map(|(_, bytes)| bytes).sum::<usize>() != length {
            self.complain("an SGL of another length than the data");
            return None;
        }
        Some(pieces)
    }

    /// What an SGL names (base 4.1.2).
    fn descriptors(&mut self, entry: &SubmissionEntry) -> Option<Vec<(u64, usize)>> {
        let is_transfer = matches!(entry.opcode, io_opcode::READ | io_opcode::WRITE);
        if !self.config.has_sgls || !is_transfer {
            self.complain("an SGL where none was offered");
            return None;
        }
        self.sgl_count += 1;
        let [address, rest] = entry.data.map(|word| word.get());
        let length = usize::try_from(rest & u64::from(u32::MAX)).expect("32 bits");
        // Type and subtype; zeroes below them.
        match rest >> 32 {
            0 => return Some(by_page(address, length)),
            0x3000_0000 if length > 0 && length.is_multiple_of(16) => {}
            _ => {
                self.complain("an SGL that is neither a data block nor a last segment");
                return None;
            }
        }
        let bytes = self.bus.borrow_mut().read(address, length)?;
        let mut pieces = Vec::new();
        for descriptor in bytes.chunks_exact(16) {
            let (address, rest) = descriptor.split_at(8);
            let (length, kind) = rest.split_at(4);
            if kind != [0; 4] {
                self.complain("a descriptor in the last segment that is no data block");
                return None;
            }
            let address = u64::from_le_bytes(address.try_into().expect("eight bytes"));
            let length = u32::from_le_bytes(length.try_into().expect("four bytes"));
            pieces.extend(by_page(address, usize::try_from(length).expect("32 bits")));
        }
        Some(pieces)
    }

    /// Pieces of memory that PRPs name (base 4.1.1).
    fn pages(&mut self, entry: &SubmissionEntry, length: usize) -> Option<Vec<(u64, usize)>> {
        let page = PAGE_BYTES as u64;
        let [first, second] = entry.data.map(|address| address.get());
        let front = (page - first % page).min(length as u64);
        let mut pieces = vec![(first, usize::try_from(front).expect("at most a page"))];
        let mut left = length - pieces[0].1;
        if left == 0 {
            return Some(pieces);
        }
        if left <= PAGE_BYTES {
            if !second.is_multiple_of(page) {
                self.complain("PRP 2 is not a page");
                return None;
            }
            pieces.push((second, left));
            return Some(pieces);
        }
        let mut place = second;
        while left > 0 {
            let bytes = self.bus.borrow_mut().read(place, 8)?;
            let address = u64::from_le_bytes(bytes.try_into().expect("eight bytes were read"));
            if !address.is_multiple_of(page) {
                self.complain("an entry of a PRP list is not a page");
                return None;
            }
            // The last entry of a page names the next page of the list, unless it is the last of all.
            if place % page == page - 8 && left > PAGE_BYTES {
                place = address;
                continue;
            }
            let part = left.min(PAGE_BYTES);
            pieces.push((address, part));
            left -= part;
            place += 8;
        }
        Some(pieces)
    }

    fn is_too_large(&self, length: usize) -> bool {
        let shift = self.config.transfer_shift_max;
        shift != 0 && length > PAGE_BYTES << shift
    }

    fn scatter(&mut self, entry: &SubmissionEntry, bytes: &[u8]) -> bool {
        if self.is_too_large(bytes.len()) {
            self.complain("a transfer that is too large");
            return false;
        }
        let Some(pieces) = self.pieces(entry, bytes.len()) else { return false };
        let mut rest = bytes;
        for (address, length) in pieces {
            let (part, after) = rest.split_at(length);
            if !self.bus.borrow_mut().write(address, part) {
                return false;
            }
            rest = after;
        }
        true
    }

    pub(super) fn gather(&mut self, entry: &SubmissionEntry, length: usize) -> Option<Vec<u8>> {
        if self.is_too_large(length) {
            self.complain("a transfer that is too large");
            return None;
        }
        let mut bytes = Vec::with_capacity(length);
        for (address, length) in self.pieces(entry, length)? {
            bytes.extend(self.bus.borrow_mut().read(address, length)?);
        }
        Some(bytes)
    }

    /// A write that was under way at a power cut: each logical block lands or not.
    pub(super) fn land(&mut self, pending: &Pending, prng: &mut Prng) {
        let entry = &pending.entry;
        if entry.opcode != io_opcode::WRITE {
            return;
        }
        let subsystem = self.subsystem.clone();
        let mut subsystem = subsystem.borrow_mut();
        let Some(medium) = subsystem.find(entry.namespace.get()) else { return };
        let transfer = Transfer::new(entry);
        let lba_bytes = medium.lba_bytes();
        let length = usize::try_from(transfer.count).expect("sixteen bits") * lba_bytes;
        let is_kept_out = !pending.is_under_way && !medium.reservations.may_write(self.host());
        if is_kept_out || !medium.holds(transfer.first, transfer.count) {
            return;
        }
        let Some(bytes) = self.gather(entry, length) else { return };
        for (lba, part) in (transfer.first..).zip(bytes.chunks_exact(lba_bytes)) {
            if prng.chance(1, 2) {
                medium.write(lba, part.to_vec(), true);
            }
        }
    }
}

/// A piece of memory, in parts that lie in one page.
fn by_page(address: u64, length: usize) -> Vec<(u64, usize)> {
    let (mut place, mut left, mut parts) = (address, length, Vec::new());
    while left > 0 {
        let within = usize::try_from(place % PAGE_BYTES as u64).expect("less than a page");
        let part = left.min(PAGE_BYTES - within);
        parts.push((place, part));
        (place, left) = (place.wrapping_add(part as u64), left - part);
    }
    parts
}
