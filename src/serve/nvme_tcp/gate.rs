//! Gates of a connection: which of its changes have arrived recently enough to be performed.
//!
//! A node may perform a host's changes from some moment on: since it serves the pool, or since it was given a [`Pass`] by the node that does. What had arrived by then may be
//! older than what the host was answered elsewhere. A gate is the position in the connection's stream within which all of that lies. It is found as a
//! [sweep](crate::serve) finds its own: what lies unread is asked for after that moment, and the machine has had a turn when what was received is added to it.
//!
//! ```text
//! it begins --> counting --everything that lay there was received--> known: changes from there on pass
//! ```

use crate::{
    base::{ObjectId, Pass, planted},
    node::pools::PoolSlot,
};
use std::collections::BTreeMap;

/// Volumes of which a connection keeps a pass; one more takes another one's, which costs that one a refusal. More than a queue has commands.
const PASSES_MAX: usize = 1024;

/// A position of the stream, and how far it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    /// All that had arrived when the gate began lies within so many bytes. Asked for again it grows no larger.
    position: u64,
    /// Bytes that were unread when that was last asked for.
    unread: u64,
    is_known: bool,
}

impl Mark {
    fn new(unread: u64) -> Self {
        Self { position: u64::MAX, unread, is_known: false }
    }

    /// The machine had a turn since the unread bytes were asked for, and so many were received in all.
    fn count(&mut self, received: u64, unread: impl FnOnce() -> u64) {
        self.position = self.position.min(received + self.unread);
        self.is_known = received >= self.position;
        if !self.is_known {
            self.unread = unread();
        }
    }
}

/// Whether a change passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// With this pass, if the partner performs it.
    Passes(Option<Pass>),
    /// It came before the gate: its host is to send it again.
    Late,
    /// The same, when the gate is known: what the host sends then lies behind it.
    LateSoon,
}

/// The gates of a connection.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// By pool, if this node began to serve it since the connection is there.
    here: [Option<Mark>; 2],
    passes: BTreeMap<ObjectId, (Pass, Mark)>,
    is_counting: bool,
}

impl Gates {
    /// This node begins to serve a pool, with so many bytes unread.
    pub(super) fn begin_here(&mut self, slot: PoolSlot, unread: u64) {
        self.here[slot.index()] = Some(Mark::new(unread));
        self.is_counting = true;
    }

    /// The node that serves has refused a change, and given a pass, with so many bytes unread.
    pub(super) fn begin_pass(&mut self, volume: ObjectId, pass: Pass, unread: u64) {
        if self.passes.get(&volume).is_some_and(|(newest, _)| *newest >= pass) {
            return;
        }
        if self.passes.len() >= PASSES_MAX {
            let known = self.passes.iter().find(|(_, (_, mark))| mark.is_known).map(|(volume, _)| *volume);
            known.map(|volume| self.passes.remove(&volume));
        }
        self.passes.insert(volume, (pass, Mark::new(unread)));
        self.is_counting = true;
    }

    /// Whether a gate is not known yet.
    pub(super) fn is_counting(&self) -> bool {
        self.is_counting
    }

    /// After the network's turn, in which so many bytes were received in all.
    pub(super) fn count(&mut self, received: u64, unread: impl Fn() -> u64) {
        if !self.is_counting {
            return;
        }
        let marks = self.here.iter_mut().flatten().chain(self.passes.values_mut().map(|(_, mark)| mark));
        self.is_counting = false;
        for mark in marks.filter(|mark| !mark.is_known) {
            mark.count(received, &unread);
            self.is_counting |= !mark.is_known;
        }
    }

    /// Whether a gate of this volume is not known yet.
    pub(super) fn are_counting(&self, volume: ObjectId) -> bool {
        let here = self.here[PoolSlot::of(volume).index()].as_ref();
        let pass = self.passes.get(&volume).map(|(_, mark)| mark);
        here.into_iter().chain(pass).any(|mark| !mark.is_known)
    }

