//! Reservations (base 8.19): the fence on a namespace that several hosts reach.
//!
//! A host registers a key, acquires a reservation with it, and takes one away from a host that is dead by naming that host's key
//! (preempt). While a reservation is held, a write by a host that its kind does not let in is refused with
//! [`Fenced`](twinlog_device::DeviceErrorKind::Fenced): the fence is in the device, whatever the former owner believes. The disk that has met it sends nothing
//! more that would change the namespace, for as long as it is open.
//!
//! A controller knows its host by [`ControllerOptions::host_id`](crate::ControllerOptions), which this driver tells it each time it is brought up, before any queue
//! exists (base 5.27.1.25). Two controllers with one identifier are one host; without one, each controller is a host of its own.

use crate::spec::{RegisteredHost, ReservationHeader, SubmissionEntry, io_opcode};
use zerocopy::FromBytes;

/// An identifier of a host: the same after every start, and nobody else's.
pub type HostId = [u8; 16];

/// Bytes of a report: its head and as many hosts as fit a slot's half page.
pub const REPORT_BYTES: usize = 2048;

/// Hosts of a report.
pub const REPORT_HOSTS_MAX: usize = REPORT_BYTES / size_of::<RegisteredHost>() - 1;

/// Who may do what while a reservation is held (base figure 464).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationKind {
    /// The holder alone writes.
    WriteExclusive = 1,
    /// The holder alone reads and writes.
    ExclusiveAccess = 2,
    /// Those who are registered write.
    WriteExclusiveRegistrants = 3,
    /// Those who are registered read and write.
    ExclusiveAccessRegistrants = 4,
    /// Those who are registered write, and each of them holds it.
    WriteExclusiveAll = 5,
    /// Those who are registered read and write, and each of them holds it.
    ExclusiveAccessAll = 6,
}

impl ReservationKind {
    const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrants,
        Self::ExclusiveAccessRegistrants,
        Self::WriteExclusiveAll,
        Self::ExclusiveAccessAll,
    ];

    fn number(self) -> u32 {
        self as u32
    }

    /// Its bit in RESCAP (base figure 280).
    pub(crate) fn capability(self) -> u8 {
        1 << self as u8
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == u32::from(number))
    }
}

/// One reservation command. Keys are chosen by the hosts; zero is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// Registers `key` for this host.
    Register {
        /// The new key.
        key: u64,
        /// Whether it survives a loss of power; `None` leaves that as it is.
        persists: Option<bool>,
    },
    /// Replaces this host's key, which must be `current`, by `key`.
    Replace {
        /// The old key.
        current: u64,
        /// The new key.
        key: u64,
    },
    /// Ends this host's registration, and what it holds.
    Unregister {
        /// Its key.
        key: u64,
    },
    /// Takes a reservation that nobody holds.
    Acquire {
        /// This host's key.
        key: u64,
        /// What kind.
        kind: ReservationKind,
    },
    /// Ends the registration of the host with `victim`, takes over what it holds, and with `aborts` ends its commands in flight first.
    Preempt {
        /// This host's key.
        key: u64,
        /// The other host's.
        victim: u64,
        /// What kind.
        kind: ReservationKind,
        /// Whether its commands in flight are aborted: base 8.19.6.
        aborts: bool,
    },
    /// Gives the reservation up.
    Release {
        /// This host's key.
        key: u64,
        /// What kind it is.
        kind: ReservationKind,
    },
    /// Ends every registration and the reservation.
    Clear {
        /// This host's key.
        key: u64,
    },
    /// Asks who is registered and who holds it.
    Report,
}

impl Reservation {
    /// The command and the bytes that it carries.
    pub(crate) fn encode(self, namespace: u32) -> (SubmissionEntry, [u64; 2]) {
        const REPORT_DWORDS: u32 = 2048 / 4;
        let persistence = |persists| match persists {
            None => 0,
            Some(false) => 2_u32,
            Some(true) => 3,
        };
        let (opcode, first, keys) = match self {
            Self::Register { key, persists } => {
                (io_opcode::RESERVATION_REGISTER, persistence(persists) << 30, [0, key])
            }
            Self::Replace { current, key } => (io_opcode::RESERVATION_REGISTER, 2, [current, key]),
            Self::Unregister { key } => (io_opcode::RESERVATION_REGISTER, 1, [key, 0]),
            Self::Acquire { key, kind } => (io_opcode::RESERVATION_ACQUIRE, kind.number() << 8, [key, 0]),
            Self::Preempt { key, victim, kind, aborts } => {
                let action = if aborts { 2 } else { 1 };
                (io_opcode::RESERVATION_ACQUIRE, action | kind.number() << 8, [key, victim])
            }
            Self::Release { key, kind } => (io_opcode::RESERVATION_RELEASE, kind.number() << 8, [key, 0]),
            Self::Clear { key } => (io_opcode::RESERVATION_RELEASE, 1, [key, 0]),
            Self::Report => (io_opcode::RESERVATION_REPORT, REPORT_DWORDS - 1, [0, 0]),
        };
        // Of a report, dword 11 asks for the extended form, with host identifiers of 16 bytes.
        let second = u32::from(self == Self::Report);
        (SubmissionEntry::new(opcode, namespace, [first, second, 0, 0, 0, 0]), keys)
    }
}

