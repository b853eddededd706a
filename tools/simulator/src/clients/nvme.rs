//! An NVMe/TCP host on two simulated connections, an admin queue and an I/O queue, written from the specifications and not from the server's codec.

mod reservation;

pub use reservation::Notification;

use super::{Answer, Ask, Refusal};
use crate::{
    model::reservation::Deed,
    pattern,
    setup::{BLOCK, index},
};
use std::{collections::BTreeMap, ops::Range};
use twinlog_sim::{SimClient, SimListener};

/// The listener of a reactor at which hosts are; clients of NBD are at the first one.
pub const LISTENER: usize = 1;

/// Entries of a queue, less one.
const QUEUE_SIZE: u16 = 31;

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const WRITE_ZEROES: u8 = 8;
const FLUSH: u8 = 0;
const GET_LOG_PAGE: u8 = 2;
const FABRICS: u8 = 0x7f;
const DEALLOCATE: u32 = 1 << 25;
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// The part of a command in a fused operation.
const FIRST: u8 = 1;
const SECOND: u8 = 2;
/// What the first and the second of two fused commands are answered if the bytes differ.
const DIFFERS: [u16; 2] = [0x285, FUSED_FAILED];
const FUSED_FAILED: u16 = 9;

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AdminGreeting,
    AdminConnect,
    Enable,
    Greeting,
    Connect,
    Open,
    Closed,
}

/// Statuses about a reservation: it keeps the host out; the host was preempted, and what it had under way ended; it is not of the type that was named.
const CONFLICT: u16 = 0x83;
const PREEMPTED: u16 = 0x1b;
const INVALID_FIELD: u16 = 0x02;
/// Nobody serves the volume: the one status of a path after which a command may have been performed.
const INACCESSIBLE: u16 = 0x302;

/// What a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// The volume's bytes, which the host wants to have.
    Bytes,
    /// The volume, of which it wants nothing but a word.
    Volume,
    /// The reservation.
    Reservation,
    /// The same: who has registered.
    Report,
}

/// A command that waits for its end.
struct Waiting {
    id: u64,
    /// What was read.
    data: Vec<u8>,
    about: About,
    /// Of a write: what is sent when it is asked for.
    payload: Vec<u8>,
    /// Of the first of two fused commands: how it has ended, for its second.
    first: Option<u16>,
    is_first: bool,
}

/// One connection.
struct Wire {
    client: SimClient,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Wire {
    fn connect(listener: &SimListener) -> Self {
        let mut greeting = vec![0; 128];
        (greeting[2], greeting[4]) = (128, 128);
        Self { client: listener.connect(LISTENER), input: Vec::new(), output: greeting }
    }

    fn push(&mut self) {
        if !self.output.is_empty() {
            let sent = self.client.send(&self.output);
            self.output.drain(..sent);
        }
    }

    /// The next unit that has come whole.
    fn unit(&mut self) -> Option<Vec<u8>> {
        let length = index(u64::from(word32(self.input.get(4..8)?)));
        (self.input.len() >= length).then(|| self.input.drain(..length).collect())
    }
}

/// A host's path to a node, with one I/O queue.
pub struct Session {
    listener: SimListener,
    admin: Wire,
    io: Option<Wire>,
    stage: Stage,
    subsystem: String,
    host: u8,
    namespace: u32,
    controller: u16,
    /// Whether data lies in the capsule; else it is sent when it is asked for.
    in_capsule: bool,
    next_command: u16,
    waiting: BTreeMap<u16, Waiting>,
    /// The page of notifications that was read.
    page: Option<Vec<u8>>,
}

fn word16(bytes: &[u8]) -> u16 {
    u16::from_le_bytes(bytes[..2].try_into().expect("two bytes"))
}

fn word32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// A unit of this kind.
fn unit(kind: u8, header: &[u8], data: &[u8]) -> Vec<u8> {
    let head = 8 + header.len();
    let short = |number: usize| u8::try_from(number).expect("headers are short");
    let mut bytes = vec![kind, 0, short(head), if data.is_empty() { 0 } else { short(head) }];
    bytes.extend(u32::try_from(head + data.len()).expect("units are short").to_le_bytes());
    bytes.extend(header);
    bytes.extend(data);
    bytes
}

/// A command with its data in the capsule, or so much of it that is asked for.
fn capsule(mut entry: [u8; 64], data: &[u8], asked_for: usize) -> Vec<u8> {
    let length = if data.is_empty() { asked_for } else { data.len() };
    entry[32..36].copy_from_slice(&u32::try_from(length).expect("commands are short").to_le_bytes());
    (entry[1], entry[39]) = (0x40, if data.is_empty() { 0x5a } else { 1 });
    unit(4, &entry, data)
}

impl Session {
    /// Host `host` connects; the handshake goes on with [`Self::poll`]. `namespace` is the volume.
    #[must_use]
    pub fn connect(listener: &SimListener, subsystem: &str, (host, namespace): (u8, u32), in_capsule: bool) -> Self {
        let mut session = Self {
            listener: listener.clone(),
            admin: Wire::connect(listener),
            io: None,
            stage: Stage::AdminGreeting,
            subsystem: subsystem.to_owned(),
            host,
            namespace,
            controller: u16::MAX,
            in_capsule,
            next_command: 0,
            waiting: BTreeMap::new(),
            page: None,
        };
        session.admin.push();
        session
    }

