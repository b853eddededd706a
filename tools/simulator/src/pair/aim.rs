//! What every third history is aimed at: trouble of several steps that meets a pair which is well, again and again. Each aim is a window that trouble
//! drawn step by step hits once in thousands of histories.
//!
//! | aim | window |
//! |---|---|
//! | alone | the owner answers alone, and dies before the register says stale |
//! | lease | the lease ends while the owner has work in hand |
//! | catching up | the owner dies, or hands over, while it brings the mirror in step |
//! | back | the owner dies and claims the pool again while its partner acts upon the death, and does not see it |
//! | both die | the mirror's log is behind, and has to show what it is worth |
//! | late reply | a change is replaced, and the owner dies before its reply arrives |
//! | asked again | a path is lost while what was sent on it waits at the owner behind other changes |
//! | held | records cannot be performed, and the pool changes hands while they are held |
//! | fenced | the owner stands still or is cut off with writes at its disk, until the disk is taken away from it; and who takes it dies, or stands still, in between |

use super::{
    History,
    ambush::{Act, Change, Moment, Step},
    setup::PairSetup,
};
use crate::setup::index;
use std::time::Duration;

/// What a history is aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    Alone,
    Lease,
    CatchingUp,
    Back,
    BothDie,
    LateReply,
    AskedAgain,
    Held,
    Fenced,
}

impl Aim {
    /// Every one but the last two, of which one comes with its trouble, the other with its fence.
    pub(super) const ALL: [Self; 7] =
        [Self::Alone, Self::Lease, Self::CatchingUp, Self::Back, Self::BothDie, Self::LateReply, Self::AskedAgain];

    /// Makes the window likely.
    pub(super) fn prepare(self, setup: &mut PairSetup) {
        setup.aim = Some(self);
        (setup.events, setup.gap_turns) = (setup.events.min(2), 240);
        match self {
            // With one reactor the pool is closed before anything is answered.
            Self::Alone => {
                (setup.lanes, setup.reactors, setup.volumes_max) = (2, [2, 2], 2);
                (setup.depth, setup.is_one_sided) = (4, true);
                // What a consistency point contains is not lost: none comes before the log is fuller.
                (setup.ring_blocks, setup.is_uniform) = (64, true);
            }
            // A consistency point takes longer than the node waits before it looks again.
            Self::CatchingUp => {
                setup.latency_ns.0 = 8000;
                setup.detection = setup.detection.min(Duration::from_millis(1));
            }
            Self::LateReply => (setup.paths, setup.is_one_sided) = (2, false),
            Self::AskedAgain => {
                (setup.paths, setup.is_one_sided) = (2, false);
                setup.ring_blocks = setup.ring_blocks.min(8);
                setup.depth = setup.depth.max(3);
            }
            // Long logs hold many records, of which those that are not of whole blocks read while they are performed.
            Self::Held => {
                (setup.events, setup.gap_turns) = (6, 240);
                (setup.ring_blocks, setup.is_uniform) = (setup.ring_blocks.max(48), false);
            }
            Self::Fenced => {
                setup.latency_ns.0 = 8000;
                setup.depth = setup.depth.max(3);
            }
            Self::Lease | Self::Back | Self::BothDie => {}
        }
    }
}

impl History {
    /// Lies in wait for the window of this history's aim, as soon as all is well; unless it does already.
    pub(super) fn take_aim(&mut self, aim: Aim, pool: usize) {
        if self.ambush.is_none() {
            self.heal();
            let steps = self.steps(aim);
            self.lay(Some(pool), steps);
        }
    }

    /// Between none and so many detection times.
    pub(super) fn within(&mut self, detections: u32) -> Duration {
        let part = u32::try_from(self.prng.below(256)).expect("small");
        self.setup.detection * detections * part / 256
    }

