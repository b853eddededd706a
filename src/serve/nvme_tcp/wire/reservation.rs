//! Reservation commands and the page that Reservation Report returns (base 2.0, sections 7.2 to 7.5).

use super::command::{Command, Status, opcode};
use crate::{
    format::reservation::{Reservation, ReservationKind},
    fs::reservation::{RegisterAction, ReservationCommand},
};
use std::mem::size_of;
use zerocopy::{
    Immutable, IntoBytes,
    little_endian::{U16, U32, U64},
};

/// RESCAP of Identify Namespace: survives the loss of power, all six types, and IEKEY as since revision 1.3 (base 2.0, figure 97 of the NVM command set).
pub const CAPABILITIES: u8 = 0xff;

/// Dword 11 of Reservation Report: identifiers of 128 bits, which those of fabrics are.
const EXTENDED: u32 = 1;
/// Dword 10: the host's own key is not looked at.
const IGNORES_KEY: u32 = 1 << 3;

/// Bytes of the data of a command about reservations, to the controller; `None`: it is none.
#[must_use]
pub fn data_bytes(opcode: u8) -> Option<u32> {
    match opcode {
        opcode::RESERVATION_REGISTER | opcode::RESERVATION_ACQUIRE => Some(16),
        opcode::RESERVATION_RELEASE => Some(8),
        _ => None,
    }
}

/// What is asked, as far as the entry says it; keys come with the data.
///
/// # Errors
/// A field has a value that it may not have.
pub fn check(command: &Command) -> Result<(), Status> {
    parse(command, &[0; 16]).map(drop)
}

/// What is asked by a command that [`data_bytes`] knows, with its data.
///
/// # Errors
/// A field has a value that it may not have.
pub fn parse(command: &Command, data: &[u8]) -> Result<ReservationCommand, Status> {
    let options = command.word(10);
    let [low, kind, ..] = options.to_le_bytes();
    let (action, ignores_key) = (low & 0b111, options & IGNORES_KEY != 0);
    let key =
        |place: usize| data.get(place..).and_then(|rest| rest.first_chunk()).map_or(0, |key| u64::from_le_bytes(*key));
    let (own, other) = (key(0), key(8));
    let kind = || ReservationKind::from_byte(kind).ok_or(Status::INVALID_FIELD);
    if command.opcode != opcode::RESERVATION_REGISTER && ignores_key {
        // Since revision 1.3 only Register knows it.
        return Err(Status::INVALID_FIELD);
    }
    Ok(match (command.opcode, action) {
        (opcode::RESERVATION_REGISTER, action) => {
            let current = (!ignores_key).then_some(own);
            let action = match action {
                0 => RegisterAction::Register { key: other },
                1 => RegisterAction::Unregister { current },
                2 => RegisterAction::Replace { current, key: other },
                _ => return Err(Status::INVALID_FIELD),
            };
            let persists = match options >> 30 {
                0 => None,
                2 => Some(false),
                3 => Some(true),
                _ => return Err(Status::INVALID_FIELD),
            };
            ReservationCommand::Register { action, persists }
        }
        (opcode::RESERVATION_ACQUIRE, 0) => ReservationCommand::Acquire { key: own, kind: kind()? },
        (opcode::RESERVATION_ACQUIRE, 1 | 2) => {
            ReservationCommand::Preempt { key: own, preempted: other, kind: kind()?, aborts: action == 2 }
        }
        (opcode::RESERVATION_RELEASE, 0) => ReservationCommand::Release { key: own, kind: kind()? },
        (opcode::RESERVATION_RELEASE, 1) => ReservationCommand::Clear { key: own },
        _ => return Err(Status::INVALID_FIELD),
    })
}

/// Bytes that a Reservation Report asks for.
///
/// # Errors
/// It asks for host identifiers of 64 bits.
pub fn report_bytes(command: &Command) -> Result<u64, Status> {
    if command.word(11) & EXTENDED == 0 {
        return Err(Status::HOST_IDENTIFIER_FORMAT);
    }
    Ok((u64::from(command.word(10)) + 1) * size_of::<U32>() as u64)
}

/// The head of the extended data structure (figure 415).
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Head {
    generation: U32,
    kind: u8,
    registrants: U16,
    reserved_7: [u8; 2],
    persists: u8,
    reserved_10: [u8; 54],
}

/// A registrant in it (figure 416).
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Registered {
    controller: U16,
    /// Bit 0: it is a holder.
    status: u8,
    reserved_3: [u8; 5],
    key: U64,
    host: [u8; 16],
    reserved_32: [u8; 32],
}

const _: () = assert!(size_of::<Head>() == 64 && size_of::<Registered>() == 64);

