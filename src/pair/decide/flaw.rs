//! Defects that the model must notice: of the table, of what performs its actions, and of the world around it.

use super::{
    Action, Beat, Command, Fence, Link, Mirror, Open, Owner, Portion, View, Word, decide,
    model::{is_active, is_ready},
};
use crate::base::FixedMap;

/// One defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    /// A node takes over although the register says stale.
    TakesStaleOver,
    /// A node takes over with another portion than the one that the register names.
    TakesReplacedOver,
    /// A node takes over without a fence.
    TakesWithoutFence,
    /// An owner whose log was replaced claims its pool.
    ClaimsVoid,
    /// A node gives a pool back that it has not closed.
    GivesBackUnclosed,
    /// A node goes on at its epoch after a giveback whose answer it has not heard.
    KeepsEpochAfterGiveback,
    /// An owner answers alone before the register says stale.
    AloneBeforeStale,
    /// An owner whose register reads stale answers alone without a swap, although a swap to in-sync may be on its way.
    AloneWithoutSwap,
    /// Replies leave after the end of the lease.
    AnswersWithoutLease,
    /// A lease that has ended is renewed.
    LeaseComesBack,
    /// A word counts after the register has changed.
    OldWordCounts,
    /// A fence counts after the register has changed.
    OldFenceCounts,
    /// The register says in sync before the consistency point.
    InSyncTooEarly,
    /// A crash during a last consistency point leaves the pool as drained.
    DrainedWithoutCheckpoint,
    /// An owner that has given a pool up opens it without a new claim.
    YieldsAndOpens,
}

impl Flaw {
    pub(super) const ALL: [Self; 15] = [
        Self::TakesStaleOver,
        Self::TakesReplacedOver,
        Self::TakesWithoutFence,
        Self::ClaimsVoid,
        Self::GivesBackUnclosed,
        Self::KeepsEpochAfterGiveback,
        Self::AloneBeforeStale,
        Self::AloneWithoutSwap,
        Self::AnswersWithoutLease,
        Self::LeaseComesBack,
        Self::OldWordCounts,
        Self::OldFenceCounts,
        Self::InSyncTooEarly,
        Self::DrainedWithoutCheckpoint,
        Self::YieldsAndOpens,
    ];

    /// What a table with this flaw decides.
    fn decide(self, view: &View) -> Action {
        let action = decide(view).action();
        let stands_by = view.owner == Owner::Partner && view.portion == Portion::Usable && !is_active(view.open);
        let fenced = view.fence == Fence::Confirmed;
        let takes = match self {
            Self::TakesStaleOver => stands_by && fenced && view.mirror == Mirror::Stale,
            Self::TakesReplacedOver => stands_by && fenced && view.mirror == Mirror::Other,
            Self::TakesWithoutFence => stands_by && view.mirror == Mirror::Named && view.beat == Beat::Silent,
            _ => false,
        };
        let is_void = view.portion == Portion::Void && view.owner == Owner::Unclaimed && view.open == Open::Closed;
        match self {
            _ if takes => Action::TakeOver,
            Self::ClaimsVoid if is_void => Action::Claim,
            Self::GivesBackUnclosed if action == Action::Drain => Action::GiveBack,
            _ => action,
        }
    }
}

/// What is explored: the flaw, and what its table was found to decide.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) flaw: Flaw,
    known: FixedMap<(View, bool, bool), Vec<Action>>,
}

impl Setting {
    pub(super) fn new(flaw: Flaw) -> Self {
        Self { flaw, known: FixedMap::default() }
    }

    /// The actions for every view that differs from `view` in what can have any value only. `hears`: the partner may have said that it has
    /// yielded; `confirms`: a fence may have been confirmed.
    pub(super) fn actions(&mut self, view: View, hears: bool, confirms: bool) -> &[Action] {
        let flaw = self.flaw;
        self.known.entry((view, hears, confirms)).or_insert_with(|| {
            let mut actions = Vec::new();
            for &word in Word::ALL.iter().filter(|&&word| hears || !is_ready(word)) {
                for &fence in Fence::ALL.iter().filter(|&&fence| confirms || fence != Fence::Confirmed) {
                    for &link in Link::ALL {
                        for &beat in Beat::ALL {
                            for &command in Command::ALL {
                                actions.push(flaw.decide(&View { word, fence, link, beat, command, ..view }));
                            }
                        }
                    }
                }
            }
            actions.sort_unstable();
            actions.dedup();
            actions
        })
    }
}
