//! Compare and write through either node: performed once, or refused, whatever happens to the owner meanwhile.

use super::*;
use sha2::{Digest as _, Sha256};

impl Pair {
    /// At a node, block 0 of `vol-a` becomes `new` if it is `expected`.
    fn begin_exchange(&mut self, node: usize, expected: u8, new: u8) -> u64 {
        let request = self.prng.next_u64();
        let pools = &mut self.node(node).pools;
        let volume = pools.volume("vol-a").expect("it is listed").id;
        let mut payload = Payload::allocate(pools.blocks(), 0..4096).expect("memory is large enough");
        payload.fill(0, &[new; 4096]);
        let expected = Sha256::digest([expected; 4096]).into();
        let operation = VolumeOperation::CompareAndWrite { expected, payload, durable: false };
        let tag = RequestTag { session: 1, request };
        pools.submit(VolumeRequest { tag, volume, host: None, pass: None, operation });
        request
    }

    fn exchange(&mut self, node: usize, expected: u8, new: u8) -> Option<VolumeError> {
        let request = self.begin_exchange(node, expected, new);
        self.end(node, request).err()
    }
}

/// The reply is lost, another client of the other node changes what was written, and then it is asked for again: it was performed, so it is not compared again.
#[test]
fn what_is_asked_for_again_is_not_compared_again() {
    let mut pair = Pair::with_volume(71);
    assert_eq!(pair.exchange(1, 9, 1), Some(VolumeError::Differs));
    let lost = pair.begin_exchange(1, 0, 3);
    for _ in 0..3 {
        pair.node(1).turn();
        pair.node(0).turn();
    }
    pair.cut(true);
    assert_eq!(pair.read(0, "vol-a", 0), 3, "it was performed");
    assert_eq!(pair.exchange(0, 3, 4), None);
    assert!(!pair.node(1).replies.contains_key(&lost));
    pair.cut(false);
    assert!(pair.end(1, lost).is_ok(), "the owner knows its name");
    assert_eq!((pair.read(0, "vol-a", 0), pair.read(1, "vol-a", 0)), (4, 4));
}

/// Of clients that expect the same one wins, also when the owner dies with their requests in hand.
#[test]
fn of_those_that_race_through_a_takeover_one_wins() {
    for turns in (0..40).step_by(3) {
        let mut pair = Pair::with_volume(200 + turns);
        let requests: Vec<_> = (10..16).map(|new| (new, pair.begin_exchange(1, 0, new))).collect();
        pair.turns(turns);
        pair.kill(0);
        let mut winners = Vec::new();
        for (new, request) in requests {
            match pair.end(1, request) {
                Ok(_) => winners.push(new),
                Err(error) => assert_eq!(error, VolumeError::Differs, "after {turns} turns"),
            }
        }
        assert_eq!(winners.len(), 1, "after {turns} turns");
        assert_eq!(pair.read(1, "vol-a", 0), winners[0], "after {turns} turns");
    }
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_planted_second_comparison_is_found() {
    planted::choose("compared-again");
    let is_found = std::panic::catch_unwind(what_is_asked_for_again_is_not_compared_again).is_err();
    planted::choose("");
    assert!(is_found);
}
