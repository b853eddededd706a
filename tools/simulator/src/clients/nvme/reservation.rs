//! Reservation commands of a host, and the page that a report returns (base 2.0, sections 7.2 to 7.5).

use super::{index, word16, word32};
use crate::model::reservation::{Deed, HOSTS};
use twinlog::{
    base::HostId,
    format::reservation::{Held, Registrant, Reservation, ReservationKind},
};

const REGISTER: u8 = 0x0d;
const REPORT: u8 = 0x0e;
const ACQUIRE: u8 = 0x11;
const RELEASE: u8 = 0x15;

/// Dword 10 of Register: what it does, and whether that survives the loss of power.
const UNREGISTER: u32 = 1;
const PERSISTS: u32 = 3 << 30;
const PERSISTS_NOT: u32 = 2 << 30;
/// Of Acquire: what it does beside taking the reservation, which is of the type in its second byte.
const PREEMPT: u32 = 1;
const PREEMPT_AND_ABORT: u32 = 2;
/// Of Release.
const CLEAR: u32 = 1;
/// Dword 11 of Report: identifiers have 128 bits.
const EXTENDED: u32 = 1;

/// The head of the page, and each registrant in it.
const HEAD_BYTES: usize = 64;
const REGISTRANT_BYTES: usize = 64;
/// Room for all hosts.
pub(super) const REPORT_BYTES: usize = HEAD_BYTES + REGISTRANT_BYTES * HOSTS as usize;

/// Dword 10 of a Get Log Page of the notifications, and the bytes of that page.
pub(super) const NOTIFICATION_PAGE: u32 = 0x80 | 15 << 16;
pub(super) const NOTIFICATION_BYTES: usize = 64;

/// What a controller has to tell of a reservation (section 5.16.1.25); of all zeroes: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// One more for each that there was, those that were lost among them.
    pub count: u64,
    /// 1: registration preempted, 2: reservation released, 3: reservation preempted.
    pub kind: u8,
    /// Of which namespace.
    pub namespace: u32,
}

/// What a page says.
pub(super) fn notification_of(page: &[u8]) -> Notification {
    let count = u64::from_le_bytes(*page.first_chunk().expect("a page"));
    Notification { count, kind: page[8], namespace: word32(&page[12..]) }
}

/// A command as it is sent.
pub(super) struct Encoded {
    pub(super) opcode: u8,
    /// Dwords 10 and 11.
    pub(super) words: [u32; 2],
    pub(super) data: Vec<u8>,
}

/// What `host`, whose key is its number, sends.
pub(super) fn encode(deed: Deed, host: u8) -> Encoded {
    let own = u64::from(host);
    let type_of = |kind: ReservationKind| u32::from(kind as u8) << 8;
    let (opcode, options, keys) = match deed {
        Deed::Register(persists) => (REGISTER, if persists { PERSISTS } else { PERSISTS_NOT }, vec![0, own]),
        Deed::Unregister => (REGISTER, UNREGISTER, vec![own, 0]),
        Deed::Acquire(kind) => (ACQUIRE, type_of(kind), vec![own, 0]),
        Deed::Preempt(victim, kind) => (ACQUIRE, type_of(kind) | PREEMPT, vec![own, u64::from(victim)]),
        Deed::Abort(victim, kind) => (ACQUIRE, type_of(kind) | PREEMPT_AND_ABORT, vec![own, u64::from(victim)]),
        Deed::Release(kind) => (RELEASE, type_of(kind), vec![own]),
        Deed::Clear => (RELEASE, CLEAR, vec![own]),
        Deed::Report => (REPORT, u32::try_from(REPORT_BYTES / 4 - 1).expect("a few hosts"), Vec::new()),
    };
    let words = [options, if opcode == REPORT { EXTENDED } else { 0 }];
    Encoded { opcode, words, data: keys.into_iter().flat_map(u64::to_le_bytes).collect() }
}

/// What the page of a report says.
///
/// # Errors
/// It is no such page.
pub(super) fn reservation_of(page: &[u8]) -> Result<Reservation, String> {
    let (head, rest) = page.split_at_checked(HEAD_BYTES).ok_or("a report without a head")?;
    let count = usize::from(word16(&head[5..]));
    if rest.len() < count * REGISTRANT_BYTES {
        return Err(format!("a report of {count} registrants, of {} bytes", page.len()));
    }
    let entries = || rest.chunks_exact(REGISTRANT_BYTES).take(count);
    let host_of = |entry: &[u8]| {
        let bytes = *entry[16..].first_chunk::<16>().expect("half of an entry");
        HostId::new(bytes).ok_or("a registrant without an identifier")
    };
    let key_of = |entry: &[u8]| u64::from_le_bytes(*entry[8..].first_chunk().expect("a quarter of it"));
    let registrants = entries().map(|entry| Ok(Registrant { host: host_of(entry)?, key: key_of(entry) }));
    let registrants: Result<Vec<_>, &str> = registrants.collect();
    let holders: Result<Vec<_>, &str> = entries().filter(|entry| entry[2] & 1 != 0).map(host_of).collect();
    let holders = holders?;
    let held = match (ReservationKind::from_byte(head[4]), holders[..].as_ref()) {
        (None, []) if head[4] == 0 => None,
        (Some(kind), all) if kind.is_of_all() && all.len() == count => Some(Held { kind, holder: None }),
        (Some(kind), &[holder]) if !kind.is_of_all() => Some(Held { kind, holder: Some(holder) }),
        (_, holders) => return Err(format!("a reservation of type {}, held by {holders:?}", head[4])),
    };
    let generation = word32(head);
    Ok(Reservation { generation, persists: index(u64::from(head[9])) == 1, held, registrants: registrants? })
}
