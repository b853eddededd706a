//! The tables of the specification, one command after the other, and random ones beside a model.

use super::*;
use crate::base::Prng;
use ReservationKind::{
    ExclusiveAccess, ExclusiveAccessAll, ExclusiveAccessRegistrants, WriteExclusive, WriteExclusiveAll,
    WriteExclusiveRegistrants,
};

const KEY: u64 = 0xabc;

fn host(number: u8) -> HostId {
    HostId::new([number; 16]).expect("not zero")
}

/// Two registrants with different keys; the first one holds it.
fn held(kind: ReservationKind) -> Reservation {
    let mut state = Reservation::default();
    for number in [1, 2] {
        state = next(&state, number, register(KEY + u64::from(number)));
    }
    next(&state, 1, ReservationCommand::Acquire { key: KEY + 1, kind })
}

fn register(key: u64) -> ReservationCommand {
    ReservationCommand::Register { action: RegisterAction::Register { key }, persists: None }
}

fn unregister(current: Option<u64>) -> ReservationCommand {
    ReservationCommand::Register { action: RegisterAction::Unregister { current }, persists: None }
}

fn replace(current: Option<u64>, key: u64) -> ReservationCommand {
    ReservationCommand::Register { action: RegisterAction::Replace { current, key }, persists: None }
}

fn preempt(key: u64, preempted: u64, kind: ReservationKind) -> ReservationCommand {
    ReservationCommand::Preempt { key, preempted, kind, aborts: true }
}

fn next(state: &Reservation, number: u8, command: ReservationCommand) -> Reservation {
    let decided = state.decide(host(number), command).expect("it is allowed");
    decided.next.unwrap_or_else(|| state.clone())
}

fn keys(state: &Reservation) -> Vec<u64> {
    state.registrants.iter().map(|registrant| registrant.key - KEY).collect()
}

/// The table of the specification (base 2.0, section 8.19, "Command Behavior in the Presence of a Reservation"), every cell: what a host that is the
/// holder, a registrant, none, or a client without an identity may read and write.
#[test]
fn access_is_as_the_specification_s_table_says() {
    //                                          holder        registrant      none
    let table: [(ReservationKind, [(bool, bool); 3]); 6] = [
        (WriteExclusive, [(true, true), (true, false), (true, false)]),
        (ExclusiveAccess, [(true, true), (false, false), (false, false)]),
        (WriteExclusiveRegistrants, [(true, true), (true, true), (true, false)]),
        (ExclusiveAccessRegistrants, [(true, true), (true, true), (false, false)]),
        (WriteExclusiveAll, [(true, true), (true, true), (true, false)]),
        (ExclusiveAccessAll, [(true, true), (true, true), (false, false)]),
    ];
    for (kind, [holder, registrant, none]) in table {
        let state = held(kind);
        let all = [(Some(host(1)), holder), (Some(host(2)), registrant), (Some(host(3)), none), (None, none)];
        for (who, (reads, writes)) in all {
            assert_eq!(state.allows(who, Access::Read), reads, "{kind:?}, {who:?}");
            assert_eq!(state.allows(who, Access::Write), writes, "{kind:?}, {who:?}");
        }
    }
    let state = next(&Reservation::default(), 1, register(KEY));
    assert!(state.allows(None, Access::Write) && state.allows(Some(host(9)), Access::Read), "nothing is held");
}

#[test]
fn a_host_registers_with_one_key() {
    let state = next(&Reservation::default(), 1, register(KEY));
    assert_eq!(state.generation, 1);
    assert_eq!(state.decide(host(1), register(KEY + 1)), Err(Refused::Conflict));
    assert_eq!(next(&state, 1, register(KEY)).generation, 2, "again with the same key");
    assert_eq!(state.decide(host(1), replace(Some(KEY + 1), 9)), Err(Refused::Conflict));
    assert_eq!(state.decide(host(2), replace(Some(KEY), 9)), Err(Refused::Conflict));
    assert_eq!(keys(&next(&state, 1, replace(Some(KEY), KEY + 7))), [7]);
    assert_eq!(keys(&next(&state, 1, replace(None, KEY + 7))), [7]);
    assert_eq!(keys(&next(&state, 2, replace(None, KEY + 7))), [0, 7], "without a look at the key it registers");
    assert_eq!(state.decide(host(1), unregister(Some(KEY + 1))), Err(Refused::Conflict));
    assert_eq!(state.decide(host(2), unregister(None)), Err(Refused::Conflict));
    assert!(next(&state, 1, unregister(None)).registrants.is_empty());
    let persists = ReservationCommand::Register { action: RegisterAction::Register { key: KEY }, persists: Some(true) };
    let state = next(&state, 1, persists);
    assert!(state.persists && next(&state, 2, register(1 + KEY)).persists);
    assert!(!next(&state, 3, ReservationCommand::SetPersistence(false)).persists);
}

