//! This node's beats and its partner's, and the fence that needs nothing else: the partner's lease has ended.
//!
//! # Why it is enough
//!
//! A node's lease begins when it asks for a beat, lasts for a fixed time on its own clock, and is renewed only by a beat that was taken and did not find the
//! partner's fence. The fence is set once the partner's beat has not changed for longer than that time: by then the newest lease that it can have has ended.
//! Both nodes write their own beat first and read the other's then. So either the fence was set before the partner's next beat read it, and that
//! renews nothing; or that beat was written before this node looked again, which sees it and gives up. A lease that has ended comes back
//! only with a claim (the controller sees to that), which a takeover makes impossible.
//!
//! # An arbiter that takes beats back
//!
//! Beats are not flushed, only those that fence are: a witness that loses power, or a disk with it, may come back with older ones. A node that was answered keeps
//! its lease, whose beat nobody can see any more. So what was not watched is not known: the partner's lease is taken for ended only when its beat was looked at
//! for longer than that without a break, and a break is everything in which beats may have been lost unseen: a beat of this node's, or any other call at the witness, that
//! failed, as after a restart each connection does; and a time of a quarter of a lease without a look. Beats that were taken back were asked for before the break, so
//! leases that they have renewed have ended when a fence that was begun after it confirms. A mark that was read is durable before it is answered.
//!
//! A medium that both nodes write themselves and that takes beats back within a shorter time than that hides at most what the partner had written since the look before:
//! two times between beats, an eighth of a lease. For so much longer the beat is watched than a lease lasts, and so much earlier a guarded node stops serving.
//!
//! # What it does not do
//!
//! It stops nobody. A process that stood still right between looking at its clock and sending a write sends it whenever it goes on. Where both nodes reach the
//! same disks that is a matter for `process` or `command`, which end the process.

use super::registers::{Reply, fenced, now};
use std::time::{Duration, Instant};
use twinlog::{
    base::{Epoch, Incarnation, PoolId},
    pair::{
        decide::Fence,
        witness::{BeatRequest, PartnerBeat},
    },
};

const LIVES: &str = "its heartbeat at the arbiter goes on";
/// A trial that has not come to an end after so many leases is given up.
const TRIAL_LEASES_MAX: u32 = 3;

/// A fence by lease that is being tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    pool: PoolId,
    epoch: Epoch,
    /// The partner's beat at its begin.
    seen: Option<(Incarnation, u64)>,
    since: Instant,
}

/// What a trial has come to.
pub(super) enum Step {
    /// Nothing, or it goes on.
    Wait,
    /// The partner lives, or nobody knows: for this reason.
    GiveUp(PoolId, Epoch, &'static str),
    /// The fence is set; a beat is to be made at once, and what it finds is to be given to [`Beats::conclude`].
    Look(PoolId, Epoch),
}

/// Both nodes' beats, as this node's thread knows them.
pub(super) struct Beats {
    own: Incarnation,
    /// How long a lease lasts, with what clocks may differ.
    lease: Duration,
    count: u64,
    time_ns: u64,
    /// The partner's beat as it was seen last, and since when it has been that.
    seen: Option<(Incarnation, u64)>,
    since: Instant,
    /// When it was looked at last; `None`: there was a break.
    looked: Option<Instant>,
    /// A longer time between two looks is a break.
    break_min: Duration,
    /// The partner's life that must not renew its lease, and until when this is said.
    fences: Option<(Incarnation, Instant)>,
    trial: Option<Trial>,
}

impl Beats {
    /// Of a node's life; `lease` is how long a node may serve after it has asked for a beat.
    pub(super) fn new(own: Incarnation, lease: Duration) -> Self {
        // Clocks of two machines drift by less than one in a thousand; an eighth is beyond doubt.
        let (lease, break_min) = (lease + lease / 8, lease / 4);
        let since = now();
        Self { own, lease, count: 0, time_ns: 0, seen: None, since, looked: None, break_min, fences: None, trial: None }
    }

    /// The next beat; zero: nobody knows the wall clock's time now.
    pub(super) fn next(&mut self, time_ns: u64) -> BeatRequest {
        self.count += 1;
        self.time_ns = self.time_ns.max(time_ns);
        self.fences = self.fences.filter(|(_, until)| now() < *until);
        BeatRequest { count: self.count, fences: self.fences.map(|(life, _)| life), time_ns: self.time_ns }
    }

    /// The partner's beat, read after this node's was written. Whether it has changed; or why this node's lease is not renewed.
    pub(super) fn heard(&mut self, theirs: Option<PartnerBeat>) -> Result<bool, String> {
        let seen = theirs.map(|beat| (beat.incarnation, beat.count));
        let has_changed = self.seen != seen;
        let is_break = self.looked.is_none_or(|at| at.elapsed() >= self.break_min);
        self.looked = Some(now());
        if has_changed || is_break {
            (self.seen, self.since) = (seen, now());
        }
        if theirs.is_some_and(|beat| beat.fences == Some(self.own)) {
            return Err("the partner has fenced this node: it saw no heartbeat for as long as a lease lasts".to_owned());
        }
        Ok(has_changed)
    }

    /// A call at the arbiter has failed: what the partner has done there meanwhile may never be seen.
    pub(super) fn lose_sight(&mut self) {
        self.looked = None;
    }

    pub(super) fn is_trying(&self) -> bool {
        self.trial.is_some()
    }

    /// Begins to wait for the end of the partner's lease.
    pub(super) fn begin(&mut self, pool: PoolId, epoch: Epoch) {
        self.trial = Some(Trial { pool, epoch, seen: self.seen, since: now() });
    }

