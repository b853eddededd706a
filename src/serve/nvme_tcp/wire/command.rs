//! Submission and completion entries, and the commands of fabrics.

use std::mem::size_of;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// A submission entry (base 2.0, section 3.3.3.1, figures 87 and 88).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Command {
    /// What to do.
    pub opcode: u8,
    /// Bits 1:0 fused operation ([`Command::fuse`]), bits 7:6 PRP or SGL.
    pub flags: u8,
    /// Its id, until it is answered.
    pub id: U16,
    /// The namespace; its lowest byte is the type of a fabrics command.
    pub namespace: U32,
    /// Dwords 2 and 3.
    pub more: [U32; 2],
    /// Metadata pointer.
    pub metadata: U64,
    /// Where its data is (section 4.1.2).
    pub data: Descriptor,
    /// Dwords 10 to 15.
    pub words: [U32; 6],
}

/// An SGL descriptor (base 2.0, section 4.1.2).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Descriptor {
    /// For data in the capsule: where it begins, from the capsule's data offset.
    pub address: U64,
    /// Bytes.
    pub length: U32,
    reserved: [u8; 3],
    /// Type in bits 7:4, subtype in bits 3:0.
    pub kind: u8,
}

/// Data block with an offset: data in the capsule.
pub const IN_CAPSULE: u8 = 0x01;
/// Transport data block (TCP transport 1.0, section 3.5): data in units of its own.
pub const IN_TRANSPORT: u8 = 0x5a;

/// A completion entry (base 2.0, section 3.3.3.2, figure 90).
#[derive(Clone, Copy, Debug, Immutable, IntoBytes)]
#[repr(C)]
pub struct Completion {
    /// Dwords 0 and 1.
    pub result: U64,
    /// Where the controller is in the submission queue.
    pub head: U16,
    /// The submission queue.
    pub queue: U16,
    /// The command.
    pub id: U16,
    /// Status in bits 15:1; no phase over fabrics.
    pub status: U16,
}

const _: () = assert!(size_of::<Command>() == 64);
const _: () = assert!(size_of::<Completion>() == 16);

/// Opcodes (base 2.0, section 5; NVM command set 1.0, section 3).
pub mod opcode {
    #![expect(missing_docs, reason = "the names of the specification")]
    pub const FABRICS: u8 = 0x7f;

    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    pub const KEEP_ALIVE: u8 = 0x18;

    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const VERIFY: u8 = 0x0c;
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    pub const RESERVATION_REPORT: u8 = 0x0e;
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    pub const RESERVATION_RELEASE: u8 = 0x15;
}

/// Types of fabrics commands (base 2.0, section 6).
pub mod fabrics {
    #![expect(missing_docs, reason = "the names of the specification")]
    pub const PROPERTY_SET: u8 = 0x00;
    pub const CONNECT: u8 = 0x01;
    pub const PROPERTY_GET: u8 = 0x04;
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
}

/// Feature identifiers (base 2.0, section 5.27.1).
pub mod feature {
    #![expect(missing_docs, reason = "the names of the specification")]
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    pub const HOST_IDENTIFIER: u8 = 0x81;
    pub const RESERVATION_NOTICE_MASK: u8 = 0x82;
    pub const RESERVATION_PERSISTENCE: u8 = 0x83;
}