#[test]
fn there_are_only_so_many_registrants() {
    let mut state = Reservation::default();
    for number in 1..=128 {
        state = next(&state, number, register(KEY));
    }
    assert_eq!(state.decide(host(129), register(KEY)), Err(Refused::Full));
    assert_eq!(state.decide(host(129), replace(None, KEY)), Err(Refused::Full));
    assert_eq!(next(&state, 128, replace(None, KEY + 1)).registrants.len(), 128);
    let state = next(&state, 5, unregister(None));
    assert_eq!(next(&state, 129, register(KEY)).registrants.len(), 128);
}

#[test]
fn acquire_and_release_are_the_holder_s() {
    for kind in ReservationKind::ALL {
        let state = held(kind);
        let acquire = |key, kind| ReservationCommand::Acquire { key, kind };
        let release = |key, kind| ReservationCommand::Release { key, kind };
        let other = ReservationKind::ALL.into_iter().find(|&other| other != kind).expect("six");
        assert_eq!(next(&state, 1, acquire(KEY + 1, kind)), state, "again");
        assert_eq!(state.decide(host(1), acquire(KEY + 1, other)), Err(Refused::Conflict));
        assert_eq!(state.decide(host(2), acquire(KEY + 2, other)), Err(Refused::Conflict));
        assert_eq!(state.decide(host(2), acquire(KEY + 2, kind)).is_ok(), kind.is_of_all(), "{kind:?}");
        assert_eq!(state.decide(host(3), acquire(KEY, kind)), Err(Refused::Conflict), "no registrant");
        assert_eq!(state.decide(host(1), acquire(KEY, kind)), Err(Refused::Conflict), "another key");
        assert_eq!(state.decide(host(1), release(KEY + 1, other)), Err(Refused::Invalid));
        assert_eq!(state.decide(host(1), release(KEY, kind)), Err(Refused::Conflict));
        assert_eq!(next(&state, 1, release(KEY + 1, kind)).held, None);
        let by_other = next(&state, 2, release(KEY + 2, kind));
        assert_eq!(by_other.held.is_none(), kind.is_of_all(), "{kind:?}");
        // A holder that is no registrant any more holds nothing; of all registrants, the last one does.
        let left = next(&state, 1, unregister(Some(KEY + 1)));
        assert_eq!(left.held.is_some(), kind.is_of_all(), "{kind:?}");
        assert_eq!(next(&left, 2, unregister(Some(KEY + 2))).held, None);
        let cleared = next(&state, 2, ReservationCommand::Clear { key: KEY + 2 });
        assert!(cleared.held.is_none() && cleared.registrants.is_empty());
        assert_eq!(cleared.generation, state.generation + 1);
    }
}

