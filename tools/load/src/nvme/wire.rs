//! The bytes of NVMe over TCP that this host speaks. Pure functions.
//!
//! Section numbers are those of the TCP transport specification 1.0, unless they say "base" (NVMe base 2.0) or "NVM" (NVM command set 1.0). What comes from the
//! target is bounded here: whatever [`decode`] lets through has the length of its kind, and lies within one unit.

/// Bytes of the header that all units begin with (section 3.6.1).
const COMMON_BYTES: usize = 8;
/// Bytes of ICReq and ICResp (sections 3.6.2.1 and 3.6.2.2).
pub(crate) const INITIALIZATION_BYTES: usize = 128;
const ANSWER_BYTES: usize = COMMON_BYTES + 16;
/// Bytes of the headers of H2CData, C2HData and R2T (sections 3.6.2.7 to 3.6.2.9).
const TRANSFER_BYTES: usize = 24;
const DIGEST_BYTES: usize = 4;
/// The longest C2HTermReq: its header, and what it repeats of ours (section 3.6.2.4).
const TERMINATION_BYTES_LIMIT: usize = 24 + 128;
/// The farthest that data may begin in a unit: a byte counts it in units of four bytes.
const DATA_OFFSET_LIMIT: usize = 128;
/// Data that is part of a head: a range of Dataset Management.
const INLINE_BYTES: usize = 16;
/// The longest head: everything of a unit up to its data.
const HEAD_LIMIT: usize = DATA_OFFSET_LIMIT + INLINE_BYTES;
/// The least that a target must take in one H2CData (section 3.6.2.2).
const HOST_DATA_LEAST: u32 = 4096;
/// Bytes of a submission entry.
pub(crate) const ENTRY_BYTES: usize = 64;
/// Bytes of a Connect's data.
pub(crate) const CONNECT_BYTES: usize = 1024;

/// Kinds of units.
mod kind {
    pub(super) const IC_REQUEST: u8 = 0x00;
    pub(super) const IC_RESPONSE: u8 = 0x01;
    pub(super) const TERMINATION: u8 = 0x03;
    pub(super) const COMMAND: u8 = 0x04;
    pub(super) const ANSWER: u8 = 0x05;
    pub(super) const HOST_DATA: u8 = 0x06;
    pub(super) const DATA: u8 = 0x07;
    pub(super) const READY_TO_TRANSFER: u8 = 0x09;
}

mod flag {
    pub(super) const HEADER_DIGEST: u8 = 1 << 0;
    pub(super) const DATA_DIGEST: u8 = 1 << 1;
    pub(super) const LAST: u8 = 1 << 2;
    pub(super) const SUCCESS: u8 = 1 << 3;
}

/// Opcodes (base, section 5; NVM, section 3).
pub(crate) mod opcode {
    pub(crate) const FABRICS: u8 = 0x7f;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const EVENT_REQUEST: u8 = 0x0c;
    pub(crate) const KEEP_ALIVE: u8 = 0x18;
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Bytes from the target that are not what the protocol allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target broke the NVMe/TCP protocol: {0}")]
pub(crate) struct WireError(pub(crate) String);

fn broken<T>(what: impl Into<String>) -> Result<T, WireError> {
    Err(WireError(what.into()))
}

/// What both ends have agreed on in the first exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// Data for the target begins at multiples of this.
    align: usize,
    /// The most data of one H2CData.
    pub(crate) unit_limit: u32,
}

impl Agreement {
    /// What a simple target agrees to, with all digests or none.
    pub(crate) fn simple(digests: bool) -> Self {
        Self { header_digest: digests, data_digest: digests, align: 4, unit_limit: HOST_DATA_LEAST }
    }
}

/// Where a command's data is (base, section 4.1.2; section 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    None,
    /// In its capsule, so many bytes.
    InCapsule(u32),
    /// In units of its own, so many bytes.
    InTransport(u32),
}

