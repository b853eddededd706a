//! Who has registered with a volume, and who holds it reserved (NVMe base 2.0, section 8.19), as it lies in the change log, in the object table,
//! and in frames to the partner.
//!
//! ```text
//!   0 generation       8 registrants          16 registrants, 24 bytes each:
//!   4 kind, 0: none   10 reserved, zero           0 host (16 bytes)
//!   5 flags                                      16 key
//!   6 place of the holder, from 1
//! ```
//!
//! # Invariants
//!
//! 1. Registrants stand in the order of their hosts, each host once.
//! 2. A reservation of one host names a registrant. One of all registrants names nobody, and there is a registrant.
//! 3. A record of the log carries the whole state as it is after the change: performing it needs nothing that was there before, and performing it twice is
//!    performing it once.

use crate::{
    base::{HostId, limits::REGISTRANTS_MAX},
    format::Verify,
};
use std::mem::size_of;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// Bytes of a state's head.
pub const HEAD_BYTES: usize = size_of::<RawHead>();

/// Bytes of one registrant.
pub const REGISTRANT_BYTES: usize = size_of::<RawRegistrant>();

/// Bytes of the longest state.
pub const STATE_BYTES_MAX: usize = HEAD_BYTES + REGISTRANTS_MAX * REGISTRANT_BYTES;

const FLAG_PERSISTS: u8 = 1;

const _: () = assert!(HEAD_BYTES == 16 && REGISTRANT_BYTES == 24);

/// What others than the holder may do: RTYPE (base 2.0, figure 409).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ReservationKind {
    /// Read.
    WriteExclusive = 1,
    /// Nothing.
    ExclusiveAccess = 2,
    /// Read; registrants: everything.
    WriteExclusiveRegistrants = 3,
    /// Registrants: everything.
    ExclusiveAccessRegistrants = 4,
    /// Read; every registrant is a holder.
    WriteExclusiveAll = 5,
    /// Nothing; every registrant is a holder.
    ExclusiveAccessAll = 6,
}

impl ReservationKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrants,
        Self::ExclusiveAccessRegistrants,
        Self::WriteExclusiveAll,
        Self::ExclusiveAccessAll,
    ];

    /// The kind with this RTYPE.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == byte)
    }

    /// Whether every registrant is a holder.
    #[must_use]
    pub fn is_of_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    /// Its name for people: lower case, words joined by `-`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteExclusive => "write-exclusive",
            Self::ExclusiveAccess => "exclusive-access",
            Self::WriteExclusiveRegistrants => "write-exclusive-registrants-only",
            Self::ExclusiveAccessRegistrants => "exclusive-access-registrants-only",
            Self::WriteExclusiveAll => "write-exclusive-all-registrants",
            Self::ExclusiveAccessAll => "exclusive-access-all-registrants",
        }
    }
}

/// A host that has registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Which.
    pub host: HostId,
    /// Its key.
    pub key: u64,
}

/// A reservation that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it allows.
    pub kind: ReservationKind,
    /// By whom; `None`: by every registrant.
    pub holder: Option<HostId>,
}

/// Registrants and reservation of a volume. The default is what every volume begins with: none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Counts registrations, preemptions and clearings, round and round (GEN).
    pub generation: u32,
    /// Whether it survives the loss of power of both nodes (PTPLS).
    pub persists: bool,
    /// Held by somebody.
    pub held: Option<Held>,
    /// At most [`REGISTRANTS_MAX`], in the order of their hosts.
    pub registrants: Vec<Registrant>,
}

/// The head of a state: everything but the registrants themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawHead {
    generation: U32,
    /// Zero: nothing is held.
    kind: u8,
    flags: u8,
    /// Its place among the registrants, from 1. Zero: nobody's, or everybody's.
    holder: U16,
    registrants: U16,
    reserved: [u8; 6],
}

/// A registrant.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawRegistrant {
    host: [u8; 16],
    key: U64,
}

impl From<Registrant> for RawRegistrant {
    fn from(registrant: Registrant) -> Self {
        Self { host: registrant.host.bytes(), key: registrant.key.into() }
    }
}