#[test]
fn preempting_the_holder_takes_its_place_and_ends_its_registration() {
    for kind in [WriteExclusive, ExclusiveAccess, WriteExclusiveRegistrants, ExclusiveAccessRegistrants] {
        for wanted in ReservationKind::ALL {
            let state = next(&held(kind), 3, register(KEY + 1));
            let decided = state.decide(host(2), preempt(KEY + 2, KEY + 1, wanted)).expect("allowed");
            assert_eq!(decided.aborted, [host(1), host(3)], "all that have the holder's key");
            let state = decided.next.expect("changed");
            assert_eq!((keys(&state), state.held.map(|held| held.kind)), (vec![2], Some(wanted)));
            assert!(state.is_holder(host(2)) && !state.allows(Some(host(1)), Access::Write));
        }
        let state = held(kind);
        assert_eq!(state.decide(host(2), preempt(KEY + 2, 0, kind)), Err(Refused::Invalid));
        assert_eq!(state.decide(host(2), preempt(KEY + 2, KEY + 9, kind)), Err(Refused::Conflict), "nobody's key");
        assert_eq!(state.decide(host(3), preempt(KEY, KEY + 1, kind)), Err(Refused::Conflict), "no registrant");
        assert_eq!(keys(&next(&state, 1, preempt(KEY + 1, KEY + 2, kind))), [1], "another registrant");
        assert_eq!(next(&state, 2, preempt(KEY + 2, KEY + 2, kind)).registrants.len(), 1, "itself");
        let changed = next(&state, 1, preempt(KEY + 1, KEY + 1, ExclusiveAccessAll));
        assert_eq!((keys(&changed), changed.held.map(|held| held.kind)), (vec![1, 2], Some(ExclusiveAccessAll)));
    }
}

#[test]
fn preempting_all_registrants_leaves_one() {
    for kind in [WriteExclusiveAll, ExclusiveAccessAll] {
        let state = next(&held(kind), 3, register(KEY + 2));
        let alone = next(&state, 1, preempt(KEY + 1, 0, WriteExclusive));
        assert_eq!(keys(&alone), [1]);
        assert_eq!(alone.held, Some(Held { kind: WriteExclusive, holder: Some(host(1)) }));
        let fewer = next(&state, 1, preempt(KEY + 1, KEY + 2, WriteExclusive));
        assert_eq!((keys(&fewer), fewer.held.map(|held| held.kind)), (vec![1], Some(kind)), "the kind stays");
        assert_eq!(state.decide(host(1), preempt(KEY + 1, KEY + 7, kind)), Err(Refused::Conflict));
    }
    let state = next(&next(&Reservation::default(), 1, register(KEY + 1)), 2, register(KEY + 2));
    let fewer = next(&state, 1, preempt(KEY + 1, KEY + 2, WriteExclusive));
    assert_eq!((keys(&fewer), fewer.held), (vec![1], None), "nothing was held");
}

#[test]
fn what_does_not_persist_is_gone_without_power() {
    let mut state = held(ExclusiveAccess);
    let mut kept = next(&state, 1, ReservationCommand::SetPersistence(true));
    state.lose_power();
    assert!(state.held.is_none() && state.registrants.is_empty() && state.generation > 0);
    let before = kept.clone();
    kept.lose_power();
    assert_eq!(kept, before);
}

fn any_command(prng: &mut Prng) -> ReservationCommand {
    let kind = *prng.pick(&ReservationKind::ALL);
    let mut key = || prng.between(0, 3);
    let (own, other) = (key(), key());
    let ignores = prng.chance(1, 3);
    let current = (!ignores).then_some(own);
    let persists = [None, Some(false), Some(true)][usize::try_from(prng.between(0, 2)).expect("small")];
    let action = [
        RegisterAction::Register { key: own },
        RegisterAction::Unregister { current },
        RegisterAction::Replace { current, key: other },
    ];
    match prng.between(0, 9) {
        0 => ReservationCommand::Register { action: action[1], persists },
        1 => ReservationCommand::Register { action: action[2], persists },
        2..=4 => ReservationCommand::Register { action: action[0], persists },
        5 | 6 => ReservationCommand::Acquire { key: own, kind },
        7 => ReservationCommand::Preempt { key: own, preempted: other, kind, aborts: ignores },
        8 => ReservationCommand::Release { key: own, kind },
        _ => ReservationCommand::Clear { key: own },
    }
}

