//! The way to a witness: the registers of a pair kept by a process on a third machine, asked over one connection.
//!
//! ```text
//! node                                                    witness
//!   | Hello: key id, names, life, 32 random bytes, seal --> |  unknown key, wrong seal: the connection ends
//!   | <-- Welcome: 32 random bytes, or why not, seal        |
//!   | Request 0, seal ------------------------------------> |
//!   | <----------------------------------- Answer 0, seal   |  one at a time
//! ```
//!
//! # Invariants
//!
//! 1. Every message has a fixed size, and ends with its seal: HMAC-SHA256 under the pair's key of what kind of message it is, both sides' random bytes, its
//!    number on the connection, and its bytes. So one that was changed, repeated, reflected, or made by anybody else is refused, and ends the connection.
//! 2. Registers and beats travel in the form that they have in a mailbox ([`crate::format::register`]), and are verified as there.
//! 3. What does not verify changes nothing. A node whose connection ends does not know what became of its last request: a swap is
//!    [`SwapOutcome::Unknown`].
//!
//! # What it does not do
//!
//! Nothing is encrypted: registers hold no secret.

use super::{
    arbiter::SwapOutcome,
    auth::{PROOF_BYTES, PairKey},
};
use crate::{
    base::{Incarnation, PairId, PoolId, limits::NAME_BYTES_MAX},
    format::register::{Beat, MailboxError, Register, RegisterSector, from_sector, to_sector},
};
use std::mem::size_of;
use thiserror::Error;
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64, U128},
};

const MAGIC: [u8; 8] = *b"TWLWITN1";
const VERSION: u32 = 1;
/// Bytes of each side's random part of a connection.
pub const NONCE_BYTES: usize = 32;
/// Bytes of text in an answer: the reason of a failure, cut to this.
const TEXT_BYTES: usize = 112;