impl Verify for RawRegistrant {
    type Expected<'a> = ();
    type Verified = Registrant;
    type Error = &'static str;

    fn verify(&self, (): &()) -> Result<Registrant, &'static str> {
        let host = HostId::new(self.host).ok_or("a registrant without a host")?;
        Ok(Registrant { host, key: self.key.get() })
    }
}

impl RawHead {
    /// Registrants that follow.
    #[must_use]
    pub fn registrant_count(&self) -> usize {
        usize::from(self.registrants.get())
    }

    /// The state that the head and its registrants are.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn join(&self, registrants: Vec<Registrant>) -> Result<Reservation, &'static str> {
        let need = |good: bool, wrong: &'static str| if good { Ok(()) } else { Err(wrong) };
        need(self.flags & !FLAG_PERSISTS == 0 && self.reserved == [0; 6], "uses bits that are reserved")?;
        need(registrants.len() == self.registrant_count(), "has not as many registrants as it says")?;
        let held = match (self.kind, usize::from(self.holder.get())) {
            (0, 0) => None,
            (byte, place) => {
                let kind = ReservationKind::from_byte(byte).ok_or("has a kind that this program does not know")?;
                let holder = place.checked_sub(1).map(|place| registrants.get(place).ok_or("has no such holder"));
                Some(Held { kind, holder: holder.transpose()?.map(|registrant| registrant.host) })
            }
        };
        let persists = self.flags & FLAG_PERSISTS != 0;
        let reservation = Reservation { generation: self.generation.get(), persists, held, registrants };
        reservation.check()?;
        Ok(reservation)
    }
}

impl Reservation {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The registrant that a host is.
    #[must_use]
    pub fn registrant(&self, host: HostId) -> Option<&Registrant> {
        let place = self.registrants.binary_search_by_key(&host, |registrant| registrant.host).ok()?;
        self.registrants.get(place)
    }

    /// Whether a host is the holder, or one of them.
    #[must_use]
    pub fn is_holder(&self, host: HostId) -> bool {
        let Some(held) = self.held else { return false };
        held.holder.map_or_else(|| self.registrant(host).is_some(), |holder| holder == host)
    }

    /// Whether a record may say this: invariants 1 and 2.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence.
    pub fn check(&self) -> Result<(), &'static str> {
        let need = |good: bool, wrong: &'static str| if good { Ok(()) } else { Err(wrong) };
        need(self.registrants.len() <= REGISTRANTS_MAX, "has more registrants than there can be")?;
        let is_ordered = self.registrants.is_sorted_by(|a, b| a.host < b.host);
        need(is_ordered, "has registrants out of order")?;
        let Some(held) = self.held else { return Ok(()) };
        need(held.kind.is_of_all() == held.holder.is_none(), "has a holder that its kind does not have")?;
        let is_known = held.holder.is_none_or(|holder| self.registrant(holder).is_some());
        need(is_known && !self.registrants.is_empty(), "is held by nobody who has registered")
    }

    /// The head.
    ///
    /// # Panics
    /// When it breaks the invariants.
    #[must_use]
    pub fn head(&self) -> RawHead {
        let checked = self.check();
        assert!(checked.is_ok(), "a reservation that {}", checked.err().unwrap_or_default());
        let small = |number: usize| U16::new(u16::try_from(number).expect("at most REGISTRANTS_MAX"));
        let place = |host| self.registrants.iter().position(|registrant| registrant.host == host);
        let holder = self.held.and_then(|held| held.holder).and_then(place);
        RawHead {
            generation: self.generation.into(),
            kind: self.held.map_or(0, |held| held.kind as u8),
            flags: if self.persists { FLAG_PERSISTS } else { 0 },
            holder: small(holder.map_or(0, |place| place + 1)),
            registrants: small(self.registrants.len()),
            reserved: [0; 6],
        }
    }

    /// The whole state.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.head().as_bytes().to_vec();
        for &registrant in &self.registrants {
            bytes.extend_from_slice(RawRegistrant::from(registrant).as_bytes());
        }
        bytes
    }

    /// The state in `bytes`, and nothing else in them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let (head, rest) = RawHead::read_from_prefix(bytes).map_err(|_| "is shorter than a reservation")?;
        let raw = <[RawRegistrant]>::ref_from_bytes(rest).map_err(|_| "ends within a registrant")?;
        if raw.len() > REGISTRANTS_MAX {
            return Err("has more registrants than there can be");
        }
        head.join(raw.iter().map(|registrant| registrant.verify(&())).collect::<Result<_, _>>()?)
    }
}