/// A submission entry.
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) id: u16,
    /// The namespace, or the type of a fabrics command.
    pub(crate) namespace: u32,
    pub(crate) data: Data,
    /// Dwords 10 to 15.
    pub(crate) words: [u32; 6],
}

impl Command {
    /// A command without data and parameters.
    pub(crate) fn new(opcode: u8, namespace: u32) -> Self {
        Self { opcode, id: 0, namespace, data: Data::None, words: [0; 6] }
    }

    /// The entry's bytes (base, section 3.3.3.1).
    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        entry[0] = self.opcode;
        // PSDT: an SGL.
        entry[1] = 1 << 6;
        entry[2..4].copy_from_slice(&self.id.to_le_bytes());
        entry[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        let (length, descriptor) = match self.data {
            Data::None => (0, 0x5a),
            Data::InCapsule(length) => (length, 0x01),
            Data::InTransport(length) => (length, 0x5a),
        };
        entry[32..36].copy_from_slice(&length.to_le_bytes());
        entry[39] = descriptor;
        for (place, word) in entry[40..].chunks_exact_mut(4).zip(self.words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        entry
    }
}

/// How a command ended (base, section 3.3.3.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(u16);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0);

    /// The status in the last field of a completion entry, of which bit 0 is nothing over fabrics.
    fn of_field(field: u16) -> Self {
        Self(field >> 1)
    }

    /// Status code type and status code.
    fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    pub(crate) fn is_success(self) -> bool {
        self.code() == 0
    }

    /// The path is to blame and not the command: it may go another way.
    pub(crate) fn is_path_error(self) -> bool {
        self.code() >> 8 == 3
    }

    /// The path does not lead to the namespace, now or for ever: the access log says more.
    pub(crate) fn is_access_error(self) -> bool {
        matches!(self.code(), 0x301..=0x303)
    }

    /// The same command may succeed later.
    pub(crate) fn may_retry(self) -> bool {
        self.0 & 1 << 14 == 0
    }

    /// What the status of a Connect means (base, section 6.3).
    pub(crate) fn connect_fault(self) -> Option<&'static str> {
        Some(match self.code() {
            0x181 => "there is no room for another controller or queue",
            0x182 => "a parameter is wrong: is the subsystem's name right?",
            0x183 => "the controller cannot be connected to now",
            0x184 => "this host is not allowed: see hostnqn= and hostid=",
            0x191 => "authentication is required: see --secret-file",
            _ => return None,
        })
    }

    /// The error number that Linux's block layer or a file system would show.
    pub(crate) fn errno(self) -> i32 {
        match self.code() {
            0 => 0,
            // Invalid field; LBA out of range.
            0x002 | 0x080 => 22,
            // Capacity exceeded.
            0x081 => 28,
            // Namespace is write protected; attempted write to read only range.
            0x020 | 0x182 => 30,
            // Reservation conflict.
            0x083 => 52,
            _ => 5,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "status {:#05x}", self.code())
    }
}

/// A completion entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) result: u64,
    /// The command that is answered.
    pub(crate) id: u16,
    pub(crate) status: Status,
}

/// A unit from the target, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Answer(Answer),
    /// Data of a command that reads; `length` bytes follow the head, and a digest if that was agreed on.
    Data {
        id: u16,
        offset: u32,
        length: u32,
        last: bool,
        success: bool,
    },
    /// The target asks for data of a command that writes.
    Wanted {
        id: u16,
        tag: u16,
        offset: u32,
        length: u32,
    },
    /// The target ends the connection for this reason (FES) at this place.
    Terminated {
        reason: u16,
        place: u32,
    },
}