/// Who is registered, and who holds the reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationReport {
    /// Grows with every change of registrations.
    pub generation: u32,
    /// The reservation that is held.
    pub kind: Option<ReservationKind>,
    /// Whether registrations survive a loss of power.
    pub persists: bool,
    /// How many hosts are registered; the first [`REPORT_HOSTS_MAX`] follow.
    pub registered_count: u16,
    /// The registered hosts.
    pub hosts: Vec<Registrant>,
}

/// A registered host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Controller that it is registered through.
    pub controller_id: u16,
    /// Whether it holds the reservation.
    pub holds: bool,
    /// Its key.
    pub key: u64,
    /// Its identifier.
    pub host_id: HostId,
}

impl ReservationReport {
    /// Reads an extended report, whatever it says.
    #[must_use]
    pub fn decode(bytes: &[u8; REPORT_BYTES]) -> Self {
        let (head, rest) = ReservationHeader::read_from_prefix(bytes).expect("a report is longer than its head");
        let registered_count = head.registered.get();
        let count = usize::from(registered_count).min(REPORT_HOSTS_MAX);
        let hosts = rest.chunks_exact(size_of::<RegisteredHost>()).take(count).map(|chunk| {
            let host = RegisteredHost::read_from_bytes(chunk).expect("a chunk is a host");
            Registrant {
                controller_id: host.controller_id.get(),
                holds: host.status & 1 == 1,
                key: host.key.get(),
                host_id: host.host_id,
            }
        });
        Self {
            generation: head.generation.get(),
            kind: ReservationKind::from_number(head.kind),
            persists: head.persists & 1 == 1,
            registered_count,
            hosts: hosts.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinlog_device::Prng;

    #[test]
    fn commands_are_laid_out_as_specified() {
        let kind = ReservationKind::WriteExclusiveRegistrants;
        let table = [
            (Reservation::Register { key: 7, persists: Some(true) }, 0x0D, 0xC000_0000, [0, 7]),
            (Reservation::Register { key: 7, persists: None }, 0x0D, 0, [0, 7]),
            (Reservation::Replace { current: 7, key: 8 }, 0x0D, 2, [7, 8]),
            (Reservation::Unregister { key: 7 }, 0x0D, 1, [7, 0]),
            (Reservation::Acquire { key: 7, kind }, 0x11, 0x300, [7, 0]),
            (Reservation::Preempt { key: 7, victim: 9, kind, aborts: false }, 0x11, 0x301, [7, 9]),
            (Reservation::Preempt { key: 7, victim: 9, kind, aborts: true }, 0x11, 0x302, [7, 9]),
            (Reservation::Release { key: 7, kind }, 0x15, 0x300, [7, 0]),
            (Reservation::Clear { key: 7 }, 0x15, 1, [7, 0]),
            (Reservation::Report, 0x0E, 511, [0, 0]),
        ];
        for (command, opcode, first, keys) in table {
            let (entry, payload) = command.encode(5);
            assert_eq!((entry.opcode, entry.arguments[0].get(), payload), (opcode, first, keys), "{command:?}");
            assert_eq!(entry.namespace.get(), 5);
        }
    }

    #[test]
    fn a_report_is_read_whatever_it_says() {
        let mut bytes = [0; REPORT_BYTES];
        bytes[..10].copy_from_slice(&[9, 0, 0, 0, 3, 2, 0, 0, 0, 1]);
        for (index, host) in bytes[64..].chunks_exact_mut(64).enumerate() {
            host[0] = u8::try_from(index).expect("small");
            host[2] = u8::from(index == 1);
            host[8] = 0x77;
            host[16] = 0x55;
        }
        let report = ReservationReport::decode(&bytes);
        assert_eq!((report.generation, report.registered_count, report.persists), (9, 2, true));
        assert_eq!(report.kind, Some(ReservationKind::WriteExclusiveRegistrants));
        assert_eq!(report.hosts.len(), 2);
        assert!(!report.hosts[0].holds && report.hosts[1].holds && report.hosts[1].key == 0x77);
        bytes[4..7].fill(0xFF);
        let report = ReservationReport::decode(&bytes);
        assert_eq!((report.registered_count, report.hosts.len(), report.kind), (u16::MAX, REPORT_HOSTS_MAX, None));
        let mut prng = Prng::new(3);
        for _ in 0..20_000 {
            prng.fill(&mut bytes);
            let report = ReservationReport::decode(&bytes);
            assert!(report.hosts.len() <= usize::from(report.registered_count).min(REPORT_HOSTS_MAX));
        }
    }
}
