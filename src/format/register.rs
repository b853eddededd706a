//! The mailbox file: the registers of a pair's pools, and the heartbeats of its nodes, in blocks that both nodes reach.
//!
//! ```text
//! block 0          header: which pair's mailbox this is
//! block 1, 2       beat of node 0, of node 1
//! block 3          zero
//! block 4+2k, 5+2k register k: its even generations, its odd ones
//!
//! every block:  0 magic           16 features: incompatible, read-only compatible, compatible   64 body
//!               8 version         40 own block                                                504 checksum (seeded with own block)
//!              12 length (512)    48 pair id                                                  512 zero to the end of the block
//! ```
//!
//! # Invariants
//!
//! 1. What a block says lies in its first 512 bytes: one sector, which a power cut leaves old or new (`docs/format.md`, media assumption
//!    1). So a block that is neither zero nor whole is damaged, never torn, and a reader that finds one must not fall back to an older generation.
//! 2. Generation `g` of a register lies in the slot of its parity; the newest one counts. A change writes the other slot.
//! 3. A register's generation and epoch grow with every change of it.
//!
//! # A change, and a crash at each step
//!
//! | step | a crash of the writer here |
//! |---|---|
//! | 1 lock the register; flush; read both slots | nothing has changed |
//! | 2 write generation g+1 into the slot of generation g-1 | the change may be seen by the next reader, who flushes before it believes what it reads |
//! | 3 flush | the change is durable, its author has not heard of it |
//! | 4 read back, unlock | the change is durable |

use crate::{
    base::{
        Epoch, Incarnation, PairId, PoolId, PortionId, checksum,
        limits::{NAME_BYTES_MAX, PAIR_POOLS_MAX},
    },
    format::{Unverified, Verify},
};
use std::mem::{offset_of, size_of};
use thiserror::Error;
use twinlog_device::{BLOCK_BYTES, BlockBytes};
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64, U128},
};

/// Format version of the mailbox. Version 1: the first.
pub const MAILBOX_VERSION: u32 = 1;
/// Block of the header.
pub const HEADER_BLOCK: u64 = 0;
/// Blocks of a mailbox file: four at the head, two for each register.
pub const MAILBOX_BLOCKS: u64 = REGISTERS_FIRST + 2 * PAIR_POOLS_MAX as u64;
/// Nodes of a pair.
pub const NODE_COUNT: usize = 2;

const REGISTERS_FIRST: u64 = 4;
const SECTOR_BYTES: usize = 512;
const CHECKED_BYTES: usize = SECTOR_BYTES - 8;
const HEADER_MAGIC: [u8; 8] = *b"TWLMAIL1";
const BEAT_MAGIC: [u8; 8] = *b"TWLBEAT1";
const REGISTER_MAGIC: [u8; 8] = *b"TWLREGI1";

/// A node of the pair: 0 is the one whose name is lesser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeIndex {
    /// The node with the lesser name.
    First,
    /// The other one.
    Second,
}

impl NodeIndex {
    /// Both.
    pub const ALL: [Self; NODE_COUNT] = [Self::First, Self::Second];

    /// The partner's.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// 0 or 1.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::First => 0,
            Self::Second => 1,
        }
    }

    /// Block of its beat.
    #[must_use]
    pub fn beat_block(self) -> u64 {
        HEADER_BLOCK + 1 + self.index() as u64
    }
}

/// Blocks of the two slots of register `index`: of its even generations, of its odd ones.
#[must_use]
pub fn register_blocks(index: usize) -> [u64; 2] {
    assert!(index < PAIR_POOLS_MAX, "register {index} of {PAIR_POOLS_MAX}");
    let first = REGISTERS_FIRST + 2 * index as u64;
    [first, first + 1]
}

/// Which node of the pair, seen from a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Side {
    /// The pool's home node.
    Home = 1,
    /// The home node's partner.
    Away = 2,
}

impl Side {
    /// The other node.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Home => Self::Away,
            Self::Away => Self::Home,
        }
    }
}

/// What the register says of the portion at the node that does not own the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MirrorState {
    /// It may lack answered changes: the owner answers alone.
    Stale,
    /// This portion holds every answered change that the newest consistency point does not contain.
    InSync(PortionId),
}