/// Bytes of a hello.
pub const HELLO_BYTES: usize = size_of::<RawHello>() + PROOF_BYTES;
/// Bytes of a welcome.
pub const WELCOME_BYTES: usize = size_of::<RawWelcome>() + PROOF_BYTES;
/// Bytes of a request.
pub const REQUEST_BYTES: usize = size_of::<RawRequest>() + PROOF_BYTES;
/// Bytes of an answer.
pub const ANSWER_BYTES: usize = size_of::<RawAnswer>() + PROOF_BYTES;

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawHello {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    key: U128,
    incarnation: U128,
    nonce: [u8; NONCE_BYTES],
    name: [u8; NAME_BYTES_MAX],
    partner: [u8; NAME_BYTES_MAX],
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawWelcome {
    magic: [u8; 8],
    version: U32,
    /// 0: come in; 1: the text says why not.
    refused: U32,
    nonce: [u8; NONCE_BYTES],
    text: [u8; TEXT_BYTES],
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawRequest {
    kind: U32,
    reserved: U32,
    sequence: U64,
    pool: U128,
    fences: U128,
    count: U64,
    time_ns: U64,
    old: RegisterSector,
    new: RegisterSector,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawAnswer {
    kind: U32,
    reserved: U32,
    sequence: U64,
    incarnation: U128,
    fences: U128,
    count: U64,
    reserved_end: U64,
    register: RegisterSector,
    text: [u8; TEXT_BYTES],
}

const _: () = assert!(size_of::<RawHello>() == 208);
const _: () = assert!(size_of::<RawWelcome>() == 160);
const _: () = assert!(size_of::<RawRequest>() == 64 + 2 * 512);
const _: () = assert!(size_of::<RawAnswer>() == 64 + 512 + TEXT_BYTES);

/// Why a message is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WitnessError {
    /// Something else speaks here, or another version of it.
    #[error("it does not speak version {VERSION} of the witness' protocol")]
    Foreign,
    /// Whoever made it does not know the key, or it was changed or repeated.
    #[error("a message is not sealed with the pair's key")]
    Seal,
    /// A field has no meaning.
    #[error("a message has a wrong {0}")]
    Field(&'static str),
    /// A register in it is not whole.
    #[error("a register in a message: {0}")]
    Register(#[from] MailboxError),
    /// The witness does not take this node, for this reason.
    #[error("the witness refuses: {0}")]
    Refused(String),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The node's name.
    pub name: String,
    /// Its partner's.
    pub partner: String,
    /// Its life.
    pub incarnation: Incarnation,
    /// Random bytes that were never used before.
    pub nonce: [u8; NONCE_BYTES],
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The register of a pool.
    Read(PoolId),
    /// That `new` replaces `old`.
    Swap(Option<Register>, Register),
    /// That the node lives.
    Beat(BeatRequest),
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeatRequest {
    /// Grows with every beat.
    pub count: u64,
    /// The life of the partner that must not renew its lease.
    pub fences: Option<Incarnation>,
    /// For people only.
    pub time_ns: u64,
}

/// The partner's newest sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartnerBeat {
    /// Of which life of it.
    pub incarnation: Incarnation,
    /// Grows with every beat.
    pub count: u64,
    /// The life of the asking node that the partner fences.
    pub fences: Option<Incarnation>,
}

impl From<&Beat> for PartnerBeat {
    fn from(beat: &Beat) -> Self {
        Self { incarnation: beat.incarnation, count: beat.count, fences: beat.fences }
    }
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `Read`.
    Register(Option<Register>),
    /// To `Swap`.
    Swapped(SwapOutcome),
    /// To `Beat`.
    Beat(Option<PartnerBeat>),
    /// To `Read` and `Beat`: why not.
    Failed(String),
}

fn life(id: Incarnation) -> Option<Incarnation> {
    Some(id).filter(|&id| id != Incarnation::default())
}

/// The text at the start of a field that ends with zeroes.
fn text(field: &[u8], what: &'static str) -> Result<String, WitnessError> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let (text, rest) = field.split_at(end);
    let text = str::from_utf8(text).ok().filter(|_| rest.iter().all(|&byte| byte == 0));
    text.map(str::to_owned).ok_or(WitnessError::Field(what))
}

/// Writes a text, cut to what the field takes.
fn write_text(field: &mut [u8], text: &str) {
    let mut end = text.len().min(field.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let (place, _) = field.split_at_mut(end);
    place.copy_from_slice(text.as_bytes().get(..end).expect("cut to its length"));
}

/// A message and its seal, as one.
fn sealed<T: IntoBytes + Immutable, const N: usize>(raw: &T, seal: &[u8; PROOF_BYTES]) -> [u8; N] {
    let mut bytes = [0; N];
    let (message, end) = bytes.split_at_mut(size_of::<T>());
    message.copy_from_slice(raw.as_bytes());
    end.copy_from_slice(seal);
    bytes
}

/// The message in `bytes`, and its seal.
fn opened<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<(T, &[u8]), WitnessError> {
    T::read_from_prefix(bytes).map_err(|_| WitnessError::Foreign)
}

impl Hello {
    /// Its bytes.
    ///
    /// # Panics
    /// When a name is longer than a name can be: the configuration was checked.
    #[must_use]
    pub fn encode(&self, key: &PairKey) -> [u8; HELLO_BYTES] {
        assert!(self.name.len().max(self.partner.len()) <= NAME_BYTES_MAX, "a name fits its field");
        let mut raw = RawHello::new_zeroed();
        (raw.magic, raw.version) = (MAGIC, VERSION.into());
        (raw.key, raw.incarnation, raw.nonce) = (key.id().0.into(), self.incarnation.0.into(), self.nonce);
        write_text(&mut raw.name, &self.name);
        write_text(&mut raw.partner, &self.partner);
        sealed(&raw, &key.seal(b"twinlog witness hello", &[raw.as_bytes()]))
    }

    /// Which key a hello names: whose seal it should have.
    ///
    /// # Errors
    /// When it is none.
    pub fn key_id(bytes: &[u8; HELLO_BYTES]) -> Result<PairId, WitnessError> {
        let (raw, _) = opened::<RawHello>(bytes)?;
        if raw.magic != MAGIC || raw.version.get() != VERSION {
            return Err(WitnessError::Foreign);
        }
        Ok(PairId(raw.key.get()))
    }

    /// The hello in `bytes`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(bytes: &[u8; HELLO_BYTES], key: &PairKey) -> Result<Self, WitnessError> {
        let _named = Self::key_id(bytes)?;
        let (raw, seal) = opened::<RawHello>(bytes)?;
        if !key.is_seal(b"twinlog witness hello", &[raw.as_bytes()], seal) {
            return Err(WitnessError::Seal);
        }
        let (name, partner) = (text(&raw.name, "name")?, text(&raw.partner, "name")?);
        let incarnation = life(Incarnation(raw.incarnation.get())).ok_or(WitnessError::Field("life"))?;
        if name.is_empty() || partner.is_empty() || name == partner || raw.reserved.get() != 0 {
            return Err(WitnessError::Field("name"));
        }
        Ok(Self { name, partner, incarnation, nonce: raw.nonce })
    }
}

/// A connection after both sides have said their random bytes, as each of them has it.
#[derive(Debug)]
pub struct Session {
    key: PairKey,
    nonces: [u8; 2 * NONCE_BYTES],
    /// Number of the next request.
    sequence: u64,
}

impl Session {
    fn new(key: &PairKey, node: &[u8; NONCE_BYTES], witness: &[u8; NONCE_BYTES]) -> Self {
        let mut nonces = [0; 2 * NONCE_BYTES];
        let (first, second) = nonces.split_at_mut(NONCE_BYTES);
        first.copy_from_slice(node);
        second.copy_from_slice(witness);
        Self { key: key.clone(), nonces, sequence: 0 }
    }

    /// The witness' end, and its welcome; `refusal` says why the node may not come in.
    #[must_use]
    pub fn welcome(
        key: &PairKey,
        hello: &Hello,
        nonce: [u8; NONCE_BYTES],
        refusal: Option<&str>,
    ) -> (Self, [u8; WELCOME_BYTES]) {
        let mut raw = RawWelcome::new_zeroed();
        (raw.magic, raw.version, raw.nonce) = (MAGIC, VERSION.into(), nonce);
        raw.refused = u32::from(refusal.is_some()).into();
        write_text(&mut raw.text, refusal.unwrap_or_default());
        let seal = key.seal(b"twinlog witness welcome", &[&hello.nonce, raw.as_bytes()]);
        (Self::new(key, &hello.nonce, &nonce), sealed(&raw, &seal))
    }

    /// The node's end, once the witness has answered its hello.
    ///
    /// # Errors
    /// When it is no answer to this hello, or the witness refuses.
    pub fn welcomed(key: &PairKey, hello: &Hello, bytes: &[u8; WELCOME_BYTES]) -> Result<Self, WitnessError> {
        let (raw, seal) = opened::<RawWelcome>(bytes)?;
        if raw.magic != MAGIC || raw.version.get() != VERSION {
            return Err(WitnessError::Foreign);
        }
        if !key.is_seal(b"twinlog witness welcome", &[&hello.nonce, raw.as_bytes()], seal) {
            return Err(WitnessError::Seal);
        }
        match raw.refused.get() {
            0 => Ok(Self::new(key, &hello.nonce, &raw.nonce)),
            _ => Err(WitnessError::Refused(text(&raw.text, "text")?)),
        }
    }

    /// The next request, sealed. Its answer is to be opened before another one is made.
    #[must_use]
    pub fn ask(&self, request: &Request) -> [u8; REQUEST_BYTES] {
        let raw = encode_request(request, self.sequence, self.key.id());
        sealed(&raw, &self.key.seal(b"twinlog witness request", &[&self.nonces, raw.as_bytes()]))
    }

    /// The request in `bytes`, at the witness.
    ///
    /// # Errors
    /// The first thing that is wrong: the connection ends.
    pub fn asked(&self, bytes: &[u8; REQUEST_BYTES]) -> Result<Request, WitnessError> {
        let (raw, seal) = opened::<RawRequest>(bytes)?;
        if !self.key.is_seal(b"twinlog witness request", &[&self.nonces, raw.as_bytes()], seal) {
            return Err(WitnessError::Seal);
        }
        verify_request(&raw, self.sequence, self.key.id())
    }

    /// The answer to the request that was opened last, sealed.
    #[must_use]
    pub fn answer(&mut self, answer: &Answer) -> [u8; ANSWER_BYTES] {
        let raw = encode_answer(answer, self.sequence, self.key.id());
        self.sequence += 1;
        sealed(&raw, &self.key.seal(b"twinlog witness answer", &[&self.nonces, raw.as_bytes()]))
    }

    /// The answer in `bytes`, at the node.
    ///
    /// # Errors
    /// The first thing that is wrong: the connection ends.
    pub fn answered(&mut self, bytes: &[u8; ANSWER_BYTES]) -> Result<Answer, WitnessError> {
        let (raw, seal) = opened::<RawAnswer>(bytes)?;
        if !self.key.is_seal(b"twinlog witness answer", &[&self.nonces, raw.as_bytes()], seal) {
            return Err(WitnessError::Seal);
        }
        let answer = verify_answer(&raw, self.sequence, self.key.id())?;
        self.sequence += 1;
        Ok(answer)
    }
}

fn encode_request(request: &Request, sequence: u64, pair: PairId) -> RawRequest {
    let mut raw = RawRequest::new_zeroed();
    raw.sequence = sequence.into();
    match request {
        Request::Read(pool) => (raw.kind, raw.pool) = (1.into(), pool.0.into()),
        Request::Swap(old, new) => {
            (raw.kind, raw.pool) = (2.into(), new.pool.0.into());
            (raw.old, raw.new) = (to_sector(old.as_ref(), pair), to_sector(Some(new), pair));
        }
        Request::Beat(BeatRequest { count, fences, time_ns }) => {
            (raw.kind, raw.count, raw.time_ns) = (3.into(), (*count).into(), (*time_ns).into());
            raw.fences = fences.unwrap_or_default().0.into();
        }
    }
    raw
}

fn verify_request(raw: &RawRequest, sequence: u64, pair: PairId) -> Result<Request, WitnessError> {
    let pool = PoolId(raw.pool.get());
    let (old, new) = (from_sector(&raw.old, pair)?, from_sector(&raw.new, pair)?);
    let request = match (raw.kind.get(), new) {
        (1, None) => Request::Read(pool),
        (2, Some(new)) if new.pool == pool && old.is_none_or(|old| old.pool == pool) => Request::Swap(old, new),
        (3, None) => {
            let fences = life(Incarnation(raw.fences.get()));
            Request::Beat(BeatRequest { count: raw.count.get(), fences, time_ns: raw.time_ns.get() })
        }
        _ => return Err(WitnessError::Field("kind")),
    };
    // One form for each request: what it does not use is zero.
    let is_exact = encode_request(&request, sequence, pair).as_bytes() == raw.as_bytes();
    if is_exact { Ok(request) } else { Err(WitnessError::Field("number, or a field that is not used")) }
}

fn encode_answer(answer: &Answer, sequence: u64, pair: PairId) -> RawAnswer {
    let mut raw = RawAnswer::new_zeroed();
    raw.sequence = sequence.into();
    match answer {
        Answer::Register(register) => (raw.kind, raw.register) = (1.into(), to_sector(register.as_ref(), pair)),
        Answer::Swapped(SwapOutcome::Done(register)) => {
            (raw.kind, raw.register) = (2.into(), to_sector(Some(register), pair));
        }
        Answer::Swapped(SwapOutcome::Changed(register)) => {
            (raw.kind, raw.register) = (3.into(), to_sector(register.as_ref(), pair));
        }
        Answer::Swapped(SwapOutcome::Unknown(reason)) => {
            raw.kind = 4.into();
            write_text(&mut raw.text, reason);
        }
        Answer::Beat(beat) => {
            raw.kind = 5.into();
            if let Some(PartnerBeat { incarnation, count, fences }) = beat {
                (raw.incarnation, raw.count) = (incarnation.0.into(), (*count).into());
                raw.fences = fences.unwrap_or_default().0.into();
            }
        }
        Answer::Failed(reason) => {
            raw.kind = 6.into();
            write_text(&mut raw.text, reason);
        }
    }
    raw
}

fn verify_answer(raw: &RawAnswer, sequence: u64, pair: PairId) -> Result<Answer, WitnessError> {
    let (register, reason) = (from_sector(&raw.register, pair)?, text(&raw.text, "text")?);
    let answer = match (raw.kind.get(), register) {
        (1, register) => Answer::Register(register),
        (2, Some(register)) => Answer::Swapped(SwapOutcome::Done(register)),
        (3, register) => Answer::Swapped(SwapOutcome::Changed(register)),
        (4, None) => Answer::Swapped(SwapOutcome::Unknown(reason)),
        (5, None) => Answer::Beat(life(Incarnation(raw.incarnation.get())).map(|incarnation| {
            let fences = life(Incarnation(raw.fences.get()));
            PartnerBeat { incarnation, count: raw.count.get(), fences }
        })),
        (6, None) => Answer::Failed(reason),
        _ => return Err(WitnessError::Field("kind")),
    };
    let is_exact = encode_answer(&answer, sequence, pair).as_bytes() == raw.as_bytes();
    if is_exact { Ok(answer) } else { Err(WitnessError::Field("number, or a field that is not used")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{Epoch, PortionId},
        pair::ownership,
    };

    fn key() -> PairKey {
        PairKey::new([7; 32])
    }

    fn hello() -> Hello {
        Hello { name: "a".to_owned(), partner: "b".repeat(64), incarnation: Incarnation(5), nonce: [1; NONCE_BYTES] }
    }

    fn sessions() -> (Session, Session) {
        let (witness, welcome) = Session::welcome(&key(), &hello(), [2; NONCE_BYTES], None);
        (Session::welcomed(&key(), &hello(), &welcome).expect("welcome"), witness)
    }

    fn register() -> Register {
        ownership::create(PoolId(3), Epoch(9), PortionId(4), 5)
    }

    fn requests() -> [Request; 5] {
        let next = ownership::claim(&register(), crate::format::register::Side::Home, PortionId(4), 6);
        let fences = Some(Incarnation(1 << 100));
        [
            Request::Read(PoolId(3)),
            Request::Swap(None, register()),
            Request::Swap(Some(register()), next),
            Request::Beat(BeatRequest { count: 1, fences: None, time_ns: 0 }),
            Request::Beat(BeatRequest { count: 2, fences, time_ns: 9 }),
        ]
    }

    fn answers() -> [Answer; 8] {
        let beat = PartnerBeat { incarnation: Incarnation(8), count: 4, fences: Some(Incarnation(5)) };
        [
            Answer::Register(None),
            Answer::Register(Some(register())),
            Answer::Swapped(SwapOutcome::Done(register())),
            Answer::Swapped(SwapOutcome::Changed(None)),
            Answer::Swapped(SwapOutcome::Unknown("a disk".to_owned())),
            Answer::Beat(None),
            Answer::Beat(Some(beat)),
            Answer::Failed("a disk".to_owned()),
        ]
    }

    #[test]
    fn a_conversation() {
        let bytes = hello().encode(&key());
        assert_eq!(Hello::key_id(&bytes), Ok(key().id()));
        assert_eq!(Hello::verify(&bytes, &key()), Ok(hello()));
        let (mut node, mut witness) = sessions();
        for answer in answers() {
            for request in requests() {
                assert_eq!(witness.asked(&node.ask(&request)), Ok(request));
                assert_eq!(node.answered(&witness.answer(&answer)), Ok(answer.clone()));
            }
        }
        let (_, refused) = Session::welcome(&key(), &hello(), [2; NONCE_BYTES], Some(&"\u{e9}".repeat(80)));
        let why = Session::welcomed(&key(), &hello(), &refused).expect_err("refused");
        assert_eq!(why, WitnessError::Refused("\u{e9}".repeat(56)), "cut between letters");
    }

    #[test]
    fn nothing_is_taken_that_was_changed_repeated_or_made_by_another() {
        let (mut node, mut witness) = sessions();
        let request = node.ask(&Request::Read(PoolId(3)));
        for bit in 0..request.len() * 8 {
            let mut flipped = request;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(witness.asked(&flipped).is_err(), "bit {bit}");
        }
        witness.asked(&request).expect("as it was sent");
        let answer = witness.answer(&Answer::Register(None));
        assert!(witness.asked(&request).is_err(), "a repetition");
        for bit in 0..answer.len() * 8 {
            let mut flipped = answer;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(node.answered(&flipped).is_err(), "bit {bit}");
        }
        node.answered(&answer).expect("as it was sent");
        assert!(node.answered(&answer).is_err(), "a repetition");
        let (other, _) = Session::welcome(&key(), &hello(), [3; NONCE_BYTES], None);
        assert_eq!(other.asked(&request), Err(WitnessError::Seal), "of another connection");
        let stranger = PairKey::new([8; 32]);
        assert_eq!(Hello::verify(&hello().encode(&stranger), &key()), Err(WitnessError::Seal));
        let (_, welcome) = Session::welcome(&stranger, &hello(), [2; NONCE_BYTES], None);
        assert!(Session::welcomed(&key(), &hello(), &welcome).is_err());
        let later = Hello { nonce: [9; NONCE_BYTES], ..hello() };
        let (_, welcome) = Session::welcome(&key(), &hello(), [2; NONCE_BYTES], None);
        assert!(Session::welcomed(&key(), &later, &welcome).is_err(), "the answer to another hello");
    }
}
