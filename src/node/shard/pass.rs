//! Passes: which changes that came through the node that does not serve may still be performed.
//!
//! A host that gives up its path to the partner goes on here. What it left at the partner's must not be performed after what it was answered here since. So a change of a host
//! that did not come straight to this node needs a pass of its volume and host, and every one that did ends that pass. A change without one that is alive is never performed; with
//! the refusal comes a pass for what arrives at the partner's from then on. [The argument](../../../docs/decisions/0021-late-changes-need-a-pass.md).
//!
//! # Invariants
//!
//! 1. While a pass is alive no change of its host came straight to its volume.
//! 2. A pass that is dead is never alive again: not in this ownership, whose passes are counted, nor in a later one, whose epoch is greater.
//! 3. There are at most [`PASSES_MAX`]; one more ends all the others, which costs their hosts a refusal.

use crate::{
    base::{Epoch, HostId, ObjectId, Pass, planted},
    node::request::{FORWARDED_SESSION, VolumeError, VolumeOperation, VolumeRequest, WAITED_SESSION},
};
use std::collections::BTreeMap;

/// Passes of a shard: all hosts that a node has connections for, with 16 volumes each.
const PASSES_MAX: usize = 4096;

/// The passes of a shard. Nothing of them outlives an ownership.
#[derive(Debug, Default)]
pub(super) struct Passes {
    epoch: Epoch,
    given: u64,
    alive: BTreeMap<(ObjectId, HostId), u64>,
}

impl Passes {
    /// No pass is alive yet in the ownership `epoch`.
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, ..Self::default() }
    }

    /// A request has come, in the order in which the shard takes requests.
    ///
    /// # Errors
    /// It may be late, and is not to be performed.
    pub(super) fn judge(&mut self, request: &VolumeRequest) -> Result<(), VolumeError> {
        let Some(host) = request.host.filter(|_| request.operation.is_change()) else { return Ok(()) };
        let key = (request.volume, host);
        let has_waited = request.tag.session == WAITED_SESSION && !planted::is("waited-needs-no-pass");
        if request.tag.session != FORWARDED_SESSION && !has_waited {
            if !self.alive.is_empty() && !planted::is("pass-outlives-direct-change") {
                self.alive.remove(&key);
            }
            return Ok(());
        }
        let alive = self.alive.get(&key).map(|&number| Pass { epoch: self.epoch, number });
        if alive.is_some() && alive == request.pass || is_let_through(request) {
            return Ok(());
        }
        Err(VolumeError::Late(alive.unwrap_or_else(|| self.give(key))))
    }

    fn give(&mut self, key: (ObjectId, HostId)) -> Pass {
        if self.alive.len() >= PASSES_MAX {
            self.alive.clear();
        }
        self.given += 1;
        self.alive.insert(key, self.given);
        Pass { epoch: self.epoch, number: self.given }
    }
}