    /// Whether requests can be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether nothing will come any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// Goes away without a word.
    pub fn reset(self) {
        self.admin.client.reset();
        if let Some(io) = self.io {
            io.client.reset();
        }
    }

    fn entry(&mut self, opcode: u8) -> [u8; 64] {
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[2..4].copy_from_slice(&self.next_command.to_le_bytes());
        self.next_command = self.next_command.wrapping_add(1);
        entry
    }

    /// The Connect of a queue.
    fn queue(&mut self, number: u16) -> Vec<u8> {
        let mut entry = self.entry(FABRICS);
        // Without flow control of the submission queue, and without a time-out.
        (entry[4], entry[46]) = (1, 4);
        entry[42..44].copy_from_slice(&number.to_le_bytes());
        entry[44..46].copy_from_slice(&QUEUE_SIZE.to_le_bytes());
        let mut data = vec![0; 1024];
        data[..16].fill(self.host + 1);
        data[16..18].copy_from_slice(&self.controller.to_le_bytes());
        data[256..256 + self.subsystem.len()].copy_from_slice(self.subsystem.as_bytes());
        let host = format!("nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-{:012x}", self.host);
        data[512..512 + host.len()].copy_from_slice(host.as_bytes());
        capsule(entry, &data, 0)
    }

    /// Sends a command, or two that are fused. A deed is this host's, whoever it names.
    pub fn send(&mut self, id: u64, ask: &Ask) {
        if let Ask::Reserve(_, deed) = ask {
            self.send_deed(id, *deed);
            return;
        }
        let (opcode, range, flags) = match ask {
            Ask::Read(range) => (READ, range.clone(), 0),
            Ask::Write(range, _, durable) | Ask::Exchange(range, _, _, durable) => {
                (WRITE, range.clone(), if *durable { FORCE_UNIT_ACCESS } else { 0 })
            }
            Ask::Zero(range, may_free, _) => (WRITE_ZEROES, range.clone(), if *may_free { DEALLOCATE } else { 0 }),
            Ask::Flush | Ask::Status(_) | Ask::Discard(..) | Ask::Reserve(..) => (FLUSH, 0..0, 0),
        };
        let fuse = match ask {
            Ask::Exchange(range, expected, ..) => {
                self.send_one((id, COMPARE, FIRST), range, 0, pattern::content(*expected, range));
                SECOND
            }
            _ => 0,
        };
        let payload = match ask {
            Ask::Write(range, write, _) | Ask::Exchange(range, _, write, _) => pattern::content(*write, range),
            _ => Vec::new(),
        };
        self.send_one((id, opcode, fuse), &range, flags, payload);
        self.io.as_mut().expect("it is open").push();
    }

