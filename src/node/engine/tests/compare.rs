//! Compare and write: a block changes only if it holds what the client expects, and nothing comes between the look and the write.

use super::*;
use sha2::{Digest as _, Sha256};

fn compare_and_write(node: &Node, range: Range<u64>, expected: u8, new: u8) -> VolumeOperation {
    let length = usize::try_from(range.end - range.start).expect("small");
    let mut payload = Payload::allocate(node.engines[0].blocks(), range).expect("memory is large enough");
    payload.fill(0, &vec![new; length]);
    VolumeOperation::CompareAndWrite {
        expected: Sha256::digest(vec![expected; length]).into(),
        payload,
        durable: false,
    }
}

impl Node {
    fn exchange(&mut self, volume: ObjectId, range: Range<u64>, expected: u8, new: u8) -> Option<VolumeError> {
        let operation = compare_and_write(self, range, expected, new);
        let request = self.begin(0, volume, operation);
        self.end(request).err()
    }
}

const DIFFERS: Option<VolumeError> = Some(VolumeError::Differs);

#[test]
fn a_block_changes_only_if_it_holds_what_is_expected_wherever_it_lies() {
    let mut machine = Machine::new(61, &[4096], 2, MIB);
    let mut node = machine.start(2);
    let volume = node.create("vol", MIB);
    assert_eq!(node.exchange(volume, 0..4096, 1, 2), DIFFERS, "a hole is zeroes");
    assert_eq!(node.exchange(volume, 0..4096, 0, 1), None);
    assert_eq!(node.exchange(volume, 0..4096, 0, 2), DIFFERS, "in memory");
    assert_eq!(node.exchange(volume, 100..200, 1, 3), None, "a part");
    assert_eq!(node.exchange(volume, 0..4096, 1, 4), DIFFERS, "it is of two now");
    for _ in 0..2 {
        assert_eq!(node.read(volume, 100..200), Ok(vec![3; 100]));
        machine.power_cut(node);
        node = machine.start(1);
        assert_eq!(node.exchange(volume, 200..4096, 0, 5), DIFFERS, "on disk");
        assert_eq!(node.exchange(volume, 200..4096, 1, 1), None);
        node.checkpoint();
        node.check();
    }
    assert_eq!(node.exchange(volume, MIB..MIB + 4096, 0, 1), Some(VolumeError::OutOfRange));
}

/// Of clients that expect the same, one is first.
#[test]
fn of_those_that_race_one_wins() {
    for is_on_disk in [false, true] {
        let mut machine = Machine::new(62, &[4096], 2, MIB);
        let mut node = machine.start(2);
        let volume = node.create("vol", MIB);
        assert!(node.write(volume, 4096, &[7; 4096]).is_ok());
        if is_on_disk {
            node.checkpoint();
            machine.power_cut(node);
            node = machine.start(2);
        }
        let mut requests = Vec::new();
        for new in 10..20 {
            let operation = compare_and_write(&node, 4096..8192, 7, new);
            requests.push((new, node.begin(usize::from(new % 2), volume, operation)));
        }
        let mut winners = Vec::new();
        for (new, request) in requests {
            match node.end(request) {
                Ok(_) => winners.push(new),
                Err(error) => assert_eq!(Some(error), DIFFERS),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(node.read(volume, 4096..8192), Ok(vec![winners[0]; 4096]));
    }
}

#[cfg(feature = "planted-bugs")]
#[test]
fn planted_comparisons_are_found() {
    for bug in ["compare-not-done", "compared-when-it-comes"] {
        planted::choose(bug);
        let is_found = std::panic::catch_unwind(of_those_that_race_one_wins).is_err();
        planted::choose("");
        assert!(is_found, "{bug}");
    }
}
