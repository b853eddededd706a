//! When the connecting node tries a path again.

use super::Timing;
use crate::base::Prng;
use std::time::Duration;
use twinlog_device::{ConnectionId, Nanos, NetAddress};

/// One path of the node that connects.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) address: NetAddress,
    /// Its channel, while there is one.
    pub(super) connection: Option<ConnectionId>,
    due: Nanos,
    /// How long it rests after the next failure.
    rest: Duration,
    retry: [Duration; 2],
}

impl Dial {
    /// One for each address; all are due now.
    pub(super) fn each(addresses: &[NetAddress], timing: &Timing, now: Nanos) -> Vec<Self> {
        let (rest, retry) = (timing.retry[0], timing.retry);
        addresses
            .iter()
            .map(|address| Self { address: address.clone(), connection: None, due: now, rest, retry })
            .collect()
    }

    /// When it is tried again, if it rests.
    pub(super) fn due(&self) -> Option<Nanos> {
        self.connection.is_none().then_some(self.due)
    }

    /// The path can be used.
    pub(super) fn succeed(&mut self) {
        self.rest = self.retry[0];
    }

    /// The connection is gone: rests, for longer each time.
    pub(super) fn fail(&mut self, now: Nanos, prng: &mut Prng) {
        self.connection = None;
        let half_ns = u64::try_from(self.rest.as_nanos() / 2).unwrap_or(u64::MAX / 2);
        // Half of it is drawn: paths, and pairs, that were cut together do not come back in step.
        self.due = now + Duration::from_nanos(half_ns + prng.below(half_ns + 1));
        self.rest = (self.rest * 2).min(self.retry[1]);
    }

    /// The other node does not go on with us: somebody has to change something first.
    pub(super) fn refuse(&mut self, now: Nanos, prng: &mut Prng) {
        self.rest = self.retry[1];
        self.fail(now, prng);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_to_the_longest_and_begin_anew_after_a_success() {
        let timing = Timing::default();
        let mut prng = Prng::new(1);
        let address = NetAddress::Unix("/partner".into());
        let mut dial = Dial::each(&[address], &timing, Nanos(5)).remove(0);
        assert_eq!(dial.due(), Some(Nanos(5)));
        let mut rest = |dial: &mut Dial| {
            dial.connection = Some(ConnectionId(1));
            assert_eq!(dial.due(), None);
            dial.fail(Nanos(0), &mut prng);
            dial.due().expect("it rests").since(Nanos(0))
        };
        for expected_ms in [100, 200, 400, 800, 1600, 3000, 3000] {
            let expected = Duration::from_millis(expected_ms);
            let found = rest(&mut dial);
            assert!((expected / 2..=expected).contains(&found), "{found:?} of {expected:?}");
        }
        dial.succeed();
        assert!(rest(&mut dial) <= timing.retry[0]);
        dial.refuse(Nanos(0), &mut Prng::new(2));
        assert!(dial.due().expect("it rests") >= Nanos(0) + timing.retry[1] / 2);
    }
}
