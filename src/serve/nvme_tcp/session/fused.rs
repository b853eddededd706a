//! Compare and Write: two commands next to each other in a queue that are performed as one (base 2.0, section 3.4.2; NVM command set 1.0, section 2.1.1).
//!
//! ```text
//! first --> waits for the next command --+--> a second one fits --> both have their data --> the volume is asked once --> both are answered
//!                                        |                                |
//!                                        |                                +--> one ends early: the other one has failed with it
//!                                        +--> it is none, or does not fit: the first one is refused, and a second one too
//! ```
//!
//! The order of a queue is that of its capsules. [`Pairing`] knows which command waits for the next one; [`Half`], of a command in flight, which other one it
//! belongs to. The second command stands for both: it is what waits for the volume, and what the volume answers.

use super::{Active, Intake, Job, Plan, Role, Session, Sink, Status};
use crate::{
    node::request::{VolumeError, VolumeOperation},
    serve::{
        nvme_tcp::{
            io::{self, Request},
            wire::command::{Command, Fuse},
        },
        turn::Turn,
    },
};
use sha2::Digest as _;
use twinlog_device::Unread;

/// A command's part in a fused operation, and the slot of the other part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    None,
    /// `None`: the second one has not come.
    First(Option<u16>),
    Second(u16),
}

/// What the newest command of a queue leaves to the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Open {
    #[default]
    Nothing,
    /// A first half, in this slot.
    Waits(u16),
    /// One that was refused, or has ended.
    Failed,
}

/// Which commands of a queue belong together.
#[derive(Debug, Default)]
pub(super) struct Pairing {
    open: Open,
}

impl Pairing {
    /// A command comes, perhaps not for the first time. Returns the first half that waits for its second, if this is none.
    fn arrive(&mut self, fuse: Fuse) -> Option<u16> {
        match (fuse, self.open) {
            (Fuse::Second, _) | (_, Open::Nothing) => None,
            (_, Open::Failed) => {
                self.open = Open::Nothing;
                None
            }
            (_, Open::Waits(first)) => {
                self.open = Open::Nothing;
                Some(first)
            }
        }
    }

    /// Whether the command is no second half, or has a first one.
    fn check(&self, fuse: Fuse) -> Result<(), Status> {
        match (fuse, self.open) {
            (Fuse::Second, Open::Nothing) => Err(Status::FUSED_MISSING),
            (Fuse::Second, Open::Failed) => Err(Status::FUSED_FAILED),
            _ => Ok(()),
        }
    }

    /// The first half that waits for the next command.
    fn waiting(&self) -> Option<u16> {
        match self.open {
            Open::Waits(first) => Some(first),
            Open::Nothing | Open::Failed => None,
        }
    }

    /// The command that came is in `slot` now. Returns the first half to which it is the second.
    fn take(&mut self, fuse: Fuse, slot: u16) -> Option<u16> {
        let first = self.waiting().filter(|_| fuse == Fuse::Second);
        self.open = if fuse == Fuse::First { Open::Waits(slot) } else { Open::Nothing };
        first
    }

    /// The command that came was refused. Returns the first half to which it would have been the second.
    fn refuse(&mut self, fuse: Fuse) -> Option<u16> {
        let first = self.waiting().filter(|_| fuse == Fuse::Second);
        self.open = if fuse == Fuse::First { Open::Failed } else { Open::Nothing };
        first
    }

    /// The command in `slot` has ended.
    fn end(&mut self, slot: u16) {
        if self.open == Open::Waits(slot) {
            self.open = Open::Failed;
        }
    }
}

impl Session {
    /// What a command says of itself; where nothing is fused, nothing.
    fn fuse_of(&self, command: &Command) -> Fuse {
        let is_of_volume = matches!(self.role, Role::Io(_)) && command.fabrics().is_none();
        if is_of_volume { command.fuse() } else { Fuse::Alone }
    }