    /// Whether a change passes whose command begins at this position of the stream.
    pub(super) fn judge(&self, volume: ObjectId, position: u64) -> Verdict {
        let is_behind = |mark: &Mark| position >= mark.position;
        match &self.here[PoolSlot::of(volume).index()] {
            Some(mark) if !mark.is_known => return Verdict::LateSoon,
            Some(mark) if !is_behind(mark) => return Verdict::Late,
            _ => {}
        }
        let passes = |(_, mark): &&(Pass, Mark)| {
            mark.is_known && (is_behind(mark) || planted::is("pass-for-all-that-lies-here"))
        };
        Verdict::Passes(self.passes.get(&volume).filter(passes).map(|(pass, _)| *pass))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Epoch;

    const VOLUME: ObjectId = ObjectId(3);

    fn pass(number: u64) -> Pass {
        Pass { epoch: Epoch(2), number }
    }

    /// 100 bytes were received; 50 lie in the kernel, 20 of which the machine brings in its turn, when 10 more arrive. Then it brings all.
    #[test]
    fn what_had_arrived_lies_in_front_of_a_gate() {
        let mut gates = Gates::default();
        assert_eq!((gates.judge(VOLUME, 0), gates.is_counting()), (Verdict::Passes(None), false));
        gates.begin_pass(VOLUME, pass(1), 50);
        assert_eq!((gates.judge(VOLUME, 170), gates.are_counting(VOLUME)), (Verdict::Passes(None), true));
        gates.count(120, || 40);
        assert!(gates.is_counting(), "within 170 bytes, as far as is known");
        gates.count(160, || 0);
        assert!(gates.is_counting(), "what is counted again is no more than before");
        gates.count(160, || 0);
        assert!(!gates.is_counting() && !gates.are_counting(VOLUME));
        assert_eq!(gates.judge(VOLUME, 159), Verdict::Passes(None));
        assert_eq!(gates.judge(VOLUME, 160), Verdict::Passes(Some(pass(1))));
        assert_eq!(gates.judge(ObjectId(4), 160), Verdict::Passes(None));
        gates.begin_pass(VOLUME, pass(1), 0);
        assert!(!gates.is_counting(), "it is there");
        gates.begin_pass(VOLUME, pass(2), 0);
        gates.count(200, || 0);
        assert_eq!(
            (gates.judge(VOLUME, 199), gates.judge(VOLUME, 200)),
            (Verdict::Passes(None), Verdict::Passes(Some(pass(2))))
        );
        gates.begin_pass(VOLUME, pass(1), 0);
        assert_eq!(gates.judge(VOLUME, 200), Verdict::Passes(Some(pass(2))), "a refusal that is older than it");
    }

    #[test]
    fn what_had_arrived_when_a_pool_was_opened_does_not_pass() {
        let mut gates = Gates::default();
        gates.begin_here(PoolSlot::Home, 10);
        assert_eq!(gates.judge(VOLUME, 500), Verdict::LateSoon);
        assert_eq!(gates.judge(PoolSlot::Partner.outside(VOLUME), 0), Verdict::Passes(None), "the other pool");
        gates.count(20, || 0);
        assert!(gates.are_counting(VOLUME));
        gates.count(30, || 0);
        assert_eq!((gates.judge(VOLUME, 29), gates.judge(VOLUME, 30)), (Verdict::Late, Verdict::Passes(None)));
    }

    #[test]
    fn passes_are_bounded() {
        let mut gates = Gates::default();
        for volume in 0..PASSES_MAX as u64 {
            gates.begin_pass(ObjectId(volume), pass(volume + 1), 0);
            gates.count(0, || 0);
        }
        gates.begin_pass(ObjectId(PASSES_MAX as u64), pass(5000), 0);
        gates.count(0, || 0);
        assert_eq!(gates.passes.len(), PASSES_MAX);
        assert_eq!(gates.judge(ObjectId(PASSES_MAX as u64), 0), Verdict::Passes(Some(pass(5000))));
    }
}