/// Of a controller that is made by Connect (figure 416): what a host has at either node, or had.
const DYNAMIC_CONTROLLER: u16 = 0xffff;

/// The page.
#[must_use]
pub fn report(state: &Reservation) -> Vec<u8> {
    let head = Head {
        generation: state.generation.into(),
        kind: state.held.map_or(0, |held| held.kind as u8),
        registrants: U16::new(u16::try_from(state.registrants.len()).expect("at most REGISTRANTS_MAX")),
        reserved_7: [0; 2],
        persists: u8::from(state.persists),
        reserved_10: [0; 54],
    };
    let mut page = head.as_bytes().to_vec();
    for registrant in &state.registrants {
        let registered = Registered {
            controller: U16::new(DYNAMIC_CONTROLLER),
            status: u8::from(state.is_holder(registrant.host)),
            reserved_3: [0; 5],
            key: registrant.key.into(),
            host: registrant.host.bytes(),
            reserved_32: [0; 32],
        };
        page.extend_from_slice(registered.as_bytes());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::HostId,
        format::reservation::{Held, Registrant},
    };

    fn command(opcode: u8, options: u32) -> Command {
        let mut entry = [0; 64];
        entry[0] = opcode;
        entry[40..44].copy_from_slice(&options.to_le_bytes());
        Command::parse(&entry)
    }

    #[test]
    fn commands_are_what_their_fields_say() {
        let data: Vec<u8> = [7_u64, 9].into_iter().flat_map(u64::to_le_bytes).collect();
        let parsed = |opcode, options| parse(&command(opcode, options), &data);
        let register = |action, persists| Ok(ReservationCommand::Register { action, persists });
        let kind = ReservationKind::ExclusiveAccessAll;
        assert_eq!(parsed(0x0d, 0), register(RegisterAction::Register { key: 9 }, None));
        assert_eq!(parsed(0x0d, 1 | 2 << 30), register(RegisterAction::Unregister { current: Some(7) }, Some(false)));
        assert_eq!(parsed(0x0d, 1 | 8), register(RegisterAction::Unregister { current: None }, None));
        let replace = RegisterAction::Replace { current: None, key: 9 };
        assert_eq!(parsed(0x0d, 2 | 8 | 3 << 30), register(replace, Some(true)));
        assert_eq!(parsed(0x11, 6 << 8), Ok(ReservationCommand::Acquire { key: 7, kind }));
        for (action, aborts) in [(1, false), (2, true)] {
            let preempt = ReservationCommand::Preempt { key: 7, preempted: 9, kind, aborts };
            assert_eq!(parsed(0x11, 6 << 8 | action), Ok(preempt));
        }
        assert_eq!(parsed(0x15, 6 << 8), Ok(ReservationCommand::Release { key: 7, kind }));
        assert_eq!(parsed(0x15, 1), Ok(ReservationCommand::Clear { key: 7 }));
        let wrong = [(0x0d, 3), (0x0d, 1 << 30), (0x11, 0), (0x11, 7 << 8), (0x11, 6 << 8 | 3), (0x11, 6 << 8 | 8)];
        for (opcode, options) in wrong.into_iter().chain([(0x15, 0), (0x15, 2), (0x15, 1 | 8), (0x0e, 0)]) {
            assert_eq!(parsed(opcode, options), Err(Status::INVALID_FIELD), "{opcode:#x} {options:#x}");
        }
        assert_eq!([0x0d, 0x11, 0x15, 0x0e].map(data_bytes), [Some(16), Some(16), Some(8), None]);
    }

    #[test]
    fn a_report_has_the_extended_structure() {
        let host = |number| HostId::new([number; 16]).expect("not zero");
        let registrants = vec![Registrant { host: host(1), key: 5 }, Registrant { host: host(2), key: 6 }];
        let held = Some(Held { kind: ReservationKind::WriteExclusive, holder: Some(host(2)) });
        let page = report(&Reservation { generation: 0x0102_0304, persists: true, held, registrants });
        assert_eq!(page.len(), 64 * 3);
        assert_eq!(page[..10], [4, 3, 2, 1, 1, 2, 0, 0, 0, 1]);
        assert_eq!((&page[64..67], page[72], &page[80..96]), (&[0xff, 0xff, 0][..], 5, &[1; 16][..]));
        assert_eq!((page[128 + 2], page[128 + 8], &page[144..160]), (1, 6, &[2; 16][..]));
        let mut entry = [0; 64];
        (entry[0], entry[40]) = (0x0e, 31);
        assert_eq!(report_bytes(&Command::parse(&entry)), Err(Status::HOST_IDENTIFIER_FORMAT));
        entry[44] = 1;
        assert_eq!(report_bytes(&Command::parse(&entry)), Ok(128));
    }
}