    /// A command comes: a first half whose second it is not has none. Whether it may go on itself.
    pub(super) fn check_half<N: Unread, S>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        command: &Command,
    ) -> Result<(), Status> {
        let fuse = self.fuse_of(command);
        if let Some(first) = self.pairing.arrive(fuse) {
            self.fail_half(turn, first, Status::FUSED_MISSING);
        }
        self.pairing.check(fuse)
    }

    /// Whether a second half is of the same blocks as the first.
    pub(super) fn check_fit(&self, command: &Command, plan: &Plan) -> Result<(), Status> {
        let first = self.pairing.waiting().filter(|_| self.fuse_of(command) == Fuse::Second);
        let first = first.and_then(|first| self.commands.get(first)).map(|first| &first.job);
        match (first, plan) {
            (Some(Job::Volume(first)), Plan::Job(Job::Volume(second))) if !is_of_same_blocks(first, second) => {
                Err(Status::INVALID_FIELD)
            }
            _ => Ok(()),
        }
    }

    /// The command that came was taken, and is in `slot`.
    pub(super) fn join_halves(&mut self, command: &Command, slot: u16) {
        let fuse = self.fuse_of(command);
        if let Some(first) = self.pairing.take(fuse, slot) {
            self.commands.get_mut(first).half = Half::First(Some(slot));
            self.commands.get_mut(slot).half = Half::Second(first);
        } else if fuse == Fuse::First {
            self.commands.get_mut(slot).half = Half::First(None);
        }
    }

    /// The command that came is refused with `status`. A first half that waits for it fails with it: with the same status if the two do not fit.
    pub(super) fn refuse_half<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, command: &Command, status: Status) {
        if let Some(first) = self.pairing.refuse(self.fuse_of(command)) {
            let is_misfit = status == Status::INVALID_FIELD;
            self.fail_half(turn, first, if is_misfit { status } else { Status::FUSED_FAILED });
        }
    }

    /// Whether all data of the command in `slot` is there, its digest too: nothing of it is about to come.
    fn is_whole(&self, slot: u16) -> bool {
        let is_awaited = matches!(self.intake, Intake::Digest { slot: awaiting, .. } if awaiting == slot);
        !is_awaited && self.commands.get(slot).is_some_and(Active::has_come)
    }

    /// The command in `slot`, of which all data has come, waits for the volume, if the other half's has come too.
    pub(super) fn line_up(&mut self, slot: u16) {
        match self.commands.get(slot).map_or(Half::None, |active| active.half) {
            Half::None => self.to_submit.push_back(slot),
            Half::First(Some(second)) if self.is_whole(second) => self.to_submit.push_back(second),
            Half::Second(first) if self.is_whole(first) => self.to_submit.push_back(slot),
            Half::First(_) | Half::Second(_) => {}
        }
    }

    /// What the write in `slot` asks of its volume.
    pub(super) fn take_write(&mut self, slot: u16, durable: bool) -> VolumeOperation {
        let active = self.commands.get_mut(slot);
        let half = active.half;
        let Sink::Blocks(payload) = std::mem::replace(&mut active.sink, Sink::Nowhere) else {
            unreachable!("its data has come")
        };
        let Half::Second(first) = half else { return VolumeOperation::Write { payload, durable } };
        let first = self.commands.get_mut(first);
        first.is_submitted = true;
        let Sink::Compared(sum) = std::mem::replace(&mut first.sink, Sink::Nowhere) else {
            unreachable!("its data has come")
        };
        VolumeOperation::CompareAndWrite { expected: sum.finalize().into(), payload, durable }
    }

    /// Where a command begins in the stream: a fused operation where its first half does.
    pub(super) fn beginning_of(&self, active: &Active) -> u64 {
        match active.half {
            Half::Second(first) => self.commands.get(first).map_or(active.position, |first| first.position),
            Half::None | Half::First(_) => active.position,
        }
    }

    /// Whether volumes were asked for everything of a command whose data has come.
    pub(super) fn is_due(&self, active: &Active) -> bool {
        match active.half {
            Half::None => active.is_due(),
            // The second one stands for both.
            Half::First(_) => false,
            Half::Second(first) => active.is_due() && self.is_whole(first),
        }
    }

    /// Commands that can be given up: no volume has them, and their hosts are not about to send their data.
    pub(super) fn abortable(&self) -> impl Iterator<Item = u16> {
        let first_of = |slot: &u16| match self.commands.get(*slot)?.half {
            Half::Second(first) => Some(first),
            Half::None | Half::First(_) => None,
        };
        let lone = self.pairing.waiting().filter(|&first| self.is_whole(first));
        let firsts = self.to_submit.iter().filter_map(first_of);
        self.to_submit.iter().chain(&self.to_receive).copied().chain(firsts).chain(lone)
    }

    /// The node stops, and takes no more commands: a first half does not wait for a second one.
    pub(super) fn stop_waiting_for_half<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>) {
        let waiting = self.pairing.waiting().filter(|_| turn.stopping);
        if let Some(first) = waiting.filter(|&first| self.is_whole(first)) {
            self.finish(turn, first, Status::PATH_ERROR, 0);
        }
    }

    /// The command that is answered with what is wrong with the operation for which `slot` stands.
    pub(super) fn blamed(&self, slot: u16) -> u16 {
        match self.commands.get(slot).map_or(Half::None, |active| active.half) {
            Half::Second(first) => first,
            Half::None | Half::First(_) => slot,
        }
    }

    /// The volume has done what the command in `slot` asked for, alone or as the second half.
    pub(super) fn finish_done<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16) {
        let first = self.blamed(slot);
        if first != slot {
            self.finish(turn, first, Status::SUCCESS, 0);
        }
        self.finish(turn, slot, Status::SUCCESS, 0);
    }

    /// The volume has failed to do it.
    pub(super) fn finish_failed<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16, error: &VolumeError) {
        let (first, status) = (self.blamed(slot), io::status_of(error));
        if first != slot && *error == VolumeError::NoSpace {
            // What was compared is as it should be.
            self.finish(turn, first, Status::SUCCESS, 0);
            self.finish(turn, slot, status, 0);
        } else {
            self.finish(turn, first, status, 0);
        }
    }

    /// The command that was in `slot` has ended, and was this half of an operation: the other one fails with it.
    pub(super) fn end_half<N: Unread, S>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        (slot, half): (u16, Half),
        status: Status,
    ) {
        match half {
            Half::None => {}
            Half::First(None) => self.pairing.end(slot),
            Half::First(Some(second)) if status.is_success() => self.commands.get_mut(second).half = Half::None,
            Half::First(Some(other)) | Half::Second(other) => self.fail_half(turn, other, Status::FUSED_FAILED),
        }
    }

    /// One half of an operation that will not be: it ends now, or when the data has come that its host is about to send.
    fn fail_half<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16, status: Status) {
        let is_whole = self.is_whole(slot);
        let active = self.commands.get_mut(slot);
        active.half = Half::None;
        active.failure.get_or_insert(status);
        if self.to_receive.contains(&slot) || is_whole {
            for waiting in [&mut self.to_receive, &mut self.to_submit] {
                waiting.retain(|waiting| *waiting != slot);
            }
            self.parked.retain(|parked| *parked != slot);
            self.finish(turn, slot, status, 0);
        }
    }
}