    /// Goes on with the trial.
    pub(super) fn step(&mut self) -> Step {
        let Some(trial) = self.trial else { return Step::Wait };
        if trial.seen != self.seen {
            self.trial = None;
            return Step::GiveUp(trial.pool, trial.epoch, LIVES);
        }
        if self.looked.is_none() || self.since.elapsed() < self.lease {
            // Other fences may know more.
            if trial.since.elapsed() < TRIAL_LEASES_MAX * self.lease {
                return Step::Wait;
            }
            self.trial = None;
            return Step::GiveUp(
                trial.pool,
                trial.epoch,
                "its heartbeat could not be watched for as long as a lease lasts",
            );
        }
        // For another lease: until then every beat of the partner's that was asked for before now has been answered, or comes too late.
        self.fences = self.seen.map(|(life, _)| (life, now() + self.lease));
        Step::Look(trial.pool, trial.epoch)
    }

    /// The end of the trial, after the beat that sets the fence: whether the partner's lease has ended.
    pub(super) fn conclude(&mut self) -> bool {
        let is_same = self.trial.take().is_some_and(|trial| trial.seen == self.seen);
        let is_over = is_same && self.looked.is_some() && self.since.elapsed() >= self.lease;
        if !is_over {
            self.fences = None;
        }
        is_over
    }
}

/// Goes on with the trial of a worker that has `beats` and can `beat`; the answer, if it has ended.
pub(super) fn follow<W>(
    worker: &mut W,
    beats: impl Fn(&mut W) -> &mut Beats,
    beat: impl FnOnce(&mut W) -> Result<bool, String>,
) -> Option<Reply> {
    match beats(worker).step() {
        Step::Wait => None,
        Step::GiveUp(pool, epoch, why) => Some(fenced(pool, epoch, Fence::Held, why)),
        Step::Look(pool, epoch) => {
            let made = beat(worker);
            let is_over = beats(worker).conclude();
            Some(match made {
                Ok(_) if is_over => fenced(pool, epoch, Fence::Confirmed, "its lease has ended"),
                Ok(_) => fenced(pool, epoch, Fence::Held, LIVES),
                Err(reason) => fenced(pool, epoch, Fence::Held, format!("its lease cannot be judged: {reason}")),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);
    const PARTNER: Incarnation = Incarnation(2);

    fn beat(count: u64, fences: Option<Incarnation>) -> Option<PartnerBeat> {
        Some(PartnerBeat { incarnation: PARTNER, count, fences })
    }

    /// Waits until the trial asks for a beat, and looks at the partner's meanwhile, which stays what it is.
    fn until_look(beats: &mut Beats, theirs: Option<PartnerBeat>) {
        loop {
            match beats.step() {
                Step::Look(PoolId(7), Epoch(3)) => return,
                Step::GiveUp(..) => panic!("this thread was not looking for a quarter of a lease"),
                _ => {}
            }
            assert_eq!(beats.heard(theirs), Ok(false));
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_was_not_watched_is_not_known() {
        let mut beats = Beats::new(Incarnation(1), LEASE);
        // The partner's lease may have been renewed by beats that a witness had and lost: none of these times of an unchanged beat counts.
        let breaks: [fn(&mut Beats); 2] = [Beats::lose_sight, |_| {}];
        for after in breaks {
            let _first = beats.heard(beat(4, None));
            beats.begin(PoolId(7), Epoch(3));
            let until = now() + 2 * LEASE;
            while now() < until {
                std::thread::yield_now();
            }
            after(&mut beats);
            assert_eq!(beats.heard(beat(4, None)), Ok(false));
            let since = now();
            until_look(&mut beats, beat(4, None));
            assert!(since.elapsed() >= LEASE, "watched for the whole time");
            beats.lose_sight();
            assert_eq!(beats.heard(beat(4, None)), Ok(false));
            assert!(!beats.conclude(), "the last look was at another life of the witness");
        }
    }

    #[test]
    fn a_lease_that_nobody_renews_ends_and_is_marked() {
        let mut beats = Beats::new(Incarnation(1), LEASE);
        assert_eq!(beats.heard(beat(4, None)), Ok(true));
        let since = now();
        beats.begin(PoolId(7), Epoch(3));
        assert_eq!(beats.next(5).fences, None);
        assert_eq!(beats.heard(beat(4, None)), Ok(false));
        until_look(&mut beats, beat(4, None));
        assert!(since.elapsed() >= LEASE, "not before the lease has ended");
        assert_eq!(beats.next(0), BeatRequest { count: 2, fences: Some(PARTNER), time_ns: 5 });
        assert_eq!(beats.heard(beat(4, None)), Ok(false));
        assert!(beats.conclude() && !beats.is_trying());
        while beats.next(0).fences.is_some() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_partner_that_beats_again_is_not_fenced() {
        let mut beats = Beats::new(Incarnation(1), LEASE);
        beats.begin(PoolId(7), Epoch(3));
        assert_eq!(beats.heard(beat(1, None)), Ok(true));
        assert!(matches!(beats.step(), Step::GiveUp(PoolId(7), Epoch(3), LIVES)));
        beats.begin(PoolId(7), Epoch(3));
        until_look(&mut beats, beat(1, None));
        let _marked = beats.next(0);
        assert_eq!(beats.heard(beat(2, None)), Ok(true), "written before this node looked again");
        assert!(!beats.conclude());
        assert_eq!(beats.next(0).fences, None);
    }

    #[test]
    fn a_fenced_node_does_not_renew_its_lease() {
        let mut beats = Beats::new(Incarnation(1), LEASE);
        assert_eq!(beats.heard(beat(1, Some(Incarnation(9)))), Ok(true), "an earlier life was meant");
        assert!(beats.heard(beat(2, Some(Incarnation(1)))).is_err());
        assert_eq!(beats.heard(beat(3, None)), Ok(true));
    }
}
