//! Changes of the same bytes are performed in the order in which they were submitted, whatever each of them waits for: a host that has gone to another path
//! has its late commands performed before what it says there.

use super::*;

/// After a restart nothing is in memory: the old content of the block that the first change is merged with comes from the disk.
#[test]
fn a_change_that_waits_for_a_block_is_not_overtaken_by_one_of_the_same_bytes() {
    let mut machine = Machine::new(21, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", MIB);
    node.write(volume, 0, &[1; 8192]).expect("there is room");
    node.checkpoint();
    machine.power_cut(node);
    let mut node = machine.start(1);
    let first = node.begin_write(volume, 100, &[2; 5000]);
    let beside = node.begin_write(volume, 8192, &[4; 4096]);
    let second = node.begin_write(volume, 0, &[3; 4096]);
    for request in [beside, second, first] {
        node.end(request).expect("there is room");
    }
    let expected: Vec<u8> = [[3_u8; 4096].as_slice(), &[2; 1004], &[1; 3092], &[4; 4096]].concat();
    assert!(node.read(volume, 0..12_288) == Ok(expected.clone()));
    machine.power_cut(node);
    assert!(machine.start(1).read(volume, 0..12_288) == Ok(expected), "and so they are in the log");
}

/// A change of several records lets others pass between them.
#[test]
fn a_long_change_is_not_overtaken_by_one_of_the_same_bytes() {
    let machine = Machine::new(22, &[4096], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 4 * MIB);
    let zero = VolumeOperation::WriteZeroes { range: 0..4 * MIB, may_free: false, durable: false };
    let first = node.begin(0, volume, zero);
    let second = node.begin_write(volume, 4 * MIB - 4096, &[3; 4096]);
    node.end(second).expect("there is room");
    node.end(first).expect("there is room");
    assert!(node.read(volume, 4 * MIB - 8192..4 * MIB) == Ok([[0_u8; 4096], [3; 4096]].concat()));
}

/// Bugs that histories do not show: what volumes of a few blocks hold is in memory.
#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    use crate::base::planted;
    let tests: [fn(); 2] = [
        a_change_that_waits_for_a_block_is_not_overtaken_by_one_of_the_same_bytes,
        a_long_change_is_not_overtaken_by_one_of_the_same_bytes,
    ];
    for test in tests {
        planted::choose("overlapping-change-overtakes");
        let is_found = std::panic::catch_unwind(test).is_err();
        planted::choose("");
        assert!(is_found);
    }
}