/// The unit that `bytes` begins with and the length of its head, which ends where its data begins; `None` while the head has not come whole.
pub(crate) fn decode(bytes: &[u8], agreement: &Agreement) -> Result<Option<(Unit, usize)>, WireError> {
    let Some(common) = bytes.first_chunk::<COMMON_BYTES>() else { return Ok(None) };
    let [kind, flags, header, offset, ..] = *common;
    let (header, offset) = (usize::from(header), usize::from(offset));
    let length = u32_at(common, 4);
    let expected = match kind {
        kind::ANSWER => ANSWER_BYTES,
        kind::DATA | kind::READY_TO_TRANSFER => TRANSFER_BYTES,
        kind::TERMINATION => return termination(bytes, length),
        kind => return broken(format!("a unit of kind {kind:#04x}, which may not come now")),
    };
    if header != expected {
        return broken(format!("a unit of kind {kind:#04x} with a header of {header} bytes"));
    }
    if (flags & flag::HEADER_DIGEST != 0) != agreement.header_digest {
        return broken("a header digest that was not agreed on, or none where it was");
    }
    let least = header + if agreement.header_digest { DIGEST_BYTES } else { 0 };
    let (head, data) = if kind == kind::DATA {
        let around = offset + if agreement.data_digest { DIGEST_BYTES } else { 0 };
        let has_digest = flags & flag::DATA_DIGEST != 0;
        let data = usize::try_from(length).ok().and_then(|length| length.checked_sub(around));
        match data.filter(|data| *data > 0 && (least..=DATA_OFFSET_LIMIT).contains(&offset)) {
            Some(data) if has_digest == agreement.data_digest => (offset, data),
            _ => return broken(format!("data of a unit of {length} bytes at byte {offset}")),
        }
    } else if usize::try_from(length) == Ok(least) && flags & flag::DATA_DIGEST == 0 {
        (least, 0)
    } else {
        return broken(format!("a unit of kind {kind:#04x} and {length} bytes"));
    };
    let Some(bytes) = bytes.get(..head) else { return Ok(None) };
    if agreement.header_digest && crc32c::crc32c(&bytes[..header]) != u32_at(bytes, header) {
        return broken("a header digest that does not fit the header");
    }
    let unit = match kind {
        kind::ANSWER => Unit::Answer(Answer {
            result: u64::from(u32_at(bytes, 8)) | u64::from(u32_at(bytes, 12)) << 32,
            id: u16_at(bytes, 20),
            status: Status::of_field(u16_at(bytes, 22)),
        }),
        kind::DATA => {
            let length = u32_at(bytes, 16);
            if usize::try_from(length) != Ok(data) {
                return broken(format!("{data} bytes of data that say they are {length}"));
            }
            let (last, success) = (flags & flag::LAST != 0, flags & flag::SUCCESS != 0);
            if success && !last {
                return broken("data that is a success before it is the last");
            }
            Unit::Data { id: u16_at(bytes, 8), offset: u32_at(bytes, 12), length, last, success }
        }
        _ => Unit::Wanted {
            id: u16_at(bytes, 8),
            tag: u16_at(bytes, 10),
            offset: u32_at(bytes, 12),
            length: u32_at(bytes, 16),
        },
    };
    Ok(Some((unit, head)))
}

fn termination(bytes: &[u8], length: u32) -> Result<Option<(Unit, usize)>, WireError> {
    let length = usize::try_from(length).ok().filter(|length| (24..=TERMINATION_BYTES_LIMIT).contains(length));
    let Some(length) = length else { return broken("a termination request of an impossible length") };
    // What it repeats of ours says nothing new, and may be cut off.
    let Some(head) = bytes.get(..24) else { return Ok(None) };
    Ok(Some((Unit::Terminated { reason: u16_at(head, 8), place: u32_at(head, 10) }, length)))
}

/// The first unit: what the host wants (section 3.6.2.1).
pub(crate) fn encode_ic_request(header_digest: bool, data_digest: bool) -> [u8; INITIALIZATION_BYTES] {
    let mut unit = [0; INITIALIZATION_BYTES];
    unit[0] = kind::IC_REQUEST;
    unit[2] = 128;
    unit[4] = 128;
    // Format 0, data at any multiple of four bytes, one request to transfer at a time for each command.
    unit[11] = u8::from(header_digest) | u8::from(data_digest) << 1;
    unit
}

