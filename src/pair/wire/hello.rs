//! Frames of a connection itself: who speaks, refusals, heartbeats.

use super::{FrameError, Message, need, take, text_of, write_text};
use crate::{
    base::{
        Incarnation, PairId, PoolId, PortionId,
        limits::{LANES_MAX, NAME_BYTES_MAX, PAIR_POOLS_MAX},
    },
    changelog::PortionRole,
};
use std::mem::size_of;
use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64, U128},
};

/// Bytes of the longest hello.
pub(super) const BYTES_MAX: usize = size_of::<RawHello>() + PAIR_POOLS_MAX * size_of::<RawPool>();

/// Which part a node plays on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// It connects: its name is the lesser one.
    Connects = 1,
    /// It listens.
    Listens = 2,
}

impl Role {
    /// The other node's.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Connects => Self::Listens,
            Self::Listens => Self::Connects,
        }
    }
}

/// What a node has of a pool: its local portion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFacts {
    /// Which pool.
    pub pool: PoolId,
    /// `Own` at its home, `Mirror` at the other node.
    pub role: PortionRole,
    /// Which portion this is.
    pub portion: PortionId,
    /// Bytes of each lane's ring.
    pub ring_bytes: u64,
    /// Unit of its log memory.
    pub unit_bytes: u32,
    /// Its lanes.
    pub lane_count: u16,
}

/// Who speaks, and what it believes of the pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which part it plays here.
    pub role: Role,
    /// Which path this is: the index of the address that the connecting node has connected to.
    pub path: u8,
    /// Features that its partner must know.
    pub features_required: u64,
    /// The pair.
    pub pair: PairId,
    /// Checksum of everything that both nodes must have configured alike.
    pub configuration: u64,
    /// This life of the process.
    pub incarnation: Incarnation,
    /// The connecting node's number of the session: grows when all paths are lost. The listening node says zero.
    pub session: u64,
    /// The connecting node's number of the connection. The listening node says zero.
    pub connection: u64,
    /// Never used before.
    pub challenge: [u8; 32],
    /// The node's name.
    pub name: String,
    /// The name of the node that it expects.
    pub partner: String,
    /// Every pool of the pair.
    pub pools: Vec<PoolFacts>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    role: u8,
    path: u8,
    pool_count: u8,
    name_bytes: u8,
    partner_bytes: u8,
    reserved: [u8; 3],
    features_required: U64,
    pair: U128,
    configuration: U64,
    incarnation: U128,
    session: U64,
    connection: U64,
    challenge: [u8; 32],
    name: [u8; NAME_BYTES_MAX],
    partner: [u8; NAME_BYTES_MAX],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPool {
    pool: U128,
    portion: U128,
    ring_bytes: U64,
    unit_bytes: U32,
    lane_count: U16,
    role: U16,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<RawHello>() == 232);
const _: () = assert!(size_of::<RawPool>() == 64);

impl Hello {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let [(name, name_bytes), (partner, partner_bytes)] = [&self.name, &self.partner].map(|name| pad_name(name));
        assert!(self.pools.len() <= PAIR_POOLS_MAX, "the limit of pools");
        let raw = RawHello {
            role: self.role as u8,
            path: self.path,
            pool_count: u8::try_from(self.pools.len()).expect("checked above"),
            name_bytes,
            partner_bytes,
            reserved: [0; 3],
            features_required: self.features_required.into(),
            pair: self.pair.0.into(),
            configuration: self.configuration.into(),
            incarnation: self.incarnation.0.into(),
            session: self.session.into(),
            connection: self.connection.into(),
            challenge: self.challenge,
            name,
            partner,
        };
        output.extend_from_slice(raw.as_bytes());
        for facts in &self.pools {
            output.extend_from_slice(RawPool::new(facts).as_bytes());
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, rest) = take::<RawHello>(bytes)?;
        let role = match raw.role {
            1 => Role::Connects,
            2 => Role::Listens,
            _ => return Err(FrameError::Malformed("a node connects or listens")),
        };
        let pools = <[RawPool]>::ref_from_bytes(rest).map_err(|_| FrameError::Malformed("half a pool"))?;
        need(usize::from(raw.pool_count) == pools.len(), "another number of pools than it says")?;
        need(pools.len() <= PAIR_POOLS_MAX, "no pair has so many pools")?;
        need(raw.reserved == [0; 3], "reserved bytes are not zero")?;
        Ok(Self {
            role,
            path: raw.path,
            features_required: raw.features_required.get(),
            pair: PairId(raw.pair.get()),
            configuration: raw.configuration.get(),
            incarnation: Incarnation(raw.incarnation.get()),
            session: raw.session.get(),
            connection: raw.connection.get(),
            challenge: raw.challenge,
            name: name_of(&raw.name, raw.name_bytes)?,
            partner: name_of(&raw.partner, raw.partner_bytes)?,
            pools: pools.iter().map(RawPool::read).collect::<Result<_, _>>()?,
        })
    }
}