/// How a command ended: status code type in bits 10:8, status code in bits 7:0, do not retry in bit 14 (base 2.0, section 3.3.3.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    const DO_NOT_RETRY: u16 = 1 << 14;

    const fn generic(code: u8) -> Self {
        Self(code as u16 | Self::DO_NOT_RETRY)
    }

    const fn specific(code: u8) -> Self {
        Self(0x100 | code as u16 | Self::DO_NOT_RETRY)
    }

    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// No such command.
    pub const INVALID_OPCODE: Self = Self::generic(0x01);
    /// A field has a value that it may not have.
    pub const INVALID_FIELD: Self = Self::generic(0x02);
    /// A device or the log failed; nothing can be said of what became of the command.
    pub const INTERNAL_ERROR: Self = Self::generic(0x06);
    /// Aborted because the host asked for it.
    pub const ABORTED: Self = Self(0x07);
    /// The other command of the fused operation failed.
    pub const FUSED_FAILED: Self = Self(0x09);
    /// There is no other command of the fused operation.
    pub const FUSED_MISSING: Self = Self::generic(0x0a);
    /// No such namespace.
    pub const INVALID_NAMESPACE: Self = Self::generic(0x0b);
    /// Not now.
    pub const SEQUENCE_ERROR: Self = Self::generic(0x0c);
    /// The command's descriptor and its data disagree in length.
    pub const DATA_LENGTH_INVALID: Self = Self::generic(0x0f);
    /// A descriptor of a type that may not be here.
    pub const DESCRIPTOR_INVALID: Self = Self::generic(0x11);
    /// A compare-and-write of more than is done at once.
    pub const ATOMIC_UNIT_EXCEEDED: Self = Self::generic(0x14);
    /// Data in the capsule does not begin where it should.
    pub const OFFSET_INVALID: Self = Self::generic(0x16);
    /// Another host has preempted this one and ended its commands.
    pub const PREEMPTED: Self = Self::generic(0x1b);
    /// The host's identifier is not of the length that the command says.
    pub const HOST_IDENTIFIER_FORMAT: Self = Self::generic(0x24);
    /// The data's digest was wrong: the host may try again.
    pub const TRANSPORT_ERROR: Self = Self(0x22);
    /// Beyond the end of the namespace.
    pub const OUT_OF_RANGE: Self = Self::generic(0x80);
    /// No room in the pool.
    pub const CAPACITY_EXCEEDED: Self = Self::generic(0x81);
    /// The namespace cannot be used now.
    pub const NOT_READY: Self = Self::generic(0x82);
    /// Another host holds the namespace reserved, or the host's key is another one.
    pub const RESERVATION_CONFLICT: Self = Self::generic(0x83);

    /// Fabrics: the record format of a Connect.
    pub const CONNECT_FORMAT: Self = Self::specific(0x80);
    /// Fabrics: no more controllers, or the queue is there already.
    pub const CONNECT_BUSY: Self = Self(0x181);
    /// Fabrics: a parameter of a Connect.
    pub const CONNECT_PARAMETER: Self = Self::specific(0x82);
    /// Fabrics: this host is not allowed.
    pub const CONNECT_HOST: Self = Self::specific(0x84);
    /// More aborts under way than were announced.
    pub const TOO_MANY_ABORTS: Self = Self(0x103);
    /// Fabrics: the host has not authenticated itself.
    pub const AUTHENTICATION_REQUIRED: Self = Self::specific(0x91);
    /// More event requests than were announced.
    pub const TOO_MANY_EVENT_REQUESTS: Self = Self::specific(0x05);
    /// No such log page.
    pub const INVALID_LOG_PAGE: Self = Self::specific(0x09);
    /// The feature has one value.
    pub const NOT_CHANGEABLE: Self = Self::specific(0x0e);

    /// A block cannot be read.
    pub const UNRECOVERED_READ: Self = Self(0x281 | Self::DO_NOT_RETRY);
    /// What was compared differs.
    pub const COMPARE_FAILURE: Self = Self(0x285 | Self::DO_NOT_RETRY);
    /// This path does not lead to the namespace: another one may.
    pub const PATH_ERROR: Self = Self(0x300);
    /// Nor does any other, as far as this node knows: the host waits for a change of access.
    pub const ACCESS_INACCESSIBLE: Self = Self(0x302);

    /// As a completion entry holds it.
    #[must_use]
    pub const fn field(self) -> u16 {
        self.0 << 1
    }

    /// Whether it belongs into the error log: it is an error of the command, not one of this path to the namespace (status code type 3), nor the host's own will.
    #[must_use]
    pub fn is_logged(self) -> bool {
        !self.is_success() && self != Self::ABORTED && self.0 >> 8 & 0b111 != 3
    }

    /// Whether it is [`SUCCESS`](Self::SUCCESS).
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::SUCCESS
    }
}

/// FUSE: a command's part in a fused operation (base 2.0, section 3.4.2 and figure 87).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fuse {
    /// None.
    Alone,
    /// The first command of two.
    First,
    /// The second.
    Second,
    /// A value that is reserved.
    Reserved,
}

/// A Connect, both parts (base 2.0, section 6.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// Zero: the admin queue.
    pub queue: u16,
    /// Entries of the queue, less one.
    pub size: u16,
    /// Bit 2: no flow control of the submission queue.
    pub attributes: u8,
    /// Keep-alive time-out; zero: none.
    pub keep_alive_ms: u32,
    /// The host's.
    pub host_id: [u8; 16],
    /// `0xffff` for the admin queue of a controller that is to be made.
    pub controller: u16,
    /// Whose controller.
    pub subsystem: String,
    /// Who asks.
    pub host: String,
}

/// Bytes of a Connect's data.
pub const CONNECT_BYTES: u32 = 1024;