/// What the target agrees to, of what was asked for.
pub(crate) fn decode_ic_response(
    unit: &[u8; INITIALIZATION_BYTES],
    wanted: (bool, bool),
) -> Result<Agreement, WireError> {
    if unit[..2] != [kind::IC_RESPONSE, 0] || unit[2] != 128 || u32_at(unit, 4) != 128 {
        return broken("no ICResp: is this an NVMe/TCP target?");
    }
    if u16_at(unit, 8) != 0 {
        return broken(format!("an ICResp of format {}", u16_at(unit, 8)));
    }
    let (header_digest, data_digest) = (unit[11] & 1 != 0, unit[11] & 2 != 0);
    if (header_digest && !wanted.0) || (data_digest && !wanted.1) {
        return broken("digests that nobody asked for");
    }
    let (align, unit_limit) = (unit[10], u32_at(unit, 12));
    if align > 31 || unit_limit < HOST_DATA_LEAST {
        return broken(format!("data aligned to {align}, at most {unit_limit} bytes at a time"));
    }
    Ok(Agreement { header_digest, data_digest, align: 4 * (usize::from(align) + 1), unit_limit })
}

/// Everything of a unit up to its data.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    bytes: [u8; HEAD_LIMIT],
    length: usize,
}

impl Head {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// A head of this kind and header, with `data_bytes` of data.
    fn new(kind: u8, flags: u8, header: &[u8], data_bytes: u32, agreement: &Agreement) -> Self {
        let mut bytes = [0; HEAD_LIMIT];
        let header_bytes = COMMON_BYTES + header.len();
        let mut length = header_bytes + if agreement.header_digest { DIGEST_BYTES } else { 0 };
        let mut flags = flags | if agreement.header_digest { flag::HEADER_DIGEST } else { 0 };
        let mut tail = 0;
        if data_bytes > 0 {
            length = length.next_multiple_of(agreement.align);
            if agreement.data_digest {
                flags |= flag::DATA_DIGEST;
                tail = DIGEST_BYTES;
            }
            bytes[3] = u8::try_from(length).expect("at most 128");
        }
        (bytes[0], bytes[1], bytes[2]) = (kind, flags, u8::try_from(header_bytes).expect("at most 72"));
        let total = u32::try_from(length + tail).expect("short") + data_bytes;
        bytes[4..8].copy_from_slice(&total.to_le_bytes());
        bytes[COMMON_BYTES..header_bytes].copy_from_slice(header);
        if agreement.header_digest {
            let digest = crc32c::crc32c(&bytes[..header_bytes]);
            bytes[header_bytes..header_bytes + DIGEST_BYTES].copy_from_slice(&digest.to_le_bytes());
        }
        Self { bytes, length }
    }

    /// A command's capsule, up to the data in it.
    pub(crate) fn command(command: &Command, agreement: &Agreement) -> Self {
        let data_bytes = if let Data::InCapsule(length) = command.data { length } else { 0 };
        Self::new(kind::COMMAND, 0, &command.encode(), data_bytes, agreement)
    }

    /// An H2CData up to its data: `length` bytes from `offset` of the command's, for the request to transfer `tag`.
    pub(crate) fn host_data(
        (id, tag): (u16, u16),
        (offset, length): (u32, u32),
        last: bool,
        agreement: &Agreement,
    ) -> Self {
        let mut header = [0; TRANSFER_BYTES - COMMON_BYTES];
        header[..2].copy_from_slice(&id.to_le_bytes());
        header[2..4].copy_from_slice(&tag.to_le_bytes());
        header[4..8].copy_from_slice(&offset.to_le_bytes());
        header[8..12].copy_from_slice(&length.to_le_bytes());
        Self::new(kind::HOST_DATA, if last { flag::LAST } else { 0 }, &header, length, agreement)
    }

    /// Appends the command's data, which is short.
    pub(crate) fn append(&mut self, data: &[u8; INLINE_BYTES]) {
        self.bytes[self.length..self.length + INLINE_BYTES].copy_from_slice(data);
        self.length += INLINE_BYTES;
    }
}

