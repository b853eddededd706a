//! A host of NVMe/TCP on two sockets, an admin queue and an I/O queue, that waits for each answer. Written from the specifications, for what other hosts do
//! not send: commands that are fused, and reservations of which it is told what others do with them.

use super::PATIENCE;
use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
};

pub(crate) const BLOCK: usize = 4096;

/// Statuses of a compare-and-write that has found other bytes.
pub(crate) const DIFFERS: [u16; 2] = [0x285, 0x09];

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const FABRICS: u8 = 0x7f;
const LOG_PAGE: u8 = 2;
const EVENT_REQUEST: u8 = 0x0c;

/// Reservation commands.
pub(crate) const REGISTER: u8 = 0x0d;
pub(crate) const ACQUIRE: u8 = 0x11;
pub(crate) const RELEASE: u8 = 0x15;

/// The result of an event request: the page of reservation notifications has something.
pub(crate) const RESERVATION_EVENT: u32 = 0x0080_0006;

/// The page of reservation notifications: which it is, and how long.
const NOTIFICATION_PAGE: u8 = 0x80;
const NOTIFICATION_BYTES: usize = 64;

/// What a host was told of a reservation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    pub(crate) count: u64,
    pub(crate) kind: u8,
    /// How many more wait.
    pub(crate) behind: u8,
    pub(crate) namespace: u32,
}

/// A connection to one node.
pub(crate) struct Host {
    admin: TcpStream,
    io: TcpStream,
    next_command: u16,
    pub(crate) namespace: u32,
}

/// A unit: its kind, its header and its data.
struct Unit {
    kind: u8,
    header: Vec<u8>,
    data: Vec<u8>,
}

fn socket(address: &str) -> io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = [0; 128];
    (greeting[2], greeting[4]) = (128, 128);
    socket.write_all(&greeting)?;
    receive(&mut socket)?;
    Ok(socket)
}

fn receive(socket: &mut TcpStream) -> io::Result<Unit> {
    let mut start = [0; 8];
    socket.read_exact(&mut start)?;
    let [kind, _, header_bytes, _, length @ ..] = start;
    let mut rest = vec![0; u32::from_le_bytes(length) as usize - start.len()];
    socket.read_exact(&mut rest)?;
    let data = rest.split_off(usize::from(header_bytes) - start.len());
    Ok(Unit { kind, header: rest, data })
}

/// A capsule with its data inside, or the promise to take `wanted` bytes.
fn capsule(mut entry: [u8; 64], data: &[u8], wanted: usize) -> Vec<u8> {
    let length = u32::try_from(data.len().max(wanted)).expect("short");
    entry[32..36].copy_from_slice(&length.to_le_bytes());
    entry[1] |= 0x40;
    entry[39] = if data.is_empty() { 0x5a } else { 1 };
    let total = u32::try_from(8 + entry.len() + data.len()).expect("short");
    let data_at = if data.is_empty() { 0 } else { 72 };
    [&[4, 0, 72, data_at][..], &total.to_le_bytes(), &entry, data].concat()
}

/// Status code type and status code of an answer that must be one.
fn status_of(unit: &Unit) -> u16 {
    assert_eq!(unit.kind, 5, "a response");
    u16::from_le_bytes([unit.header[14], unit.header[15]]) >> 1 & 0x7ff
}

fn connect(
    socket: &mut TcpStream,
    queue: u8,
    controller: [u8; 2],
    (subsystem, host): (&str, u8),
) -> io::Result<[u8; 2]> {
    let mut entry = [0; 64];
    // Without flow control of the submission queue, and without a time-out.
    (entry[0], entry[4], entry[42], entry[44], entry[46]) = (FABRICS, 1, queue, 31, 4);
    let mut data = vec![0; 1024];
    data[..16].fill(host);
    data[16..18].copy_from_slice(&controller);
    data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
    let name = format!("nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-{host:012x}");
    data[512..512 + name.len()].copy_from_slice(name.as_bytes());
    socket.write_all(&capsule(entry, &data, 0))?;
    let answer = receive(socket)?;
    assert_eq!(status_of(&answer), 0, "the queue is made");
    Ok([answer.header[0], answer.header[1]])
}

