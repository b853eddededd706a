//! An NBD client on a simulated connection, written from the protocol's document and not from the server's codec.

use super::{Answer, Ask, Refusal};
use crate::{pattern, setup::index};
use std::{collections::BTreeMap, ops::Range};
use twinlog::base::ObjectId;
use twinlog_sim::{SimClient, SimListener};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const OPTION_STRUCTURED: u32 = 8;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const ENOSPC: u32 = 28;
const EINVAL: u32 = 22;
const ESHUTDOWN: u32 = 108;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Options,
    Open,
    Closed,
}

/// A request that waits for its reply.
struct Waiting {
    /// Bytes that a read wants; empty for others.
    range: Range<u64>,
    data: Vec<u8>,
    error: Option<u32>,
}

/// A connection to one volume.
pub struct Session {
    client: SimClient,
    /// The volume.
    pub volume: ObjectId,
    name: String,
    is_structured: bool,
    stage: Stage,
    was_open: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    waiting: BTreeMap<u64, Waiting>,
}

fn word16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes[..2].try_into().expect("two bytes"))
}

fn word32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn word64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"))
}

fn length32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("short").to_be_bytes()
}

impl Session {
    /// Connects; the handshake goes on with [`Self::poll`].
    #[must_use]
    pub fn connect(listener: &SimListener, volume: ObjectId, name: &str, is_structured: bool) -> Self {
        Self {
            client: listener.connect(0),
            volume,
            name: name.to_owned(),
            is_structured,
            stage: Stage::Greeting,
            was_open: false,
            input: Vec::new(),
            output: Vec::new(),
            waiting: BTreeMap::new(),
        }
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

    /// Whether it ended during the handshake.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.is_closed() && !self.was_open
    }

    /// Goes away without a word. Returns the requests that were not answered.
    pub fn reset(self) -> Vec<u64> {
        self.client.reset();
        self.waiting.into_keys().collect()
    }

