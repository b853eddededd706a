//! What the hosts of both nodes are to be told of a pool's reservations, between the nodes: of one pool, at one node.
//!
//! # Invariants
//!
//! 1. Notices go to the partner in their order. They are numbered from 1 for each pair of processes that meets.
//! 2. What may have been lost with a path, or could not be sent, is sent again, the newest [`KEPT_MAX`]; the partner drops what it has heard. So as long as both
//!    processes live each notice arrives once, or a gap in the numbers tells that it was lost.
//! 3. A process of the partner that is new hears nothing of what was before the session with the former one ended: its hosts have connected since. What came
//!    after that it is told, for a host may have been connected already.

use crate::{
    base::planted,
    node::request::{NOTICES_MAX, ReservationNotice},
    pair::wire::{NOTICES_PER_FRAME_MAX, Notices},
};
use std::{collections::VecDeque, ops::Range};

/// Notices that can be sent again: 40 KiB for each pool, and as many as a shard keeps.
const KEPT_MAX: usize = NOTICES_MAX;

/// What goes to the partner.
#[derive(Debug)]
pub(super) struct Outbox {
    kept: VecDeque<ReservationNotice>,
    /// The number of the oldest that is kept.
    first: u64,
    /// The number of the one that is sent next.
    next: u64,
    /// The number of the first that came after the last session.
    parted: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        Self { kept: VecDeque::new(), first: 1, next: 1, parted: 1 }
    }
}

impl Outbox {
    pub(super) fn add(&mut self, notice: ReservationNotice) {
        self.kept.push_back(notice);
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
            self.first += 1;
            self.next = self.next.max(self.first);
        }
    }

    /// What was sent may have been lost.
    pub(super) fn recall(&mut self) {
        self.next = self.first;
    }

    /// A session is over.
    pub(super) fn part(&mut self) {
        self.parted = self.first + self.kept.len() as u64;
    }

    /// The partner's process is another one than before.
    pub(super) fn begin(&mut self) {
        let former = self.parted.saturating_sub(self.first);
        self.kept.drain(..usize::try_from(former).expect("at most all that are kept"));
        // What was not kept of the rest is missing in the numbers.
        self.first = (self.first + former) - self.parted + 1;
        (self.next, self.parted) = (self.first, 1);
    }

    /// Whether something is to be sent.
    pub(super) fn is_waiting(&self) -> bool {
        !self.unsent().is_empty()
    }

    /// What is sent next.
    pub(super) fn next_frame(&mut self) -> Option<Notices> {
        let (unsent, first) = (self.unsent(), self.next);
        let entries: Vec<_> = self.kept.range(unsent).take(NOTICES_PER_FRAME_MAX).copied().collect();
        self.next += entries.len() as u64;
        (!entries.is_empty()).then_some(Notices { first, entries })
    }

    fn unsent(&self) -> Range<usize> {
        let start = usize::try_from(self.next - self.first).expect("at most all that are kept");
        start..self.kept.len()
    }
}

/// What has come from the partner.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The number of the newest.
    heard: u64,
}

impl Inbox {
    /// The partner's process is another one than before.
    pub(super) fn begin(&mut self) {
        self.heard = 0;
    }