#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct ConnectData {
    host_id: [u8; 16],
    controller: U16,
    reserved: [u8; 238],
    subsystem: [u8; 256],
    host: [u8; 256],
    more: [u8; 256],
}

const _: () = assert!(size_of::<ConnectData>() == CONNECT_BYTES as usize);

/// Where a Connect was wrong: the result of its completion (base 2.0, section 6.3, figure 386).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectFault {
    /// The status.
    pub status: Status,
    /// Byte, and in bit 16 whether it is one of the data.
    pub place: u32,
}

impl ConnectFault {
    /// A field of the submission entry.
    #[must_use]
    pub const fn command(at: u16) -> Self {
        Self { status: Status::CONNECT_PARAMETER, place: at as u32 }
    }

    /// A field of the data.
    #[must_use]
    pub const fn data(at: u16) -> Self {
        Self { status: Status::CONNECT_PARAMETER, place: 1 << 16 | at as u32 }
    }
}

impl Command {
    /// The entry in these bytes: all are one.
    #[must_use]
    pub fn parse(bytes: &[u8; 64]) -> Self {
        Self::read_from_bytes(bytes).expect("an entry has 64 bytes")
    }

    /// Whether it is half of a fused operation.
    #[must_use]
    pub fn fuse(&self) -> Fuse {
        match self.flags & 0b11 {
            0 => Fuse::Alone,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Dword 10 to 15, by its number.
    #[must_use]
    pub fn word(&self, number: usize) -> u32 {
        self.words.get(number - 10).expect("dwords 10 to 15").get()
    }

    /// The type of a fabrics command, if it is one.
    #[must_use]
    pub fn fabrics(&self) -> Option<u8> {
        let [kind, ..] = self.namespace.to_bytes();
        (self.opcode == opcode::FABRICS).then_some(kind)
    }

    /// Whether it moves data to the controller: bit 0 of the opcode, of a fabrics command's type (base 2.0, section 3.3.3.1).
    #[must_use]
    pub fn takes_data(&self) -> bool {
        self.fabrics().unwrap_or(self.opcode) & 1 != 0
    }

    /// First block and count of blocks, at least one, of commands that have them (NVM command set 1.0, section 3.2).
    #[must_use]
    pub fn blocks(&self) -> (u64, u64) {
        let first = u64::from(self.word(11)) << 32 | u64::from(self.word(10));
        (first, u64::from(self.word(12) & 0xffff) + 1)
    }

    /// The Connect that this is, with its data.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn connect(&self, data: &[u8]) -> Result<Connect, ConnectFault> {
        let [format_and_queue, size_and_more, keep_alive_ms, ..] = self.words;
        let low = |word: u32| u16::try_from(word & 0xffff).expect("sixteen bits");
        let (first, second) = (format_and_queue.get(), size_and_more.get());
        if low(first) != 0 {
            return Err(ConnectFault { status: Status::CONNECT_FORMAT, place: 40 });
        }
        let data = ConnectData::read_from_bytes(data).map_err(|_| ConnectFault::command(24))?;
        Ok(Connect {
            queue: low(first >> 16),
            size: low(second),
            attributes: low(second >> 16).to_le_bytes()[0],
            keep_alive_ms: keep_alive_ms.get(),
            host_id: data.host_id,
            controller: data.controller.get(),
            subsystem: name(&data.subsystem).ok_or(ConnectFault::data(256))?,
            host: name(&data.host).ok_or(ConnectFault::data(512))?,
        })
    }
}

/// Longest NVMe qualified name in bytes (base 2.0, section 4.5.1).
pub const NAME_BYTES_MAX: usize = 223;

/// Whether this is a name: `nqn.`, a date, a dot, and so on, in UTF-8 without control characters.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX
        && text.len() > "nqn.yyyy-mm.".len()
        && text.starts_with("nqn.")
        && !text.contains(|letter: char| letter.is_control() || letter.is_whitespace())
}

/// A name that ends with a zero byte.
fn name(field: &[u8; 256]) -> Option<String> {
    let end = field.iter().position(|&byte| byte == 0)?;
    let text = std::str::from_utf8(field.get(..end)?).ok()?;
    is_name(text).then(|| text.to_owned())
}

/// Ranges of a Dataset Management (NVM command set 1.0, section 3.2.3.1): first block and count of blocks.
pub fn ranges(data: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    struct RangeBytes {
        attributes: U32,
        count: U32,
        first: U64,
    }
    let (entries, _) = data.as_chunks::<RANGE_BYTES>();
    entries.iter().map(|entry| {
        let range: RangeBytes = zerocopy::transmute!(*entry);
        let _context = range.attributes;
        (range.first.get(), u64::from(range.count.get()))
    })
}