impl Host {
    /// The host number `host` connects to a node for a namespace.
    pub(crate) fn connect(address: &str, subsystem: &str, (host, namespace): (u8, u32)) -> io::Result<Self> {
        let mut admin = socket(address)?;
        let controller = connect(&mut admin, 0, [0xff; 2], (subsystem, host))?;
        let mut enable = [0; 64];
        (enable[0], enable[44]) = (FABRICS, 0x14);
        enable[48..52].copy_from_slice(&0x0046_0001_u32.to_le_bytes());
        admin.write_all(&capsule(enable, &[], 0))?;
        assert_eq!(status_of(&receive(&mut admin)?), 0, "the controller is enabled");
        let mut io = socket(address)?;
        connect(&mut io, 1, controller, (subsystem, host))?;
        Ok(Self { admin, io, next_command: 1, namespace })
    }

    /// The entry of a command for one block; `fuse` is its part in a fused operation.
    fn entry(&mut self, opcode: u8, fuse: u8, block: u8) -> [u8; 64] {
        let mut entry = [0; 64];
        (entry[0], entry[1], entry[40]) = (opcode, fuse, block);
        entry[2..4].copy_from_slice(&self.next_command.to_le_bytes());
        entry[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        self.next_command = self.next_command.wrapping_add(1);
        entry
    }

    /// What a block holds; else the status.
    pub(crate) fn read(&mut self, block: u8) -> io::Result<Result<Vec<u8>, u16>> {
        let entry = self.entry(READ, 0, block);
        self.io.write_all(&capsule(entry, &[], BLOCK))?;
        let unit = receive(&mut self.io)?;
        // A unit of data says itself that all is well.
        Ok(if unit.kind == 7 { Ok(unit.data) } else { Err(status_of(&unit)) })
    }

    /// Block `block` becomes `new` if it is `expected`. Returns the statuses of both commands.
    pub(crate) fn compare_and_write(&mut self, block: u8, expected: &[u8], new: &[u8]) -> io::Result<[u16; 2]> {
        let first = capsule(self.entry(COMPARE, 1, block), expected, 0);
        let second = capsule(self.entry(WRITE, 2, block), new, 0);
        self.io.write_all(&[first, second].concat())?;
        let answers = [receive(&mut self.io)?, receive(&mut self.io)?];
        Ok(answers.map(|answer| status_of(&answer)))
    }

    /// A reservation command with its dword 10 and its keys. Returns the status.
    pub(crate) fn reserve(&mut self, opcode: u8, options: u32, keys: &[u64]) -> io::Result<u16> {
        let mut entry = self.entry(opcode, 0, 0);
        entry[40..44].copy_from_slice(&options.to_le_bytes());
        let data: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        self.io.write_all(&capsule(entry, &data, 0))?;
        Ok(status_of(&receive(&mut self.io)?))
    }

    /// Asks to be told of the next event.
    pub(crate) fn listen(&mut self) -> io::Result<()> {
        let entry = self.entry(EVENT_REQUEST, 0, 0);
        self.admin.write_all(&capsule(entry, &[], 0))
    }

    /// Waits for the event that it has asked for, with nothing else under way; its result.
    pub(crate) fn told(&mut self) -> io::Result<u32> {
        let unit = receive(&mut self.admin)?;
        assert_eq!(status_of(&unit), 0, "an event");
        Ok(u32::from_le_bytes(*unit.header.first_chunk().expect("a result")))
    }

    /// Takes the oldest notification off the log page; `None`: there is none. No event is asked for then.
    pub(crate) fn notification(&mut self) -> io::Result<Option<Notification>> {
        let mut entry = self.entry(LOG_PAGE, 0, NOTIFICATION_PAGE);
        entry[42] = u8::try_from(NOTIFICATION_BYTES / 4 - 1).expect("short");
        self.admin.write_all(&capsule(entry, &[], NOTIFICATION_BYTES))?;
        let page = receive(&mut self.admin)?.data;
        assert_eq!(page.len(), NOTIFICATION_BYTES, "a page");
        let count = u64::from_le_bytes(*page.first_chunk().expect("eight bytes"));
        let namespace = u32::from_le_bytes(*page[12..].first_chunk().expect("four bytes"));
        Ok((count > 0).then_some(Notification { count, kind: page[8], behind: page[9], namespace }))
    }
}