    fn send_one(&mut self, (id, opcode, fuse): (u64, u8, u8), range: &Range<u64>, flags: u32, payload: Vec<u8>) {
        let command = self.next_command;
        let mut entry = self.entry(opcode);
        entry[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        entry[40..48].copy_from_slice(&(range.start / BLOCK).to_le_bytes());
        let count = u32::try_from((range.end - range.start) / BLOCK).expect("volumes are small");
        entry[48..52].copy_from_slice(&(count.saturating_sub(1) | flags).to_le_bytes());
        let about = if opcode == READ { About::Bytes } else { About::Volume };
        let transfer = if about == About::Bytes { index(range.end - range.start) } else { payload.len() };
        let mut bytes = capsule(entry, if self.in_capsule { &payload } else { &[] }, transfer);
        // The entry begins behind the head of its unit.
        bytes[8 + 1] |= fuse;
        let is_first = fuse == FIRST;
        self.waiting.insert(command, Waiting { id, data: Vec::new(), about, payload, first: None, is_first });
        self.io.as_mut().expect("it is open").output.extend(bytes);
    }

    fn send_deed(&mut self, id: u64, deed: Deed) {
        let reservation::Encoded { opcode, words, data: payload } = reservation::encode(deed, self.host + 1);
        let command = self.next_command;
        let mut entry = self.entry(opcode);
        entry[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        entry[40..44].copy_from_slice(&words[0].to_le_bytes());
        entry[44..48].copy_from_slice(&words[1].to_le_bytes());
        let is_report = deed == Deed::Report;
        let about = if is_report { About::Report } else { About::Reservation };
        let transfer = if is_report { reservation::REPORT_BYTES } else { payload.len() };
        let bytes = capsule(entry, if self.in_capsule { &payload } else { &[] }, transfer);
        self.waiting.insert(command, Waiting { id, data: Vec::new(), about, payload, first: None, is_first: false });
        let io = self.io.as_mut().expect("it is open");
        io.output.extend(bytes);
        io.push();
    }

    /// Asks what the controller has to tell of reservations, oldest first.
    pub fn ask_for_notification(&mut self) {
        let mut entry = self.entry(GET_LOG_PAGE);
        entry[40..44].copy_from_slice(&reservation::NOTIFICATION_PAGE.to_le_bytes());
        self.admin.output.extend(capsule(entry, &[], reservation::NOTIFICATION_BYTES));
        self.admin.push();
    }

    /// The answer, if it has come.
    pub fn take_notification(&mut self) -> Option<Notification> {
        self.page.take().map(|page| reservation::notification_of(&page))
    }

    /// Takes what has arrived; finished commands go to the end of `answers`.
    ///
    /// # Errors
    /// How the server broke the protocol.
    pub fn poll(&mut self, answers: &mut Vec<(u64, Answer)>) -> Result<(), String> {
        let mut is_alive = true;
        for wire in [Some(&mut self.admin), self.io.as_mut()].into_iter().flatten() {
            wire.push();
            is_alive &= wire.client.receive(&mut wire.input);
        }
        while let Some(unit) = self.admin.unit() {
            self.take_admin(&unit)?;
        }
        while let Some(unit) = self.io.as_mut().and_then(Wire::unit) {
            self.take(&unit, answers)?;
        }
        self.admin.push();
        if let Some(io) = &mut self.io {
            io.push();
        }
        if !is_alive {
            self.stage = Stage::Closed;
        }
        Ok(())
    }

    fn take_admin(&mut self, unit: &[u8]) -> Result<(), String> {
        match (self.stage, unit[0]) {
            (Stage::AdminGreeting, 1) => {
                let connect = self.queue(0);
                self.admin.output.extend(connect);
                self.stage = Stage::AdminConnect;
            }
            (Stage::AdminConnect, 5) if status_of(unit) == 0 => {
                self.controller = word16(&unit[8..]);
                let mut enable = self.entry(FABRICS);
                enable[44..48].copy_from_slice(&0x14_u32.to_le_bytes());
                enable[48..52].copy_from_slice(&0x0046_0001_u32.to_le_bytes());
                self.admin.output.extend(capsule(enable, &[], 0));
                self.stage = Stage::Enable;
            }
            (Stage::Enable, 5) if status_of(unit) == 0 => {
                self.io = Some(Wire::connect(&self.listener));
                self.stage = Stage::Greeting;
            }
            (_, 5) => self.stage = Stage::Closed,
            (Stage::Open, 7) => self.page = Some(unit[usize::from(unit[3])..].to_vec()),
            (stage, kind) => return Err(format!("a unit of kind {kind} at an admin queue in {stage:?}")),
        }
        Ok(())
    }

    fn take(&mut self, unit: &[u8], answers: &mut Vec<(u64, Answer)>) -> Result<(), String> {
        match (self.stage, unit[0]) {
            (Stage::Greeting, 1) => {
                let connect = self.queue(1);
                self.io.as_mut().expect("it has sent this").output.extend(connect);
                self.stage = Stage::Connect;
            }
            (Stage::Connect, 5) => {
                self.stage = if status_of(unit) == 0 { Stage::Open } else { Stage::Closed };
            }
            (Stage::Open, 5) => self.finish(word16(&unit[20..]), status_of(unit), answers)?,
            (Stage::Open, 7) => {
                let (command, start) = (word16(&unit[8..]), usize::from(unit[3]));
                let waiting = self.waiting.get_mut(&command).ok_or("data of nothing that was asked")?;
                waiting.data.extend(&unit[start..]);
                if unit[1] & 8 != 0 {
                    self.finish(command, 0, answers)?;
                }
            }
            (Stage::Open, 9) => self.send_data(unit)?,
            (stage, kind) => return Err(format!("a unit of kind {kind} at an I/O queue in {stage:?}")),
        }
        Ok(())
    }

    fn send_data(&mut self, asked: &[u8]) -> Result<(), String> {
        let (start, length) = (index(u64::from(word32(&asked[12..]))), index(u64::from(word32(&asked[16..]))));
        let waiting = self.waiting.get(&word16(&asked[8..])).ok_or("data of nothing is asked for")?;
        let data = waiting.payload.get(start..start + length).ok_or("more data is asked for than there is")?;
        let mut header = asked[8..20].to_vec();
        header.extend([0; 4]);
        let mut bytes = unit(6, &header, data);
        // The last of the command.
        bytes[1] = 4;
        self.io.as_mut().expect("it has sent this").output.extend(bytes);
        Ok(())
    }

    fn finish(&mut self, command: u16, status: u16, answers: &mut Vec<(u64, Answer)>) -> Result<(), String> {
        let waiting = self.waiting.remove(&command).ok_or("an answer to nothing that was asked")?;
        if waiting.is_first {
            // Its second one has the next number, and is answered after it.
            let second = self.waiting.get_mut(&command.wrapping_add(1)).ok_or("a first half is answered too late")?;
            second.first = Some(status);
            return Ok(());
        }
        let statuses = waiting.first.map(|first| [first, status]);
        let status = match statuses {
            Some(DIFFERS) => {
                answers.push((waiting.id, Answer::Refused(Refusal::Differs)));
                return Ok(());
            }
            Some([0, status]) if status != FUSED_FAILED => status,
            Some([first, FUSED_FAILED]) if first != 0 => first,
            Some(statuses) => return Err(format!("fused commands were answered with {statuses:x?}")),
            None => status,
        };
        let answer = match status {
            0 if waiting.about == About::Bytes => Answer::Data(waiting.data),
            0 if waiting.about == About::Report => {
                Answer::Reservation(Box::new(reservation::reservation_of(&waiting.data)?))
            }
            0 => Answer::Done,
            CONFLICT => Answer::Refused(Refusal::Reserved),
            PREEMPTED => Answer::Refused(Refusal::Preempted),
            INVALID_FIELD if waiting.about == About::Reservation => Answer::Refused(Refusal::Reserved),
            INACCESSIBLE => Answer::Refused(Refusal::Unserved),
            // The path is to blame: it was not performed, and is sent again.
            0x300..=0x3ff => Answer::Refused(Refusal::Failed(format!("status {status:#x}"))),
            0x81 => Answer::Refused(Refusal::NoSpace),
            _ => return Err(format!("status {status:#x}")),
        };
        answers.push((waiting.id, answer));
        Ok(())
    }
}

/// Status code type and status code.
fn status_of(response: &[u8]) -> u16 {
    word16(&response[22..]) >> 1 & 0x7ff
}