/// Bytes of one range.
pub const RANGE_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn command(bytes: &[(usize, u8)]) -> Command {
        let mut entry = [0; 64];
        for &(at, byte) in bytes {
            entry[at] = byte;
        }
        Command::parse(&entry)
    }

    #[test]
    fn fields_lie_where_the_specification_says() {
        let read =
            command(&[(0, 2), (2, 0x34), (3, 0x12), (4, 7), (24, 9), (32, 8), (39, 0x5a), (40, 5), (44, 1), (48, 3)]);
        assert_eq!((read.opcode, read.id.get(), read.namespace.get()), (opcode::READ, 0x1234, 7));
        assert_eq!((read.data.address.get(), read.data.length.get(), read.data.kind), (9, 8, IN_TRANSPORT));
        assert_eq!(read.blocks(), (1 << 32 | 5, 4));
        assert_eq!((read.fabrics(), read.takes_data()), (None, false));
        let connect = command(&[(0, 0x7f), (4, 1), (42, 3), (44, 31), (46, 4), (48, 0x88), (49, 0x13)]);
        assert_eq!((connect.fabrics(), connect.takes_data()), (Some(fabrics::CONNECT), true));
        assert!(!command(&[(0, 0x7f), (4, 4)]).takes_data());
    }

    #[test]
    fn a_connect_is_checked() {
        let entry = command(&[(0, 0x7f), (4, 1), (42, 3), (44, 31), (46, 4), (48, 0x88), (49, 0x13)]);
        let host = "nqn.2014-08.org.nvmexpress:uuid:1";
        let mut data = vec![0; 1024];
        data[..16].fill(7);
        data[16..18].fill(0xff);
        data[256..256 + host.len()].copy_from_slice(host.as_bytes());
        data[512..512 + host.len()].copy_from_slice(host.as_bytes());
        let connect = entry.connect(&data).expect("good");
        assert_eq!((connect.queue, connect.size, connect.attributes, connect.keep_alive_ms), (3, 31, 4, 5000));
        assert_eq!((connect.host_id, connect.controller, connect.host.as_str()), ([7; 16], 0xffff, host));
        assert_eq!(entry.connect(&data[..1023]), Err(ConnectFault::command(24)));
        assert_eq!(command(&[(40, 1)]).connect(&data).expect_err("a format").status, Status::CONNECT_FORMAT);
        for (place, byte) in [(256, 0), (257, b'x'), (511, 0xff), (300, 0x80), (270, b' ')] {
            let mut bad = data.clone();
            if place == 511 {
                bad[256..512].fill(b'n');
            } else {
                bad[place] = byte;
            }
            if place == 300 {
                bad[256 + host.len()..300].fill(b'a');
            }
            assert_eq!(entry.connect(&bad), Err(ConnectFault::data(256)), "{place}");
        }
        data[512] = 0;
        assert_eq!(entry.connect(&data), Err(ConnectFault::data(512)));
    }

    #[test]
    fn names_have_bounds() {
        let long = |bytes: usize| format!("nqn.2014-08.{}", "x".repeat(bytes - 12));
        assert!(is_name(&long(NAME_BYTES_MAX)) && !is_name(&long(NAME_BYTES_MAX + 1)));
        assert!(!is_name("nqn.2014-08.") && is_name("nqn.2014-08.a") && !is_name("iqn.2014-08.a"));
    }

    #[test]
    fn ranges_are_taken_whole() {
        let mut data = [0; 39];
        (data[4], data[8], data[20], data[24]) = (2, 9, 1, 3);
        assert_eq!(ranges(&data).collect::<Vec<_>>(), [(9, 2), (3, 1)]);
        assert_eq!(ranges(&data[..15]).count(), 0);
    }

    #[test]
    fn a_status_tells_whether_to_try_again() {
        assert_eq!(Status::SUCCESS.field(), 0);
        assert_eq!(Status::INVALID_FIELD.field(), 0x8004);
        assert_eq!(Status::PATH_ERROR.field(), 0x0600);
        assert_eq!(Status::CONNECT_HOST.field(), 0x8308);
        assert!(Status::INVALID_FIELD.is_logged() && Status::UNRECOVERED_READ.is_logged());
        for status in [Status::SUCCESS, Status::ABORTED, Status::PATH_ERROR, Status::ACCESS_INACCESSIBLE] {
            assert!(!status.is_logged(), "{status:?}");
        }
    }
}