/// Whether a planted bug takes it as it comes.
fn is_let_through(request: &VolumeRequest) -> bool {
    let is_of_reservation = matches!(request.operation, VolumeOperation::Reserve(_));
    planted::is("pass-not-looked-at") || is_of_reservation && planted::is("reservation-needs-no-pass")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fs::reservation::ReservationCommand, node::request::RequestTag};

    const FORWARDED: u64 = FORWARDED_SESSION;

    fn host(number: u16) -> HostId {
        let mut bytes = [1; 16];
        bytes[..2].copy_from_slice(&number.to_le_bytes());
        HostId::new(bytes).expect("not zero")
    }

    fn change(session: u64, volume: u64, number: u16, pass: Option<Pass>) -> VolumeRequest {
        let operation = VolumeOperation::Discard { range: 0..4096, durable: false };
        let (tag, volume, host) = (RequestTag { session, request: 1 }, ObjectId(volume), Some(host(number)));
        VolumeRequest { tag, volume, host, pass, operation }
    }

    fn refused(passes: &mut Passes, request: &VolumeRequest) -> Option<Pass> {
        match passes.judge(request) {
            Ok(()) => None,
            Err(VolumeError::Late(pass)) => Some(pass),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pass_lives_until_its_host_changes_its_volume_here() {
        let mut passes = Passes::new(Epoch(4));
        let pass = refused(&mut passes, &change(FORWARDED, 1, 1, None)).expect("it has none");
        assert_eq!(pass, Pass { epoch: Epoch(4), number: 1 });
        let before = Pass { epoch: Epoch(3), ..pass };
        for other in [None, Some(before), Some(Pass { number: 2, ..pass })] {
            assert_eq!(
                refused(&mut passes, &change(FORWARDED, 1, 1, other)),
                Some(pass),
                "{other:?}: its connections share one"
            );
        }
        for session in [FORWARDED, WAITED_SESSION] {
            assert_eq!(refused(&mut passes, &change(session, 1, 1, Some(pass))), None);
            assert!(refused(&mut passes, &change(session, 2, 1, Some(pass))).is_some(), "of another volume");
            assert!(refused(&mut passes, &change(session, 1, 2, Some(pass))).is_some(), "of another host");
        }
        // Neither others, nor other volumes, nor what only reads.
        assert_eq!(refused(&mut passes, &change(7, 1, 2, None)), None);
        assert_eq!(refused(&mut passes, &change(7, 2, 1, None)), None);
        let read = VolumeRequest { operation: VolumeOperation::Read(0..4096), ..change(7, 1, 1, None) };
        assert_eq!(refused(&mut passes, &read), None);
        assert_eq!(refused(&mut passes, &change(FORWARDED, 1, 1, Some(pass))), None);
        assert_eq!(refused(&mut passes, &change(7, 1, 1, None)), None);
        let next = refused(&mut passes, &change(FORWARDED, 1, 1, Some(pass))).expect("it was ended");
        assert!(next > pass);
        assert_eq!(refused(&mut passes, &change(FORWARDED, 1, 1, Some(next))), None);
        let mut later = Passes::new(Epoch(5));
        assert!(refused(&mut later, &change(WAITED_SESSION, 1, 1, Some(next))) > Some(next), "another ownership");
    }

    #[test]
    fn who_cannot_be_late_needs_no_pass() {
        let mut passes = Passes::new(Epoch(1));
        let read = VolumeRequest { operation: VolumeOperation::Flush, ..change(FORWARDED, 1, 1, None) };
        let nobody = VolumeRequest { host: None, ..change(FORWARDED, 1, 1, None) };
        assert_eq!((refused(&mut passes, &read), refused(&mut passes, &nobody)), (None, None));
    }

    #[test]
    fn commands_about_reservations_need_a_pass_like_other_changes() {
        let mut passes = Passes::new(Epoch(1));
        let operation = || VolumeOperation::Reserve(ReservationCommand::Clear { key: 1 });
        let command = |pass| VolumeRequest { operation: operation(), ..change(FORWARDED, 1, 1, pass) };
        let pass = refused(&mut passes, &command(None));
        assert!(pass.is_some(), "it may be late");
        assert_eq!(refused(&mut passes, &command(pass)), None);
        let direct = VolumeRequest { operation: operation(), ..change(7, 1, 1, None) };
        assert_eq!(refused(&mut passes, &direct), None);
        assert!(refused(&mut passes, &command(pass)) > pass, "one that comes straight ends it");
    }

    #[test]
    fn passes_are_bounded() {
        let mut passes = Passes::new(Epoch(1));
        let hosts = u16::try_from(PASSES_MAX).expect("few");
        let first = refused(&mut passes, &change(FORWARDED, 1, 0, None));
        assert!((1..hosts).all(|number| refused(&mut passes, &change(FORWARDED, 1, number, None)).is_some()));
        assert_eq!(refused(&mut passes, &change(FORWARDED, 1, 0, first)), None);
        let one_more = refused(&mut passes, &change(FORWARDED, 1, hosts, None));
        assert_eq!(passes.alive.len(), 1);
        assert_eq!(refused(&mut passes, &change(FORWARDED, 1, hosts, one_more)), None);
        assert!(refused(&mut passes, &change(FORWARDED, 1, 0, first)) > one_more, "it is refused once");
    }

    #[cfg(feature = "planted-bugs")]
    #[test]
    fn planted_bugs_of_passes_are_found() {
        let lives = a_pass_lives_until_its_host_changes_its_volume_here as fn();
        let bugs: [(&'static str, fn()); 4] = [
            ("pass-not-looked-at", lives),
            ("pass-outlives-direct-change", lives),
            ("reservation-needs-no-pass", commands_about_reservations_need_a_pass_like_other_changes),
            ("waited-needs-no-pass", lives),
        ];
        for (bug, test) in bugs {
            planted::choose(bug);
            let is_found = std::panic::catch_unwind(test).is_err();
            planted::choose("");
            assert!(is_found, "{bug}");
        }
    }
}
