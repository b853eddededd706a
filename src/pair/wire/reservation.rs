//! Commands about reservations, as payloads of requests.
//!
//! ```text
//!   0 action      2 flags             8 key of the host, or 0     16 new key, or preempted key, or 0
//!   1 kind or 0   3 reserved, zero
//! ```

use crate::{
    format::reservation::ReservationKind,
    fs::reservation::{RegisterAction, ReservationCommand},
};
use std::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U64};

/// Bytes of a command.
pub const COMMAND_BYTES: usize = size_of::<RawCommand>();

const _: () = assert!(COMMAND_BYTES == 24);

mod action {
    pub(super) const REGISTER: u8 = 1;
    pub(super) const UNREGISTER: u8 = 2;
    pub(super) const REPLACE: u8 = 3;
    pub(super) const ACQUIRE: u8 = 4;
    pub(super) const PREEMPT: u8 = 5;
    pub(super) const PREEMPT_AND_ABORT: u8 = 6;
    pub(super) const RELEASE: u8 = 7;
    pub(super) const CLEAR: u8 = 8;
    pub(super) const SET_PERSISTENCE: u8 = 9;
}

/// The host's key is not looked at.
const FLAG_IGNORES_KEY: u8 = 1;
/// Whether the state survives the loss of power is changed, to what the next flag says.
const FLAG_SETS_PERSISTENCE: u8 = 2;
const FLAG_PERSISTS: u8 = 4;

#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCommand {
    action: u8,
    kind: u8,
    flags: u8,
    reserved: [u8; 5],
    key: U64,
    other: U64,
}

impl RawCommand {
    fn new(action: u8, key: Option<u64>, other: u64) -> Self {
        let flags = if key.is_none() { FLAG_IGNORES_KEY } else { 0 };
        Self { action, kind: 0, flags, reserved: [0; 5], key: key.unwrap_or(0).into(), other: other.into() }
    }

    fn persistence(mut self, persists: Option<bool>) -> Self {
        self.flags |= match persists {
            None => 0,
            Some(false) => FLAG_SETS_PERSISTENCE,
            Some(true) => FLAG_SETS_PERSISTENCE | FLAG_PERSISTS,
        };
        self
    }
}

impl From<ReservationCommand> for RawCommand {
    fn from(command: ReservationCommand) -> Self {
        let with_kind = |raw: Self, kind: ReservationKind| Self { kind: kind as u8, ..raw };
        match command {
            ReservationCommand::Register { action, persists } => {
                let raw = match action {
                    RegisterAction::Register { key } => Self::new(action::REGISTER, Some(0), key),
                    RegisterAction::Unregister { current } => Self::new(action::UNREGISTER, current, 0),
                    RegisterAction::Replace { current, key } => Self::new(action::REPLACE, current, key),
                };
                raw.persistence(persists)
            }
            ReservationCommand::Acquire { key, kind } => with_kind(Self::new(action::ACQUIRE, Some(key), 0), kind),
            ReservationCommand::Preempt { key, preempted, kind, aborts } => {
                let action = if aborts { action::PREEMPT_AND_ABORT } else { action::PREEMPT };
                with_kind(Self::new(action, Some(key), preempted), kind)
            }
            ReservationCommand::Release { key, kind } => with_kind(Self::new(action::RELEASE, Some(key), 0), kind),
            ReservationCommand::Clear { key } => Self::new(action::CLEAR, Some(key), 0),
            ReservationCommand::SetPersistence(persists) => {
                Self::new(action::SET_PERSISTENCE, Some(0), 0).persistence(Some(persists))
            }
        }
    }
}

/// The bytes of a command.
#[must_use]
pub fn write_command(command: ReservationCommand) -> Vec<u8> {
    RawCommand::from(command).as_bytes().to_vec()
}

/// The command that these bytes are; `None`: they are none that [`write_command`] makes.
#[must_use]
pub fn read_command(bytes: &[u8]) -> Option<ReservationCommand> {
    let raw = RawCommand::read_from_bytes(bytes).ok()?;
    let flag = |flag: u8| raw.flags & flag != 0;
    let (key, other) = (raw.key.get(), raw.other.get());
    let current = (!flag(FLAG_IGNORES_KEY)).then_some(key);
    let persists = flag(FLAG_SETS_PERSISTENCE).then_some(flag(FLAG_PERSISTS));
    let kind = ReservationKind::from_byte(raw.kind);
    let register = |action| ReservationCommand::Register { action, persists };
    let command = match raw.action {
        action::REGISTER => register(RegisterAction::Register { key: other }),
        action::UNREGISTER => register(RegisterAction::Unregister { current }),
        action::REPLACE => register(RegisterAction::Replace { current, key: other }),
        action::ACQUIRE => ReservationCommand::Acquire { key, kind: kind? },
        action::PREEMPT | action::PREEMPT_AND_ABORT => {
            let aborts = raw.action == action::PREEMPT_AND_ABORT;
            ReservationCommand::Preempt { key, preempted: other, kind: kind?, aborts }
        }
        action::RELEASE => ReservationCommand::Release { key, kind: kind? },
        action::CLEAR => ReservationCommand::Clear { key },
        action::SET_PERSISTENCE => ReservationCommand::SetPersistence(persists?),
        _ => return None,
    };
    // What the command does not use is zero.
    (RawCommand::from(command) == raw).then_some(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    /// Every command has bytes of its own, and no other bytes are one.
    #[test]
    fn commands_survive_the_round_trip_and_nothing_else_is_one() {
        let mut commands = vec![
            ReservationCommand::Clear { key: u64::MAX },
            ReservationCommand::SetPersistence(false),
            ReservationCommand::SetPersistence(true),
        ];
        for persists in [None, Some(false), Some(true)] {
            let register = |action| ReservationCommand::Register { action, persists };
            commands.push(register(RegisterAction::Register { key: 1 << 60 }));
            for current in [None, Some(0), Some(7)] {
                commands.push(register(RegisterAction::Unregister { current }));
                commands.push(register(RegisterAction::Replace { current, key: 9 }));
            }
        }
        for kind in ReservationKind::ALL {
            commands.push(ReservationCommand::Acquire { key: 5, kind });
            commands.push(ReservationCommand::Release { key: 5, kind });
            for aborts in [false, true] {
                commands.push(ReservationCommand::Preempt { key: 5, preempted: 6, kind, aborts });
            }
        }
        let mut prng = Prng::new(3);
        for &command in &commands {
            let bytes = write_command(command);
            assert_eq!(read_command(&bytes), Some(command));
            for _ in 0..500 {
                let mut other = bytes.clone();
                let place = usize::try_from(prng.between(0, 23)).expect("small");
                if let Some(byte) = other.get_mut(place) {
                    prng.fill(std::slice::from_mut(byte));
                }
                if let Some(read) = read_command(&other) {
                    assert_eq!(write_command(read), other);
                }
            }
        }
        assert_eq!(read_command(&[0; 24]), None);
        assert_eq!(read_command(&[1; 23]), None);
    }
}