/// Whatever hosts do, what comes out can be written, and says what an account that knows no shortcuts says.
#[test]
fn random_commands_keep_the_invariants() {
    for seed in 0..50 {
        let mut prng = Prng::new(seed);
        let mut state = Reservation::default();
        for _ in 0..400 {
            let number = u8::try_from(prng.between(1, 4)).expect("small");
            let command = any_command(&mut prng);
            let before = state.clone();
            let Ok(Decided { next, aborted, notices }) = state.decide(host(number), command) else { continue };
            state = next.unwrap_or(state);
            assert_eq!(state.check(), Ok(()), "{command:?} of {number} on {before:?}");
            assert_eq!(Reservation::read(&state.to_bytes()), Ok(state.clone()));
            let counts = matches!(
                command,
                ReservationCommand::Register { .. }
                    | ReservationCommand::Preempt { .. }
                    | ReservationCommand::Clear { .. }
            );
            assert_eq!(state.generation, before.generation + u32::from(counts), "{command:?}");
            assert!(aborted.iter().all(|host| before.registrant(*host).is_some() && state.registrant(*host).is_none()));
            assert!(notices.iter().all(|(told, _)| *told != host(number) && before.registrant(*told).is_some()));
            // Others than the one that asks lose their registration by preemption and clearing alone.
            let may_lose = matches!(command, ReservationCommand::Preempt { .. } | ReservationCommand::Clear { .. });
            for registrant in before.registrants.iter().filter(|registrant| registrant.host != host(number)) {
                assert!(may_lose || state.registrant(registrant.host) == Some(registrant), "{command:?}");
            }
        }
    }
}

/// Hosts 1 to 3 have registered with their numbers as keys, and host 1 holds it.
fn three(kind: ReservationKind) -> Reservation {
    let registrants = (1..=3).map(|number| Registrant { host: host(number), key: u64::from(number) }).collect();
    let held = Some(Held { kind, holder: (!kind.is_of_all()).then(|| host(1)) });
    Reservation { held, registrants, ..Reservation::default() }
}

/// Who does what while host 1 holds it in a way, and who is told.
type Case = (ReservationKind, u8, ReservationCommand, &'static [(u8, Notice)]);

#[test]
fn the_others_are_told_of_what_concerns_them() {
    use Notice::{RegistrationPreempted as Gone, ReservationPreempted as Cleared, ReservationReleased as Released};
    use ReservationKind::{ExclusiveAccess, WriteExclusive, WriteExclusiveAll, WriteExclusiveRegistrants};
    let preempt = |key: u64, preempted, kind| ReservationCommand::Preempt { key, preempted, kind, aborts: false };
    let release = |kind| ReservationCommand::Release { key: 1, kind };
    let unregister = |key| {
        let action = RegisterAction::Unregister { current: Some(key) };
        ReservationCommand::Register { action, persists: None }
    };
    let cases: [Case; 13] = [
        (WriteExclusive, 2, preempt(2, 1, WriteExclusive), &[(1, Gone)]),
        (WriteExclusive, 2, preempt(2, 1, ExclusiveAccess), &[(1, Gone), (3, Released)]),
        (WriteExclusive, 2, preempt(2, 3, WriteExclusive), &[(3, Gone)]),
        (WriteExclusive, 1, preempt(1, 1, ExclusiveAccess), &[(2, Released), (3, Released)]),
        (WriteExclusive, 2, preempt(2, 2, WriteExclusive), &[]),
        (WriteExclusiveAll, 2, preempt(2, 0, WriteExclusive), &[(1, Gone), (3, Gone)]),
        (WriteExclusive, 1, release(WriteExclusive), &[]),
        (WriteExclusiveRegistrants, 1, release(WriteExclusiveRegistrants), &[(2, Released), (3, Released)]),
        (WriteExclusiveAll, 1, release(WriteExclusiveAll), &[(2, Released), (3, Released)]),
        (WriteExclusive, 1, unregister(1), &[]),
        (WriteExclusiveRegistrants, 1, unregister(1), &[(2, Released), (3, Released)]),
        (WriteExclusiveRegistrants, 2, unregister(2), &[]),
        (WriteExclusive, 2, ReservationCommand::Clear { key: 2 }, &[(1, Cleared), (3, Cleared)]),
    ];
    for (kind, number, command, told) in cases {
        let decided = three(kind).decide(host(number), command).expect("it is done");
        let expected: Vec<_> = told.iter().map(|&(number, notice)| (host(number), notice)).collect();
        assert_eq!(decided.notices, expected, "{kind:?}: {command:?} of {number}");
    }
}