/// One range of a Dataset Management (NVM, section 3.2.3.1), in blocks.
pub(crate) fn range(first: u64, count: u32) -> [u8; INLINE_BYTES] {
    let mut bytes = [0; INLINE_BYTES];
    bytes[4..8].copy_from_slice(&count.to_le_bytes());
    bytes[8..].copy_from_slice(&first.to_le_bytes());
    bytes
}

/// The data of a Connect (base, section 6.3): whose controller, which one, and who asks. Names are at most 255 bytes.
pub(crate) fn connect_data(subsystem: &str, controller: u16, (host, host_id): (&str, &[u8; 16])) -> Vec<u8> {
    let mut data = vec![0; CONNECT_BYTES];
    data[..16].copy_from_slice(host_id);
    data[16..18].copy_from_slice(&controller.to_le_bytes());
    data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
    data[512..512 + host.len()].copy_from_slice(host.as_bytes());
    data
}

/// A little-endian number in bytes of which the length is known.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

/// The same of 32 bits.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// The same of 64 bits.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("the caller knows the length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Agreement = Agreement { header_digest: false, data_digest: false, align: 4, unit_limit: 4096 };
    const FULL: Agreement = Agreement { header_digest: true, data_digest: true, align: 128, unit_limit: 4096 };

    #[test]
    fn capsules_have_the_bytes_of_the_specification() {
        let mut command = Command::new(opcode::WRITE, 0x0102);
        (command.id, command.data, command.words[0]) = (0x0304, Data::InCapsule(512), 7);
        let head = Head::command(&command, &PLAIN);
        let bytes = head.bytes();
        assert_eq!(bytes[..8], [4, 0, 72, 72, 72, 2, 0, 0]);
        assert_eq!(bytes[8..16], [1, 0x40, 4, 3, 2, 1, 0, 0]);
        assert_eq!(bytes[40..52], [0, 2, 0, 0, 0, 0, 0, 1, 7, 0, 0, 0]);
        assert_eq!(bytes.len(), 72);
        let head = Head::command(&command, &FULL);
        assert_eq!((head.bytes().len(), head.bytes()[..4].to_vec()), (128, vec![4, 3, 72, 128]));
        assert_eq!(u32_at(head.bytes(), 4), 128 + 512 + 4);
        assert_eq!(u32_at(head.bytes(), 72), crc32c::crc32c(&head.bytes()[..72]));
        command.data = Data::InTransport(512);
        let head = Head::command(&command, &PLAIN);
        assert_eq!((head.bytes()[3], u32_at(head.bytes(), 4), head.bytes()[47]), (0, 72, 0x5a));
    }

    #[test]
    fn data_for_the_target_says_where_it_belongs() {
        let mut head = Head::host_data((1, 2), (4096, 8), true, &PLAIN);
        assert_eq!(head.bytes()[..20], [6, 4, 24, 24, 32, 0, 0, 0, 1, 0, 2, 0, 0, 16, 0, 0, 8, 0, 0, 0]);
        head.append(&range(3, 9));
        assert_eq!(head.bytes()[24..], [0, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// A unit of the target's.
    fn unit(kind: u8, flags: u8, (header, offset): (u8, u8), length: u32, rest: &[u8]) -> Vec<u8> {
        [&[kind, flags, header, offset][..], &length.to_le_bytes(), rest].concat()
    }

    #[test]
    fn units_are_read_as_they_are() {
        let answer = unit(5, 0, (24, 0), 24, &[1, 0, 0, 0, 2, 0, 0, 0, 9, 9, 9, 9, 5, 0, 0x02, 0x43]);
        let (read, head) = decode(&answer, &PLAIN).unwrap().unwrap();
        let Unit::Answer(Answer { result, id, status }) = read else { panic!("{read:?}") };
        assert_eq!((head, result, id, status.code(), status.may_retry()), (24, 1 | 2 << 32, 5, 0x181, true));
        let data =
            unit(7, 4 | 8, (24, 32), 132, &[5, 0, 0, 0, 0, 1, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
        let expected = Unit::Data { id: 5, offset: 256, length: 100, last: true, success: true };
        assert_eq!(decode(&data, &PLAIN), Ok(Some((expected, 32))));
        assert!((0..32).all(|length| decode(&data[..length], &PLAIN) == Ok(None)));
        let ready = unit(9, 0, (24, 0), 24, &[5, 0, 6, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode(&ready, &PLAIN), Ok(Some((Unit::Wanted { id: 5, tag: 6, offset: 1, length: 2 }, 24))));
        let ended = unit(3, 0, (24, 0), 24, &[2, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode(&ended, &FULL), Ok(Some((Unit::Terminated { reason: 2, place: 10 }, 24))));
    }

    #[test]
    fn a_header_digest_must_fit() {
        let mut answer = unit(5, 1, (24, 0), 28, &[0; 16]);
        answer.extend(crc32c::crc32c(&answer).to_le_bytes());
        assert!(matches!(decode(&answer, &FULL), Ok(Some((Unit::Answer(_), 28)))));
        for bit in 64..answer.len() * 8 {
            let mut bad = answer.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, &FULL).is_err(), "{bit}");
        }
        assert!(decode(&answer, &PLAIN).is_err());
    }

    #[test]
    fn impossible_units_are_refused_at_the_bound() {
        let data = |flags, offset, length, said: u32| {
            let fields = [&[0; 8][..], &said.to_le_bytes(), &[0; 120]].concat();
            decode(&unit(7, flags, (24, offset), length, &fields), &PLAIN)
        };
        assert!(
            data(0, 24, 25, 1).is_ok() && data(0, 128, 129, 1).is_ok() && data(4, 24, u32::MAX, u32::MAX - 24).is_ok()
        );
        for bad in [
            data(0, 23, 25, 2),
            data(0, 129, 130, 1),
            data(0, 24, 24, 0),
            data(0, 24, 23, 0),
            data(0, 24, 25, 2),
            data(8, 24, 25, 1),
            data(1, 28, 29, 1),
            data(2, 24, 29, 1),
        ] {
            assert!(bad.is_err());
        }
        for (kind, header, length) in
            [(5, 24, 25), (5, 23, 24), (9, 24, 28), (9, 25, 25), (3, 24, 23), (3, 24, 153), (1, 128, 128), (4, 72, 72)]
        {
            assert!(
                decode(&unit(kind, 0, (header, 0), length, &[0; 200]), &PLAIN).is_err(),
                "{kind} {header} {length}"
            );
        }
    }

    #[test]
    fn an_ic_response_is_held_against_the_wish() {
        let mut unit = encode_ic_request(true, true);
        unit[0] = 1;
        unit[12..16].copy_from_slice(&4096_u32.to_le_bytes());
        let read = |unit: &[u8; 128]| decode_ic_response(unit, (true, true));
        assert_eq!(read(&unit), Ok(Agreement { align: 4, ..FULL }));
        assert!(decode_ic_response(&unit, (true, false)).is_err() && decode_ic_response(&unit, (false, true)).is_err());
        for (at, byte) in [(0, 2), (1, 1), (2, 127), (4, 129), (8, 1), (10, 32), (13, 15)] {
            let mut bad = unit;
            bad[at] = byte;
            assert!(read(&bad).is_err(), "{at}");
        }
        unit[10] = 31;
        assert_eq!(read(&unit), Ok(FULL));
    }

    #[test]
    fn a_status_says_who_is_to_blame() {
        let of = |code: u16| Status::of_field(code << 1);
        assert!(of(0).is_success() && of(0).errno() == 0 && !of(1).is_success());
        assert!(of(0x300).is_path_error() && !of(0x300).is_access_error() && of(0x302).is_access_error());
        assert!(!of(0x281).is_path_error() && of(0x82).may_retry() && !of(0x4082).may_retry());
        assert_eq!([of(0x4081).errno(), of(0x4281).errno(), of(0x4002).errno()], [28, 5, 22]);
    }
}