impl RawPool {
    fn new(facts: &PoolFacts) -> Self {
        Self {
            pool: facts.pool.0.into(),
            portion: facts.portion.0.into(),
            ring_bytes: facts.ring_bytes.into(),
            unit_bytes: facts.unit_bytes.into(),
            lane_count: facts.lane_count.into(),
            role: (facts.role as u16).into(),
            reserved: [0; 16],
        }
    }

    fn read(&self) -> Result<PoolFacts, FrameError> {
        let role = match self.role.get() {
            1 => PortionRole::Own,
            2 => PortionRole::Mirror,
            _ => return Err(FrameError::Malformed("a portion is the node's own or a mirror")),
        };
        let lanes = usize::from(self.lane_count.get());
        need((1..=LANES_MAX).contains(&lanes), "no portion has so many lanes")?;
        need(self.pool != U128::ZERO && self.reserved == [0; 16], "a pool without an id, or with reserved bytes")?;
        Ok(PoolFacts {
            pool: PoolId(self.pool.get()),
            role,
            portion: PortionId(self.portion.get()),
            ring_bytes: self.ring_bytes.get(),
            unit_bytes: self.unit_bytes.get(),
            lane_count: self.lane_count.get(),
        })
    }
}

pub(super) fn pad_name(name: &str) -> ([u8; NAME_BYTES_MAX], u8) {
    let mut padded = [0; NAME_BYTES_MAX];
    let place = padded.get_mut(..name.len()).expect("a name has at most 64 bytes");
    place.copy_from_slice(name.as_bytes());
    (padded, u8::try_from(name.len()).expect("at most 64"))
}

pub(super) fn name_of(padded: &[u8; NAME_BYTES_MAX], bytes: u8) -> Result<String, FrameError> {
    let (name, rest) = padded.split_at_checked(bytes.into()).ok_or(FrameError::Malformed("a name is too long"))?;
    let text = str::from_utf8(name).ok().filter(|text| !text.is_empty() && !text.contains(char::is_control));
    need(rest.iter().all(|&byte| byte == 0), "bytes behind a name")?;
    text.map(str::to_owned).ok_or(FrameError::Malformed("a name cannot be shown"))
}

/// Why a node does not go on with the one that has connected, or that it has connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum RefusalReason {
    /// Another version of the interconnect.
    Version = 1,
    /// It does not know the pair's key.
    Key = 2,
    /// Not the node that was expected.
    Name = 3,
    /// Of another pair.
    Pair = 4,
    /// What both must have configured alike differs.
    Configuration = 5,
    /// It has other pools, or their homes differ.
    Pools = 6,
    /// Portions of the same pool have other lanes or rings.
    Portions = 7,
    /// It requires a feature that this program does not have.
    Features = 8,
    /// Both connect, or both listen.
    Role = 9,
    /// The session is over: a new one has to be begun. No fault.
    SessionOver = 10,
    /// It sent what cannot be meant.
    Malformed = 11,
    /// The node stops. No fault.
    Stopping = 12,
    /// One encrypts and the other does not. Never sent: neither understands the other.
    Encryption = 13,
}

