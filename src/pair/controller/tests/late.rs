//! Changes that a host has left at the node that does not serve: none is performed after what the host was answered elsewhere.

use super::*;
use crate::{base::Pass, pair::interconnect::Message};

impl Pair {
    /// A pass for host `number` at the node that does not serve `vol-a`.
    pub(super) fn pass_for(&mut self, node: usize, number: u8) -> Pass {
        let operation = self.block(node, 0xee);
        let request = self.begin_as(node, number, None, operation);
        match self.end(node, request) {
            Err(VolumeError::Late(pass)) => pass,
            other => panic!("a change without a pass: {other:?}"),
        }
    }

    /// Host 1 writes the first block; what comes of it.
    fn write_with(&mut self, node: usize, pass: Option<Pass>, value: u8) -> Result<(), VolumeError> {
        let operation = self.block(node, value);
        let request = self.begin_as(node, 1, pass, operation);
        self.end(node, request).map(|_| ())
    }
}

/// The host has gone to the owner, which has answered it there: what it left at the other node is refused whenever it is found, and what it sends there later is not.
#[test]
fn what_was_left_where_it_is_forwarded_is_not_performed_after_what_the_owner_has_answered() {
    let mut pair = Pair::with_volume(61);
    let pass = pair.pass_for(1, 1);
    assert_eq!((pair.write_with(1, Some(pass), 1), pair.read(0, "vol-a", 0)), (Ok(()), 1));
    // Others, and clients without an identity, end nobody's pass.
    let operation = pair.block(0, 2);
    let other = pair.begin_as(0, 2, None, operation);
    pair.end(0, other).expect("it is served");
    pair.write(0, "vol-a", 1, 9);
    assert_eq!(pair.write_with(1, Some(pass), 3), Ok(()));
    pair.write(1, "vol-a", 1, 8);
    for value in [4, 5] {
        assert_eq!(pair.write_with(0, None, value), Ok(()));
        let Err(VolumeError::Late(next)) = pair.write_with(1, Some(pass), 0xee) else { panic!("the pass has ended") };
        assert!(next > pass && pair.read(1, "vol-a", 0) == value);
        assert_eq!(pair.write_with(1, Some(next), value + 10), Ok(()));
    }
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(0, "vol-a", 1)), (15, 8));
}

/// The change is with the interconnect when its host goes to the owner.
#[test]
fn what_is_on_its_way_to_the_owner_is_refused_there() {
    let mut pair = Pair::with_volume(62);
    let pass = pair.pass_for(1, 1);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Request { .. }));
    let operation = pair.block(1, 1);
    let late = pair.begin_as(1, 1, Some(pass), operation);
    pair.turns(50);
    assert_eq!(pair.wire.borrow().late.len(), 1);
    assert_eq!((pair.write_with(0, None, 1), pair.write_with(0, None, 2)), (Ok(()), Ok(())));
    pair.wire.borrow_mut().deliver_late();
    assert!(matches!(pair.end(1, late), Err(VolumeError::Late(next)) if next > pass));
    assert_eq!(pair.read(0, "vol-a", 0), 2);
}

/// The change waits for an owner when its host goes to the one that there is, and that one dies.
#[test]
fn what_has_waited_for_a_takeover_is_not_performed_after_what_the_former_owner_has_answered() {
    let mut pair = Pair::with_volume(63);
    let pass = pair.pass_for(1, 1);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Request { .. }));
    let operation = pair.block(1, 1);
    let late = pair.begin_as(1, 1, Some(pass), operation);
    pair.turns(50);
    assert_eq!((pair.write_with(0, None, 1), pair.write_with(0, None, 2)), (Ok(()), Ok(())));
    pair.kill(0);
    let Err(VolumeError::Late(next)) = pair.end(1, late) else { panic!("the new owner knows no pass") };
    assert_eq!((pair.read(1, "vol-a", 0), next > pass), (2, true));
    assert_eq!((pair.write_with(1, None, 3), pair.read(1, "vol-a", 0)), (Ok(()), 3), "what comes to it now");
    pair.wire.borrow_mut().is_late = None;
    pair.wire.borrow_mut().late.clear();
    pair.start(0);
    pair.until_in_sync();
    for old in [None, Some(pass), Some(next)] {
        assert!(matches!(pair.write_with(1, old, 0xee), Err(VolumeError::Late(_))), "{old:?}: after the giveback");
    }
    assert_eq!(pair.read(0, "vol-a", 0), 3);
}

/// It is older than what the owner has answered since, and is not performed a second time.
#[test]
fn a_change_that_was_performed_is_answered_although_its_pass_has_ended() {
    let mut pair = Pair::with_volume(64);
    let pass = pair.pass_for(1, 1);
    pair.wire.borrow_mut().is_late = Some(|message| matches!(message, Message::Reply { .. }));
    let operation = pair.block(1, 1);
    let first = pair.begin_as(1, 1, Some(pass), operation);
    pair.turns(50);
    assert_eq!(pair.read(0, "vol-a", 0), 1, "it is performed, and nobody has heard of it");
    assert_eq!(pair.write_with(0, None, 2), Ok(()));
    pair.wire.borrow_mut().late.clear();
    pair.wire.borrow_mut().is_late = None;
    pair.wire.borrow_mut().lose_path();
    pair.end(1, first).expect("it is known by its name");
    assert_eq!(pair.read(0, "vol-a", 0), 2);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_of_late_changes_are_found() {
    use crate::base::planted;
    let bugs: [(&str, fn()); 3] = [
        ("pass-not-looked-at", what_is_on_its_way_to_the_owner_is_refused_there),
        ("pass-outlives-direct-change", what_is_on_its_way_to_the_owner_is_refused_there),
        (
            "waited-needs-no-pass",
            what_has_waited_for_a_takeover_is_not_performed_after_what_the_former_owner_has_answered,
        ),
    ];
    for (bug, test) in bugs {
        planted::choose(bug);
        let is_found = std::panic::catch_unwind(test).is_err();
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}