fn is_of_same_blocks(first: &Request, second: &Request) -> bool {
    (first.volume, &first.range) == (second.volume, &second.range)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a command.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fate {
        Taken,
        Refused,
        /// Taken, and ended before the next one came: aborted, or its data came damaged.
        Ended,
    }

    const FATES: [Fate; 3] = [Fate::Taken, Fate::Refused, Fate::Ended];
    const FUSES: [Fuse; 4] = [Fuse::Alone, Fuse::First, Fuse::Second, Fuse::Reserved];

    /// A queue gets a command after one of which this became, if there was one. Returns what becomes of it.
    fn step(pairing: &mut Pairing, before: Option<(Fuse, Fate)>, slot: u16, (fuse, fate): (Fuse, Fate)) -> Fate {
        let first = before.filter(|(fuse, _)| *fuse == Fuse::First).map(|(_, fate)| fate);
        let waits = (first == Some(Fate::Taken)).then(|| slot - 1);
        let is_second = fuse == Fuse::Second;
        assert_eq!(pairing.arrive(fuse), waits.filter(|_| !is_second), "a first half whose second does not come");
        assert_eq!(pairing.arrive(fuse), None, "it waited for memory, and comes again");
        let expected = match first {
            _ if !is_second => Ok(()),
            None => Err(Status::FUSED_MISSING),
            Some(Fate::Taken) => Ok(()),
            Some(Fate::Refused | Fate::Ended) => Err(Status::FUSED_FAILED),
        };
        assert_eq!(pairing.check(fuse), expected);
        let fate = if expected.is_err() { Fate::Refused } else { fate };
        let joined = match fate {
            Fate::Refused => pairing.refuse(fuse),
            Fate::Taken | Fate::Ended => pairing.take(fuse, slot),
        };
        assert_eq!(joined, waits.filter(|_| is_second));
        assert_eq!(pairing.waiting(), (fuse == Fuse::First && fate != Fate::Refused).then_some(slot));
        if fate == Fate::Ended {
            pairing.end(slot);
        }
        fate
    }

    /// Every three commands, and every misuse among them: no first, no second, two firsts, two seconds, a reserved value between, halves that were refused or ended.
    #[test]
    fn every_sequence_of_commands_is_paired_as_the_specification_says() {
        let commands: Vec<(Fuse, Fate)> = FUSES.into_iter().flat_map(|fuse| FATES.map(|fate| (fuse, fate))).collect();
        for first in &commands {
            for second in &commands {
                for third in &commands {
                    let mut pairing = Pairing::default();
                    let mut before = None;
                    for (slot, &(fuse, fate)) in (10..).zip([first, second, third]) {
                        before = Some((fuse, step(&mut pairing, before, slot, (fuse, fate))));
                    }
                }
            }
        }
    }

    #[test]
    fn what_ends_elsewhere_is_no_half_that_waits() {
        let mut pairing = Pairing::default();
        assert_eq!(pairing.take(Fuse::First, 4), None);
        pairing.end(5);
        assert_eq!(pairing.waiting(), Some(4));
        assert_eq!((pairing.check(Fuse::Second), pairing.take(Fuse::Second, 5)), (Ok(()), Some(4)));
        pairing.end(4);
        assert_eq!(pairing.check(Fuse::Second), Err(Status::FUSED_MISSING), "the pair is complete");
    }
}