impl RefusalReason {
    /// What makes the nodes come together, for people.
    #[must_use]
    pub fn mending(self) -> &'static str {
        match self {
            Self::Version | Self::Features => "run the same version of twinlog on both nodes",
            Self::Key => "give both nodes the same file as [pair] key",
            Self::Name | Self::Pair | Self::Role => {
                "compare `name` and [pair] partner, key and addresses of both node.toml"
            }
            Self::Configuration => {
                "make [pair] deadline_ms, encrypt, whether fence has `reservation`, and [memory] limit the same in both node.toml, then restart both nodes"
            }
            Self::Pools | Self::Portions => "compare [pool], [partner_pool], [log] and [mirror] of both node.toml",
            Self::Encryption => "make [pair] encrypt the same in both node.toml, then restart both nodes",
            Self::SessionOver | Self::Malformed | Self::Stopping => "nothing: it is tried again",
        }
    }

    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::Version,
        Self::Key,
        Self::Name,
        Self::Pair,
        Self::Configuration,
        Self::Pools,
        Self::Portions,
        Self::Features,
        Self::Role,
        Self::SessionOver,
        Self::Malformed,
        Self::Stopping,
        Self::Encryption,
    ];

    /// Its name in `status` and logs: lower case, words joined by `-`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Key => "key",
            Self::Name => "name",
            Self::Pair => "pair",
            Self::Configuration => "configuration",
            Self::Pools => "pools",
            Self::Portions => "portions",
            Self::Features => "features",
            Self::Role => "role",
            Self::SessionOver => "session-over",
            Self::Malformed => "malformed",
            Self::Stopping => "stopping",
            Self::Encryption => "encryption",
        }
    }
}

/// A refusal: its reason, and the details for people.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{text}")]
pub struct Refusal {
    /// For programs.
    pub reason: RefusalReason,
    /// For people.
    pub text: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRefusal {
    reason: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<RawRefusal>() == 8);

impl Refusal {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(RawRefusal { reason: (self.reason as u16).into(), reserved: [0; 6] }.as_bytes());
        write_text(&self.text, output);
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, text) = take::<RawRefusal>(bytes)?;
        let reason = RefusalReason::ALL.into_iter().find(|&reason| reason as u16 == raw.reason.get());
        need(raw.reserved == [0; 6], "reserved bytes are not zero")?;
        let reason = reason.ok_or(FrameError::Malformed("an unknown reason"))?;
        Ok(Self { reason, text: text_of(text)? })
    }
}

/// The sender lives. Times are of the clock of whoever set them, in nanoseconds; zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it was sent.
    pub sent_ns: u64,
    /// `sent_ns` of the last heartbeat that the sender got.
    pub echo_ns: u64,
    /// How long ago that was.
    pub held_ns: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPathClosed {
    connection: U64,
    path: u8,
    reserved: [u8; 7],
}

const _: () = assert!(size_of::<RawPathClosed>() == 16);

pub(super) fn write_path_closed(path: u8, connection: u64, output: &mut Vec<u8>) {
    output.extend_from_slice(RawPathClosed { connection: connection.into(), path, reserved: [0; 7] }.as_bytes());
}

pub(super) fn read_path_closed(bytes: &[u8]) -> Result<(Message, &[u8]), FrameError> {
    let (raw, rest) = take::<RawPathClosed>(bytes)?;
    need(raw.reserved == [0; 7], "reserved bytes are not zero")?;
    Ok((Message::PathClosed { path: raw.path, connection: raw.connection.get() }, rest))
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeartbeat {
    sent_ns: U64,
    echo_ns: U64,
    held_ns: U64,
}

const _: () = assert!(size_of::<RawHeartbeat>() == 24);

impl Heartbeat {
    pub(super) fn write(&self, output: &mut Vec<u8>) {
        let raw =
            RawHeartbeat { sent_ns: self.sent_ns.into(), echo_ns: self.echo_ns.into(), held_ns: self.held_ns.into() };
        output.extend_from_slice(raw.as_bytes());
    }

    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (raw, rest) = take::<RawHeartbeat>(bytes)?;
        Ok((Self { sent_ns: raw.sent_ns.get(), echo_ns: raw.echo_ns.get(), held_ns: raw.held_ns.get() }, rest))
    }
}