/// The durable word over one pool: who may serve it, and whose log holds what was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// The pool.
    pub pool: PoolId,
    /// Changes of this register so far; the first is 1. Compare-and-swap compares it.
    pub generation: u64,
    /// The epoch in force.
    pub epoch: Epoch,
    /// Who may serve the pool.
    pub owner: Side,
    /// The owner's portion: what it opens the pool with.
    pub portion: PortionId,
    /// The other node's.
    pub mirror: MirrorState,
    /// The owner is not the home node and keeps the pool until it is told otherwise: the home node was drained.
    pub kept: bool,
    /// When it was changed, in nanoseconds since the Unix epoch; for people only.
    pub changed_ns: u64,
}

/// Which pair a mailbox belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailboxHeader {
    /// The pair.
    pub pair: PairId,
    /// Names of its nodes; the first is lesser.
    pub nodes: [String; NODE_COUNT],
}

/// A node's sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whose.
    pub node: NodeIndex,
    /// Of which life of it.
    pub incarnation: Incarnation,
    /// Grows with every beat.
    pub count: u64,
    /// The life of the partner that this node fences: it must not renew its lease.
    pub fences: Option<Incarnation>,
    /// When it was made, in nanoseconds since the Unix epoch; for people only.
    pub time_ns: u64,
}

/// Why a block of a mailbox cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MailboxError {
    /// It holds something else.
    #[error("block {block} of the mailbox holds something else, or the file is no mailbox")]
    Foreign {
        /// Which block.
        block: u64,
    },
    /// It was written, and is not whole.
    #[error("block {block} of the mailbox is damaged: {what}")]
    Damaged {
        /// Which block.
        block: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A newer program wrote it.
    #[error("the mailbox has format version {version} with features {features:#x}, which this program does not know")]
    Unsupported {
        /// Its version.
        version: u32,
        /// Its features that this program had to know.
        features: u64,
    },
    /// It belongs to another pair.
    #[error("the mailbox belongs to pair {found}; this node belongs to pair {expected}")]
    OtherPair {
        /// Whose it is.
        found: PairId,
        /// Whose it should be.
        expected: PairId,
    },
}

/// Where a block was read, and whose it should be.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Block of the file.
    pub block: u64,
    /// The pair; `None` takes any.
    pub pair: Option<PairId>,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
struct RawCommon {
    magic: [u8; 8],
    version: U32,
    length: U32,
    incompatible: U64,
    read_only_compatible: U64,
    compatible: U64,
    own_block: U64,
    pair: U128,
}

/// A header as it lies in the file.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RawMailboxHeader {
    common: RawCommon,
    nodes: [[u8; NAME_BYTES_MAX]; NODE_COUNT],
    reserved: [u8; 312],
    checksum: U64,
}

/// A beat as it lies in the file.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RawBeat {
    common: RawCommon,
    incarnation: U128,
    fences: U128,
    count: U64,
    time_ns: U64,
    reserved: [u8; 392],
    checksum: U64,
}

/// One generation of a register as it lies in the file.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct RawRegister {
    common: RawCommon,
    pool: U128,
    generation: U64,
    epoch: U64,
    portion: U128,
    mirror_portion: U128,
    owner: U16,
    mirror: U16,
    kept: U16,
    reserved_states: U16,
    changed_ns: U64,
    reserved: [u8; 360],
    checksum: U64,
}

const _: () = assert!(size_of::<RawCommon>() == 64);
const _: () = assert!(size_of::<RawMailboxHeader>() == SECTOR_BYTES);
const _: () = assert!(offset_of!(RawMailboxHeader, checksum) == CHECKED_BYTES);
const _: () = assert!(size_of::<RawBeat>() == SECTOR_BYTES);
const _: () = assert!(offset_of!(RawBeat, checksum) == CHECKED_BYTES);
const _: () = assert!(size_of::<RawRegister>() == SECTOR_BYTES);
const _: () = assert!(offset_of!(RawRegister, owner) == 128);
const _: () = assert!(offset_of!(RawRegister, checksum) == CHECKED_BYTES);

impl RawCommon {
    fn new(magic: [u8; 8], block: u64, pair: PairId) -> Self {
        Self {
            magic,
            version: MAILBOX_VERSION.into(),
            length: 512.into(),
            incompatible: 0.into(),
            read_only_compatible: 0.into(),
            compatible: 0.into(),
            own_block: block.into(),
            pair: pair.0.into(),
        }
    }

