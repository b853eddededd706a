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

/// A fence by lease that is being tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    pool: PoolId,
    epoch: Epoch,
    /// The partner's beat at its begin.
    seen: Option<(Incarnation, u64)>,
}

/// What a trial has come to.
pub(super) enum Step {
    /// Nothing, or it goes on.
    Wait,
    /// The partner lives.
    GiveUp(PoolId, Epoch),
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
    /// The partner's life that must not renew its lease, and until when this is said.
    fences: Option<(Incarnation, Instant)>,
    trial: Option<Trial>,
}

impl Beats {
    /// Of a node's life; `lease` is how long a node may serve after it has asked for a beat.
    pub(super) fn new(own: Incarnation, lease: Duration) -> Self {
        // Clocks of two machines drift by less than one in a thousand; an eighth is beyond doubt.
        let lease = lease + lease / 8;
        Self { own, lease, count: 0, time_ns: 0, seen: None, since: now(), fences: None, trial: None }
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
        if has_changed {
            (self.seen, self.since) = (seen, now());
        }
        if theirs.is_some_and(|beat| beat.fences == Some(self.own)) {
            return Err("the partner has fenced this node: it saw no heartbeat for as long as a lease lasts".to_owned());
        }
        Ok(has_changed)
    }

    pub(super) fn is_trying(&self) -> bool {
        self.trial.is_some()
    }

    /// Begins to wait for the end of the partner's lease.
    pub(super) fn begin(&mut self, pool: PoolId, epoch: Epoch) {
        self.trial = Some(Trial { pool, epoch, seen: self.seen });
    }

    /// Goes on with the trial.
    pub(super) fn step(&mut self) -> Step {
        let Some(trial) = self.trial else { return Step::Wait };
        if trial.seen != self.seen {
            self.trial = None;
            return Step::GiveUp(trial.pool, trial.epoch);
        }
        if self.since.elapsed() < self.lease {
            return Step::Wait;
        }
        // For another lease: until then every beat of the partner's that was asked for before now has been answered, or comes too late.
        self.fences = self.seen.map(|(life, _)| (life, now() + self.lease));
        Step::Look(trial.pool, trial.epoch)
    }

    /// The end of the trial, after the beat that sets the fence: whether the partner's lease has ended.
    pub(super) fn conclude(&mut self) -> bool {
        let is_over = self.trial.take().is_some_and(|trial| trial.seen == self.seen);
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
        Step::GiveUp(pool, epoch) => Some(fenced(pool, epoch, Fence::Held, "its heartbeat at the arbiter goes on")),
        Step::Look(pool, epoch) => {
            let made = beat(worker);
            let is_over = beats(worker).conclude();
            Some(match made {
                Ok(_) if is_over => fenced(pool, epoch, Fence::Confirmed, "its lease has ended"),
                Ok(_) => fenced(pool, epoch, Fence::Held, "its heartbeat at the arbiter goes on"),
                Err(reason) => fenced(pool, epoch, Fence::Held, format!("its lease cannot be judged: {reason}")),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(40);
    const PARTNER: Incarnation = Incarnation(2);

    fn beat(count: u64, fences: Option<Incarnation>) -> Option<PartnerBeat> {
        Some(PartnerBeat { incarnation: PARTNER, count, fences })
    }

    /// Waits until the trial asks for a beat.
    fn until_look(beats: &mut Beats) {
        while !matches!(beats.step(), Step::Look(PoolId(7), Epoch(3))) {
            std::thread::yield_now();
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
        until_look(&mut beats);
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
        assert!(matches!(beats.step(), Step::GiveUp(PoolId(7), Epoch(3))));
        beats.begin(PoolId(7), Epoch(3));
        until_look(&mut beats);
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