/// Whether a state can have so many bytes.
#[must_use]
pub fn is_valid_length(bytes: u64) -> bool {
    let registrants = bytes.checked_sub(HEAD_BYTES as u64);
    bytes <= STATE_BYTES_MAX as u64 && registrants.is_some_and(|rest| rest.is_multiple_of(REGISTRANT_BYTES as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    fn host(number: u8) -> HostId {
        HostId::new([number; 16]).expect("not zero")
    }

    fn state(kind: Option<ReservationKind>, count: u8) -> Reservation {
        let registrants = (1..=count).map(|number| Registrant { host: host(number), key: u64::from(number) << 60 });
        let holder = |kind: ReservationKind| (!kind.is_of_all()).then(|| host(count));
        let held = kind.map(|kind| Held { kind, holder: holder(kind) });
        Reservation { generation: 7, persists: count % 2 == 1, held, registrants: registrants.collect() }
    }

    #[test]
    fn a_state_survives_the_round_trip() {
        for count in [1, 2, 128] {
            for kind in ReservationKind::ALL.map(Some).into_iter().chain([None]) {
                let bytes = state(kind, count).to_bytes();
                assert!(is_valid_length(bytes.len() as u64));
                assert_eq!(Reservation::read(&bytes), Ok(state(kind, count)));
            }
        }
        assert_eq!(Reservation::read(&Reservation::default().to_bytes()), Ok(Reservation::default()));
        assert!(Reservation::default().is_none() && !state(None, 1).is_none());
        assert_eq!(state(None, 128).to_bytes().len(), STATE_BYTES_MAX);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = state(Some(ReservationKind::WriteExclusive), 3).to_bytes();
        // The kind's range and its holder, flags, holder beyond the registrants, their count, reserved bytes, a host out of order, one of zeroes.
        let wrong: [(usize, u8); 9] = [(4, 7), (4, 5), (4, 0), (5, 2), (6, 4), (8, 2), (15, 1), (16, 9), (9, 1)];
        for (place, byte) in wrong {
            let mut bytes = good.clone();
            bytes[place] = byte;
            assert!(Reservation::read(&bytes).is_err(), "byte {place}");
        }
        let mut bytes = good.clone();
        bytes[16..32].fill(0);
        assert!(Reservation::read(&bytes).is_err());
        assert!(Reservation::read(&good[..15]).is_err() && Reservation::read(&good[..good.len() - 1]).is_err());
        let mut all = state(Some(ReservationKind::ExclusiveAccessAll), 1).to_bytes();
        (all[8], all[6]) = (0, 0);
        assert!(Reservation::read(&all[..16]).is_err(), "held by all of nobody");
        let many = [&[0; 8][..], &[129, 0], &[0; 6], &[1; 129 * 24]].concat();
        assert!(Reservation::read(&many).is_err() && !is_valid_length(many.len() as u64));
    }

    #[test]
    fn no_bytes_do_harm() {
        let mut prng = Prng::new(5);
        let seeds = [state(Some(ReservationKind::WriteExclusiveAll), 4).to_bytes(), state(None, 128).to_bytes()];
        for round in 0..20_000 {
            let mut bytes = seeds[round % 2].clone();
            for _ in 0..prng.between(1, 4) {
                let place = usize::try_from(prng.between(0, bytes.len() as u64 - 1)).expect("small");
                prng.fill(&mut bytes[place..=place]);
            }
            if let Ok(state) = Reservation::read(&bytes) {
                assert_eq!(state.to_bytes(), bytes);
            }
        }
    }
}