    /// What a frame has that is new, and how much was lost before that.
    pub(super) fn take(&mut self, mut frame: Notices) -> (u64, Vec<ReservationNotice>) {
        let last = frame.first.saturating_add(frame.entries.len() as u64 - 1);
        let heard = self.heard;
        self.heard = heard.max(last);
        let lost = frame.first.saturating_sub(heard).saturating_sub(1);
        let is_known = heard >= frame.first && !planted::is("notices-told-again");
        let known = if is_known { usize::try_from(heard - frame.first + 1).unwrap_or(usize::MAX) } else { 0 };
        frame.entries.drain(..known.min(frame.entries.len()));
        (lost, frame.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{HostId, ObjectId},
        fs::reservation::Notice,
    };

    /// The notice that has this number, in a process that has told of nothing before.
    fn notice(number: u64) -> ReservationNotice {
        let host = HostId::new([1; 16]).expect("not zero");
        ReservationNotice { host, volume: ObjectId(number), notice: Notice::RegistrationPreempted }
    }

    fn numbers(notices: &[ReservationNotice]) -> Vec<u64> {
        notices.iter().map(|notice| notice.volume.0).collect()
    }

    fn all_of(outbox: &mut Outbox) -> Vec<Notices> {
        std::iter::from_fn(|| outbox.next_frame()).collect()
    }

    #[test]
    fn notices_arrive_once_however_often_they_are_sent() {
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        (1..=3).for_each(|number| outbox.add(notice(number)));
        let [frame] = &all_of(&mut outbox)[..] else { panic!("one frame") };
        assert_eq!((frame.first, numbers(&frame.entries)), (1, vec![1, 2, 3]));
        assert!(!outbox.is_waiting());
        assert_eq!(inbox.take(frame.clone()), (0, frame.entries.clone()));
        outbox.add(notice(4));
        outbox.recall();
        assert!(outbox.is_waiting());
        let [frame] = &all_of(&mut outbox)[..] else { panic!("one frame") };
        let (lost, new) = inbox.take(frame.clone());
        assert_eq!((lost, numbers(&new)), (0, vec![4]));
        assert_eq!(inbox.take(frame.clone()), (0, vec![]));
    }

    #[test]
    fn what_is_not_kept_is_missing_in_the_numbers() {
        let (mut outbox, mut inbox) = (Outbox::default(), Inbox::default());
        outbox.add(notice(1));
        assert_eq!(inbox.take(outbox.next_frame().expect("one waits")).0, 0);
        let kept = KEPT_MAX as u64;
        (2..2 + kept).for_each(|number| outbox.add(notice(number)));
        let frames = all_of(&mut outbox);
        assert_eq!(frames.len(), KEPT_MAX / NOTICES_PER_FRAME_MAX);
        assert!(frames.iter().all(|frame| frame.entries.len() == NOTICES_PER_FRAME_MAX));
        assert!(frames.into_iter().all(|frame| inbox.take(frame).0 == 0), "as many as are kept");
        (2 + kept..5 + 2 * kept).for_each(|number| outbox.add(notice(number)));
        let (lost, new) = inbox.take(outbox.next_frame().expect("many wait"));
        assert_eq!((lost, numbers(&new)[0]), (3, 5 + kept), "three more");
        assert!(all_of(&mut outbox).into_iter().all(|frame| inbox.take(frame).0 == 0));
        outbox.recall();
        assert!(all_of(&mut outbox).into_iter().all(|frame| inbox.take(frame) == (0, vec![])));
    }

    #[test]
    fn another_process_is_told_what_came_after_the_last_session() {
        let mut outbox = Outbox::default();
        (1..=3).for_each(|number| outbox.add(notice(number)));
        outbox.next_frame();
        outbox.part();
        outbox.begin();
        assert!(!outbox.is_waiting() && outbox.next_frame().is_none());
        outbox.add(notice(4));
        outbox.part();
        (5..=6).for_each(|number| outbox.add(notice(number)));
        outbox.begin();
        let frame = outbox.next_frame().expect("two wait");
        assert_eq!(Inbox::default().take(frame), (0, vec![notice(5), notice(6)]), "what was before is nobody's loss");
    }

    #[test]
    fn what_was_lost_before_the_first_meeting_is_missing_in_the_numbers() {
        let kept = KEPT_MAX as u64;
        for before in [0, 1, 7] {
            let mut outbox = Outbox::default();
            (0..before).for_each(|_| outbox.add(notice(0)));
            outbox.part();
            (1..=kept + 2).for_each(|number| outbox.add(notice(number)));
            outbox.begin();
            let mut inbox = Inbox { heard: 77 };
            inbox.begin();
            let (lost, new) = inbox.take(outbox.next_frame().expect("many wait"));
            assert_eq!((lost, numbers(&new)[0]), (2, 3), "after {before} of another session");
        }
    }

    #[test]
    fn numbers_may_be_anything() {
        let mut inbox = Inbox::default();
        let frame = |first, count: usize| Notices { first, entries: vec![notice(1); count] };
        assert_eq!(inbox.take(frame(0, 1)), (0, vec![]));
        assert_eq!(inbox.take(frame(1, 1)), (0, vec![notice(1)]));
        assert_eq!(inbox.take(frame(u64::MAX - 1, 2)).0, u64::MAX - 3);
        assert_eq!(inbox.take(frame(u64::MAX, 1)), (0, vec![]));
        assert_eq!(inbox.take(frame(1, 128)), (0, vec![]));
    }
}