    /// Requests that were not answered.
    pub fn unanswered(&self) -> impl Iterator<Item = u64> + '_ {
        self.waiting.keys().copied()
    }

    /// Sends a request, or as much of it as there is room for now. `Status` and `Reserve` are not asked this way.
    pub fn send(&mut self, id: u64, ask: &Ask) {
        let fua = |durable: bool| if durable { FUA } else { 0 };
        let (flags, command, range, payload) = match ask {
            Ask::Read(range) => (0, 0_u16, range.clone(), Vec::new()),
            Ask::Write(range, write, durable) => {
                let mut bytes = vec![0; index(range.end - range.start)];
                pattern::fill(*write, range.start, &mut bytes);
                (fua(*durable), 1, range.clone(), bytes)
            }
            Ask::Flush | Ask::Status(_) | Ask::Reserve(..) | Ask::Exchange(..) => (0, 3, 0..0, Vec::new()),
            Ask::Discard(range, durable) => (fua(*durable), 4, range.clone(), Vec::new()),
            Ask::Zero(range, may_free, durable) => {
                (fua(*durable) | if *may_free { 0 } else { NO_HOLE }, 6, range.clone(), Vec::new())
            }
        };
        let length = u32::try_from(range.end - range.start).expect("volumes are small");
        self.output.extend(REQUEST_MAGIC.to_be_bytes());
        self.output.extend(flags.to_be_bytes());
        self.output.extend(command.to_be_bytes());
        self.output.extend(id.to_be_bytes());
        self.output.extend(range.start.to_be_bytes());
        self.output.extend(length.to_be_bytes());
        self.output.extend(payload);
        let wanted = if command == 0 { range } else { 0..0 };
        let data = vec![0; index(wanted.end - wanted.start)];
        self.waiting.insert(id, Waiting { range: wanted, data, error: None });
        self.push();
    }

    /// Sends what waits.
    fn push(&mut self) {
        if !self.output.is_empty() {
            let sent = self.client.send(&self.output);
            self.output.drain(..sent);
        }
    }

    /// Takes what has arrived; finished requests go to the end of `answers`.
    ///
    /// # Errors
    /// How the server broke the protocol.
    pub fn poll(&mut self, answers: &mut Vec<(u64, Answer)>) -> Result<(), String> {
        self.push();
        let is_alive = self.client.receive(&mut self.input);
        loop {
            let used = match self.stage {
                Stage::Greeting => self.greeting(),
                Stage::Options => self.option_reply()?,
                Stage::Open => self.reply(answers)?,
                Stage::Closed => 0,
            };
            if used == 0 {
                break;
            }
            self.input.drain(..used);
        }
        if !is_alive {
            self.stage = Stage::Closed;
        }
        Ok(())
    }

    fn greeting(&mut self) -> usize {
        if self.input.len() < 18 {
            return 0;
        }
        self.output.extend(3_u32.to_be_bytes());
        if self.is_structured {
            self.option(OPTION_STRUCTURED, &[]);
        }
        let name = self.name.clone().into_bytes();
        self.option(OPTION_GO, &[&length32(&name)[..], &name, &[0, 0]].concat());
        self.push();
        self.stage = Stage::Options;
        18
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        self.output.extend(b"IHAVEOPT");
        self.output.extend(option.to_be_bytes());
        self.output.extend(length32(data));
        self.output.extend(data);
    }

    fn option_reply(&mut self) -> Result<usize, String> {
        if self.input.len() < 20 {
            return Ok(0);
        }
        let (option, kind) = (word32(&self.input[8..]), word32(&self.input[12..]));
        let total = 20 + word32(&self.input[16..]) as usize;
        if self.input.len() < total {
            return Ok(0);
        }
        match (option, kind) {
            (OPTION_GO, REPLY_ACK) => (self.stage, self.was_open) = (Stage::Open, true),
            (OPTION_GO, REPLY_INFO) | (OPTION_STRUCTURED, REPLY_ACK) => {}
            // The volume was deleted meanwhile, or the node is stopping.
            (OPTION_GO | OPTION_STRUCTURED, refused) if refused >> 31 == 1 => self.stage = Stage::Closed,
            _ => return Err(format!("a reply of type {kind:#x} to option {option}")),
        }
        Ok(total)
    }

    fn reply(&mut self, answers: &mut Vec<(u64, Answer)>) -> Result<usize, String> {
        if self.input.len() < 16 {
            return Ok(0);
        }
        match word32(&self.input) {
            SIMPLE_MAGIC => self.simple_reply(answers),
            CHUNK_MAGIC if self.is_structured => self.chunk(answers),
            magic => Err(format!("a reply with magic {magic:#x}")),
        }
    }

    fn simple_reply(&mut self, answers: &mut Vec<(u64, Answer)>) -> Result<usize, String> {
        let (error, id) = (word32(&self.input[4..]), word64(&self.input[8..]));
        let waiting = self.waiting.get_mut(&id).ok_or("a reply to nothing that was asked")?;
        let length = if error == 0 { waiting.data.len() } else { 0 };
        if self.input.len() < 16 + length {
            return Ok(0);
        }
        if length > 0 {
            waiting.data.copy_from_slice(&self.input[16..16 + length]);
        }
        waiting.error = (error != 0).then_some(error);
        self.finish(id, answers);
        Ok(16 + length)
    }

    fn chunk(&mut self, answers: &mut Vec<(u64, Answer)>) -> Result<usize, String> {
        if self.input.len() < 20 {
            return Ok(0);
        }
        let (flags, kind, id) = (word16(&self.input[4..]), word16(&self.input[6..]), word64(&self.input[8..]));
        let total = 20 + word32(&self.input[16..]) as usize;
        if self.input.len() < total {
            return Ok(0);
        }
        let payload = &self.input[20..total];
        let waiting = self.waiting.get_mut(&id).ok_or("a chunk of nothing that was asked")?;
        let place = |offset: u64, length: usize| {
            let start = index(offset.checked_sub(waiting.range.start).ok_or("data before the range")?);
            if start + length > waiting.data.len() { Err("data beyond the range") } else { Ok(start..start + length) }
        };
        match kind {
            0 => {}
            1 => {
                let range = place(word64(payload), payload.len() - 8)?;
                waiting.data[range].copy_from_slice(&payload[8..]);
            }
            2 => {
                let range = place(word64(payload), word32(&payload[8..]) as usize)?;
                waiting.data[range].fill(0);
            }
            error if error >> 15 == 1 => waiting.error = Some(word32(payload)),
            other => return Err(format!("a chunk of kind {other}")),
        }
        if flags & 1 == 1 {
            self.finish(id, answers);
        }
        Ok(total)
    }

    fn finish(&mut self, id: u64, answers: &mut Vec<(u64, Answer)>) {
        let waiting = self.waiting.remove(&id).expect("looked up before");
        let answer = match waiting.error {
            None if waiting.range.is_empty() => Answer::Done,
            None => Answer::Data(waiting.data),
            Some(ENOSPC) => Answer::Refused(Refusal::NoSpace),
            Some(EINVAL) => Answer::Refused(Refusal::Beyond),
            Some(ESHUTDOWN) => Answer::Refused(Refusal::ShuttingDown),
            Some(number) => Answer::Refused(Refusal::Failed(format!("error {number}"))),
        };
        answers.push((id, answer));
    }
}