    /// Checks what all blocks have in common; `bytes` is the whole sector.
    fn verify(&self, magic: [u8; 8], bytes: &[u8], place: &Place) -> Result<(), MailboxError> {
        let block = place.block;
        let damaged = |what| Err(MailboxError::Damaged { block, what });
        if self.magic != magic {
            return Err(MailboxError::Foreign { block });
        }
        let (checked, sum) = bytes.split_at_checked(CHECKED_BYTES).unwrap_or((bytes, &[]));
        if checksum(block, checked).to_le_bytes() != sum {
            return damaged("checksum, or written to another place");
        }
        let features = self.incompatible.get() | self.read_only_compatible.get();
        if self.version.get() != MAILBOX_VERSION || features != 0 {
            return Err(MailboxError::Unsupported { version: self.version.get(), features });
        }
        if self.own_block.get() != block || self.length.get() != 512 {
            return damaged("place");
        }
        let found = PairId(self.pair.get());
        match place.pair {
            Some(expected) if expected != found => Err(MailboxError::OtherPair { found, expected }),
            _ => Ok(()),
        }
    }
}

/// The block of a raw structure, completed with its checksum.
fn seal<T: IntoBytes + Immutable>(raw: &T, block: u64) -> BlockBytes {
    let mut bytes = [0; BLOCK_BYTES];
    let (sector, _zero) = bytes.split_at_mut(SECTOR_BYTES);
    sector.copy_from_slice(raw.as_bytes());
    let (checked, sum) = sector.split_at_mut(CHECKED_BYTES);
    sum.copy_from_slice(&checksum(block, checked).to_le_bytes());
    bytes
}

/// The structure in a block, or `None` when the block is zero: it was never written.
fn open<T>(bytes: &BlockBytes, place: &Place) -> Result<Option<T::Verified>, MailboxError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned + for<'a> Verify<Expected<'a> = Place, Error = MailboxError>,
{
    let (sector, rest) = bytes.split_at(SECTOR_BYTES);
    if rest.iter().any(|&byte| byte != 0) {
        return Err(MailboxError::Damaged { block: place.block, what: "its end is not zero" });
    }
    if sector.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let raw = Unverified::<T>::read(sector).expect("a sector has the size of every structure");
    raw.verify(place).map(Some)
}

impl Verify for RawMailboxHeader {
    type Expected<'a> = Place;
    type Verified = MailboxHeader;
    type Error = MailboxError;

    fn verify(&self, place: &Place) -> Result<MailboxHeader, MailboxError> {
        self.common.verify(HEADER_MAGIC, self.as_bytes(), place)?;
        let damaged = |what| MailboxError::Damaged { block: place.block, what };
        let text = |name: &[u8; NAME_BYTES_MAX]| {
            let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES_MAX);
            let (text, rest) = name.split_at(end);
            let text = str::from_utf8(text).ok().filter(|text| !text.is_empty());
            text.filter(|_| rest.iter().all(|&byte| byte == 0)).map(str::to_owned).ok_or(damaged("name of a node"))
        };
        let [first, second] = &self.nodes;
        let nodes = [text(first)?, text(second)?];
        if nodes.first() >= nodes.last() {
            return Err(damaged("order of the nodes"));
        }
        if self.reserved.iter().any(|&byte| byte != 0) {
            return Err(damaged("reserved bytes"));
        }
        Ok(MailboxHeader { pair: PairId(self.common.pair.get()), nodes })
    }
}

impl MailboxHeader {
    /// The header's block.
    ///
    /// # Panics
    /// When the names are not those of two nodes in their order: the configuration was checked before.
    #[must_use]
    pub fn encode(&self) -> BlockBytes {
        let mut raw = RawMailboxHeader::new_zeroed();
        raw.common = RawCommon::new(HEADER_MAGIC, HEADER_BLOCK, self.pair);
        let [first, second] = &self.nodes;
        assert!(!first.is_empty() && first < second, "{first} comes before {second}");
        for (place, name) in raw.nodes.iter_mut().zip(&self.nodes) {
            let place = place.get_mut(..name.len()).expect("a name has at most NAME_BYTES_MAX bytes");
            place.copy_from_slice(name.as_bytes());
        }
        seal(&raw, HEADER_BLOCK)
    }

    /// The header in the first block of a file; `pair` is the one that it should belong to, if that is known.
    ///
    /// # Errors
    /// See [`MailboxError`]; a file of zeroes is [`MailboxError::Foreign`].
    pub fn verify(bytes: &BlockBytes, pair: Option<PairId>) -> Result<Self, MailboxError> {
        let place = Place { block: HEADER_BLOCK, pair };
        open::<RawMailboxHeader>(bytes, &place)?.ok_or(MailboxError::Foreign { block: HEADER_BLOCK })
    }
}

impl Verify for RawBeat {
    type Expected<'a> = Place;
    type Verified = Beat;
    type Error = MailboxError;