    fn steps(&mut self, aim: Aim) -> Vec<Step> {
        let detection = self.setup.detection;
        let few = self.prng.below(4);
        let well = |act| Step::at(Moment::IsWell, 0, act);
        match aim {
            Aim::Alone => vec![
                well(Act::Cut),
                // It is heard of until then, and the change is lost on its way.
                Step::after(detection * 3 / 2, Act::OwnerIsLost),
                Step::at(Moment::Asked(Change::Stale), 1 + few, Act::OwnerDies),
                Step::after(detection * 3, Act::Heal),
            ],
            // Its lease lasts four from when it was renewed last.
            Aim::Lease => vec![
                well(Act::OwnerIsLost),
                Step::now(Act::Rest),
                Step::after(detection * 7 / 2, Act::Work),
                Step::after(detection, Act::Rest),
                Step::after(detection * 3 / 2, Act::Heal),
            ],
            Aim::CatchingUp => {
                let (away, soon) = (detection * 2 + self.within(2), self.within(1));
                let changes = [Moment::Asked(Change::InSync), Moment::Made(Change::InSync)];
                let dies = Step::at(*self.prng.pick(&changes), few, Act::OwnerDies);
                let last = if self.prng.chance(3, 4) { dies } else { Step::after(soon, Act::Takeover) };
                let [dies, starts] = [well(Act::OtherDies), Step::after(away, Act::OtherStarts)];
                let [rest, heals] = aftermath(detection * 2, detection * 6);
                vec![dies, Step::now(Act::DiskIsSlow), starts, last, rest, heals]
            }
            Aim::Back => {
                let (turns, rest) = (self.prng.between(5, 40), self.within(1) / 2);
                // By then its partner has heard of it, and has looked whether its process has ended.
                let cut = Step::after(Duration::from_micros(80), Act::Cut);
                let is_unseen = self.prng.chance(2, 3);
                [well(Act::OtherLogIsSlow), Step::after_turns(turns, Act::OwnerIsKilled)]
                    .into_iter()
                    .chain(is_unseen.then_some(cut))
                    .chain([Step::after(rest, Act::OwnerStarts)])
                    .chain(aftermath(detection * 2, detection * 2))
                    .collect()
            }
            Aim::BothDie => {
                let turns = self.prng.between(5, 200);
                let [rest, heals] = aftermath(detection * 2, detection * 2);
                vec![well(Act::OtherLogIsSlow), Step::after_turns(turns, Act::BothDie), rest, heals]
            }
            Aim::LateReply => {
                let [rest, heals] = aftermath(detection * 2, detection * 6);
                vec![well(Act::Lossy), Step::at(Moment::Replaced, few, Act::OwnerDies), rest, heals]
            }
            Aim::Held => {
                let turns = self.prng.between(20, 300);
                let rots = [well(Act::Work), Step::after_turns(turns, Act::Rot)];
                let again = [
                    Step::at(Moment::Serves, few * 20, *self.prng.pick(&[Act::OwnerDies, Act::Takeover, Act::BothDie])),
                    Step::after(self.within(4), Act::Heal),
                ];
                let count = index(self.prng.below(3));
                rots.into_iter().chain(again.into_iter().take(count)).collect()
            }
            Aim::Fenced => self.steps_to_a_fence(),
            Aim::AskedAgain => {
                let turns = self.prng.between(20, 300);
                let again = Step::after_turns(turns, Act::Break);
                let [rest, heals] = aftermath(detection * 2, detection * 2);
                vec![well(Act::DiskIsSlow), again, again, again, again, rest, heals]
            }
        }
    }

    /// The owner's lease ends while its disk has work in hand. Its partner may come to an end of its own while it takes the disk away.
    fn steps_to_a_fence(&mut self) -> Vec<Step> {
        let detection = self.setup.detection;
        let (soon, long) = (self.within(1) / 2, detection * 5 + self.within(3));
        let turns = self.prng.below(12);
        let mut steps = vec![Step::at(Moment::IsWell, 0, Act::DiskIsSlow), Step::now(Act::Checkpoint)];
        let end = self.prng.below(4);
        let stops = if end != 1 && self.prng.chance(1, 4) { Act::OwnerIsIsolated } else { Act::OwnerStandsStill };
        steps.extend([Step::after(soon, stops), Step::after(detection, Act::Rest)]);
        match end {
            0 => steps.push(Step::at(Moment::Fences, turns, Act::OtherDies)),
            // The owner comes back meanwhile, and is entitled later.
            1 => {
                steps.extend([Step::at(Moment::Fences, turns, Act::OtherStandsStill), Step::now(Act::OwnerGoesOn)]);
            }
            _ => {}
        }
        steps.extend([Step::after(long, Act::EverybodyGoesOn), Step::now(Act::Work)]);
        steps.extend(aftermath(detection * 2, detection * 4));
        steps
    }
}

/// Clients work on for a while. Then only what was begun comes to its end, which takes time and few turns; and everything heals.
fn aftermath(work: Duration, rest: Duration) -> [Step; 2] {
    [Step::after(work, Act::Rest), Step::after(rest, Act::Heal)]
}