    fn verify(&self, place: &Place) -> Result<Beat, MailboxError> {
        self.common.verify(BEAT_MAGIC, self.as_bytes(), place)?;
        let damaged = |what| MailboxError::Damaged { block: place.block, what };
        let node = NodeIndex::ALL.into_iter().find(|node| node.beat_block() == place.block).ok_or(damaged("place"))?;
        let (incarnation, fences) = (Incarnation(self.incarnation.get()), Incarnation(self.fences.get()));
        if incarnation == Incarnation::default() || self.reserved.iter().any(|&byte| byte != 0) {
            return Err(damaged("content"));
        }
        let fences = Some(fences).filter(|&life| life != Incarnation::default());
        Ok(Beat { node, incarnation, count: self.count.get(), fences, time_ns: self.time_ns.get() })
    }
}

impl Beat {
    /// The beat's block.
    #[must_use]
    pub fn encode(&self, pair: PairId) -> BlockBytes {
        assert!(self.incarnation != Incarnation::default(), "a node that beats lives");
        let block = self.node.beat_block();
        let mut raw = RawBeat::new_zeroed();
        raw.common = RawCommon::new(BEAT_MAGIC, block, pair);
        raw.incarnation = self.incarnation.0.into();
        raw.fences = self.fences.unwrap_or_default().0.into();
        raw.count = self.count.into();
        raw.time_ns = self.time_ns.into();
        seal(&raw, block)
    }

    /// The beat of `node`, or `None` when it has never made one.
    ///
    /// # Errors
    /// See [`MailboxError`].
    pub fn verify(bytes: &BlockBytes, pair: PairId, node: NodeIndex) -> Result<Option<Self>, MailboxError> {
        open::<RawBeat>(bytes, &Place { block: node.beat_block(), pair: Some(pair) })
    }
}

impl Verify for RawRegister {
    type Expected<'a> = Place;
    type Verified = Register;
    type Error = MailboxError;

    fn verify(&self, place: &Place) -> Result<Register, MailboxError> {
        self.common.verify(REGISTER_MAGIC, self.as_bytes(), place)?;
        let damaged = |what| Err(MailboxError::Damaged { block: place.block, what });
        let owner = match self.owner.get() {
            1 => Side::Home,
            2 => Side::Away,
            _ => return damaged("owner"),
        };
        let mirror = match (self.mirror.get(), PortionId(self.mirror_portion.get())) {
            (1, PortionId(0)) => MirrorState::Stale,
            (2, portion) if portion != PortionId::default() => MirrorState::InSync(portion),
            _ => return damaged("mirror"),
        };
        let (generation, epoch) = (self.generation.get(), Epoch(self.epoch.get()));
        if generation == 0 || generation % 2 != place.block % 2 || epoch.0 == 0 {
            return damaged("generation, or written to the other slot");
        }
        let kept = match (self.kept.get(), owner) {
            (0, _) => false,
            (1, Side::Away) => true,
            _ => return damaged("kept"),
        };
        let portion = PortionId(self.portion.get());
        let blank = self.reserved_states.get() == 0 && self.reserved.iter().all(|&byte| byte == 0);
        if portion == PortionId::default() || mirror == MirrorState::InSync(portion) || !blank {
            return damaged("portion, or reserved bytes");
        }
        let pool = PoolId(self.pool.get());
        Ok(Register { pool, generation, epoch, owner, portion, mirror, kept, changed_ns: self.changed_ns.get() })
    }
}

impl Register {
    /// Which of the two slots of register `index` this generation belongs to.
    #[must_use]
    pub fn block(&self, index: usize) -> u64 {
        let [even, odd] = register_blocks(index);
        if self.generation.is_multiple_of(2) { even } else { odd }
    }

    /// The block of this generation as register `index`.
    #[must_use]
    pub fn encode(&self, pair: PairId, index: usize) -> BlockBytes {
        assert!(self.generation > 0 && self.epoch.0 > 0, "generations and epochs begin with 1");
        assert!(self.portion != PortionId::default(), "an owner has a portion");
        assert!(self.mirror != MirrorState::InSync(self.portion), "the mirror is another portion");
        assert!(!self.kept || self.owner == Side::Away, "a home node keeps its pool anyway");
        assert!(self.mirror != MirrorState::InSync(PortionId::default()), "a mirror that is in sync exists");
        let block = self.block(index);
        let mut raw = RawRegister::new_zeroed();
        raw.common = RawCommon::new(REGISTER_MAGIC, block, pair);
        raw.pool = self.pool.0.into();
        raw.generation = self.generation.into();
        raw.epoch = self.epoch.0.into();
        raw.portion = self.portion.0.into();
        raw.owner = (self.owner as u16).into();
        let (mirror, portion) = match self.mirror {
            MirrorState::Stale => (1, PortionId::default()),
            MirrorState::InSync(portion) => (2, portion),
        };
        raw.mirror = mirror.into();
        raw.mirror_portion = portion.0.into();
        raw.kept = u16::from(self.kept).into();
        raw.changed_ns = self.changed_ns.into();
        seal(&raw, block)
    }

    /// The generation in one slot, read from `block`; `None` when it was never written.
    ///
    /// # Errors
    /// See [`MailboxError`].
    pub fn verify(bytes: &BlockBytes, pair: PairId, block: u64) -> Result<Option<Self>, MailboxError> {
        open::<RawRegister>(bytes, &Place { block, pair: Some(pair) })
    }

    /// The newest generation of register `index`, from its two slots; `None` when it was never written.
    ///
    /// # Errors
    /// When any of the slots cannot be used (invariant 1), or they hold different pools.
    pub fn newest(slots: &[BlockBytes; 2], pair: PairId, index: usize) -> Result<Option<Self>, MailboxError> {
        let [even_block, odd_block] = register_blocks(index);
        let [even, odd] = slots;
        let (even, odd) = (Self::verify(even, pair, even_block)?, Self::verify(odd, pair, odd_block)?);
        match (even, odd) {
            (Some(even), Some(odd)) if even.pool != odd.pool => {
                Err(MailboxError::Damaged { block: odd_block, what: "its two slots belong to different pools" })
            }
            (Some(even), Some(odd)) => Ok(Some(if even.generation > odd.generation { even } else { odd })),
            (one, other) => Ok(one.or(other)),
        }
    }
}

/// A register outside of a mailbox: what its block would begin with as the first register.
pub type RegisterSector = [u8; SECTOR_BYTES];

/// The sector of a register; zeroes: there is none.
#[must_use]
pub fn to_sector(register: Option<&Register>, pair: PairId) -> RegisterSector {
    let mut sector = [0; SECTOR_BYTES];
    if let Some(register) = register {
        let block = register.encode(pair, 0);
        sector.copy_from_slice(block.get(..SECTOR_BYTES).expect("a block is larger"));
    }
    sector
}

/// The register of a sector.
///
/// # Errors
/// See [`MailboxError`].
pub fn from_sector(sector: &RegisterSector, pair: PairId) -> Result<Option<Register>, MailboxError> {
    let mut bytes = [0; BLOCK_BYTES];
    bytes.get_mut(..SECTOR_BYTES).expect("a block is larger").copy_from_slice(sector);
    let [even, odd] = register_blocks(0);
    match Register::verify(&bytes, pair, even) {
        Ok(register) => Ok(register),
        Err(_) => Register::verify(&bytes, pair, odd),
    }
}

/// The pool of a register that cannot be used, as far as its slots tell.
fn pool_of_damaged(slots: &[BlockBytes; 2], pair: PairId, index: usize) -> Option<PoolId> {
    let verified = slots.iter().zip(register_blocks(index)).map(|(slot, block)| Register::verify(slot, pair, block));
    let mut pools = verified.filter_map(|register| register.ok().flatten()).map(|register| register.pool);
    let first = pools.next();
    first.filter(|first| pools.all(|other| other == *first))
}

/// The index of `pool`'s register and the register; without one the index at which it would be made, if there is room. `registers` are the slots of all
/// registers, in their order.
///
/// # Errors
/// When its register cannot be used, or there is none and one that cannot be used may be it.
pub fn locate(
    registers: &[[BlockBytes; 2]],
    pair: PairId,
    pool: PoolId,
) -> Result<(Option<usize>, Option<Register>), MailboxError> {
    let (mut free, mut damaged) = (None, None);
    for (index, slots) in registers.iter().enumerate() {
        match Register::newest(slots, pair, index) {
            Ok(Some(register)) if register.pool == pool => return Ok((Some(index), Some(register))),
            Ok(Some(_)) => {}
            Ok(None) => free = free.or(Some(index)),
            Err(error) => match pool_of_damaged(slots, pair, index) {
                Some(other) if other != pool => {}
                _ => damaged = damaged.or(Some(error)),
            },
        }
    }
    damaged.map_or(Ok((free, None)), Err)
}

#[cfg(test)]
mod tests;
