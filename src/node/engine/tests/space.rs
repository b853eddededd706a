//! Space that consistency points themselves need, when a pool is full.

use super::*;

fn available(node: &Node) -> i64 {
    node.engines[0].budget.available()
}

/// Writes blocks from `first` on until the pool is full; the first that found no space.
fn fill(node: &mut Node, volume: ObjectId, first: u64, blocks_at_once: usize) -> u64 {
    let mut block = first;
    while node.write(volume, block * 4096, &vec![1; blocks_at_once * 4096]).is_ok() {
        block += blocks_at_once as u64;
    }
    block
}

/// The pool serves, now and after a power cut, and is whole.
fn stays_whole(machine: &mut Machine, mut node: Node) {
    assert_eq!(node.failure(), None);
    node.check();
    machine.power_cut(node);
    let mut node = machine.start(1);
    assert_eq!(node.failure(), None);
    node.check();
}

#[test]
fn a_check_of_a_full_pool_gives_way_to_writes() {
    let mut machine = Machine::new(21, &[8192], 1, MIB);
    let mut node = machine.start(1);
    let volume = node.create("vol", 64 * MIB);
    let end = fill(&mut node, volume, 0, 16);
    let end = fill(&mut node, volume, end, 1);
    node.checkpoint();
    let (reply, checked) = crossbeam_channel::bounded(1);
    node.engines[0].call(AdminCall { request: AdminRequest::PoolCheck, reply });
    for _ in 0..10 {
        // It finds space or not: what counts is that the pool lives.
        let _ = node.write(volume, end * 4096, &[2; 4096]);
    }
    node.run_until("the check has ended", |_| !checked.is_empty());
    let Ok(AdminReply::Refused { message, .. }) = checked.recv() else { panic!("the check ended before the writes") };
    assert!(message.contains("too full"), "{message}");
    stays_whole(&mut machine, node);
}

#[test]
fn a_table_of_many_volumes_is_written_in_a_full_pool() {
    let mut machine = Machine::new(22, &[2048], 1, 8 * MIB);
    let mut node = machine.start(1);
    let volumes: Vec<_> = (0..400).map(|number| node.create(&format!("v{number}"), 4096)).collect();
    let filler = node.create("filler", 16 * MIB);
    for block in 0.. {
        node.checkpoint();
        let spare = available(&node) - 800;
        if spare <= 2 {
            break;
        }
        let length = usize::try_from(spare / 3).expect("positive").clamp(1, 64) * 4096;
        node.write(filler, block * 64 * 4096, &vec![1; length]).expect("there is room");
    }
    // Each takes a block and a node, and changes its place in the table.
    for &volume in &volumes {
        let _ = node.write(volume, 0, &[2; 4096]);
    }
    node.checkpoint();
    stays_whole(&mut machine, node);
}

#[test]
fn a_scattered_volume_is_deleted_in_a_full_pool() {
    let mut machine = Machine::new(23, &[45_056], 1, 8 * MIB);
    let mut node = machine.start(1);
    let (scattered, other) = (node.create("scattered", 176 * MIB), node.create("other", 176 * MIB));
    let end = fill(&mut node, scattered, 0, 64);
    // Every second block goes to another volume.
    for block in (0..end).step_by(2) {
        let range = block * 4096..(block + 1) * 4096;
        let request = node.begin(0, scattered, VolumeOperation::Discard { range, durable: false });
        node.end(request).expect("there is room");
    }
    (0..3).for_each(|_| node.checkpoint());
    let end = fill(&mut node, other, 0, 64);
    fill(&mut node, other, end, 1);
    assert_eq!(node.admin(AdminRequest::VolumeDelete { name: "scattered".to_owned() }), AdminReply::Done);
    (0..4).for_each(|_| node.checkpoint());
    assert!(available(&node) > 20_000, "{} blocks are free", available(&node));
    stays_whole(&mut machine, node);
}

#[test]
fn sparse_volumes_are_trimmed_in_a_full_pool() {
    let mut machine = Machine::new(24, &[90_112], 1, 8 * MIB);
    let mut node = machine.start(1);
    let spare = node.create("spare", 176 * MIB);
    for block in (0..760).step_by(4) {
        node.write(spare, block * 4096, &vec![1; 4 * 4096]).expect("there is room");
    }
    let sparse: Vec<_> = ["one", "two"].iter().map(|name| node.create(name, 8 << 30)).collect();
    let other = node.create("other", 352 * MIB);
    for leaf in 0..16_384 {
        for &volume in &sparse {
            node.write(volume, leaf * 128 * 4096, &[1; 4096]).expect("there is room");
        }
    }
    let end = fill(&mut node, other, 0, 64);
    fill(&mut node, other, end, 1);
    assert_eq!(node.admin(AdminRequest::VolumeDelete { name: "spare".to_owned() }), AdminReply::Done);
    (0..4).for_each(|_| node.checkpoint());
    // Each cuts off 254 subtrees of two blocks, which a list must name for a few consistency points.
    for &volume in &sparse {
        for first in (0..16_384 - 255).step_by(256) {
            let range = (first * 128 + 1) * 4096..((first + 255) * 128) * 4096;
            let request = node.begin(0, volume, VolumeOperation::Discard { range, durable: false });
            node.end(request).expect("it makes space");
        }
    }
    for _ in 0..12 {
        node.checkpoint();
    }
    stays_whole(&mut machine, node);
}

/// Turns of a node, and of time, until something is so. False: not within that time.
fn within(node: &mut Node, time: Duration, mut is_so: impl FnMut(&mut Node) -> bool) -> bool {
    let end = node.platforms[0].now() + time;
    while node.platforms[0].now() < end {
        node.platforms[0].turn(Wait::UpTo(Duration::from_millis(1)));
        node.asleep[0] = None;
        node.turn();
        if is_so(node) {
            return true;
        }
    }
    false
}

/// A node whose log, eight blocks of persistent memory, is filled by so many changes of one header each, while the disk takes minutes for an
/// operation. The number of those for which there was room.
fn with_records(count: u64) -> (Machine, Node, u64) {
    let second = Duration::from_secs(1);
    let disk = MediumConfig { latency_ns: (1_000_000_000, 1_000_000_000), ..MediumConfig::new("disk", 16384) };
    let machine = Machine::made_of(41, [disk], 1, LogShape::pmem(9 * 4096));
    let mut node = machine.boot(1);
    assert!(within(&mut node, second * 60, |node| node.engines[0].is_serving()));
    let volume = node.create("vol", MIB);
    machine.media[0].set_faults(FaultPlan::default().with(Fault::SlowOperation, 1_000_000));
    for written in 0..count {
        let request = node.begin(0, volume, VolumeOperation::Discard { range: 0..4096, durable: false });
        if !within(&mut node, second, |node| node.replies.contains_key(&request)) {
            return (machine, node, written);
        }
    }
    (machine, node, count)
}

#[test]
fn a_volumes_name_counts_when_the_log_is_asked_for_room() {
    let (_, _, all) = with_records(u64::MAX);
    // Before and after a lane that is quiet has appended a mark: in one of the two cases there is room for one more header, and no more.
    for quiet in [Duration::ZERO, Duration::from_millis(10)] {
        for count in all - 1..=all {
            let (machine, mut node, _) = with_records(count);
            within(&mut node, quiet, |_| false);
            let (reply, replies) = crossbeam_channel::bounded(1);
            let request = AdminRequest::VolumeCreate { name: "name".to_owned(), size_bytes: MIB, block_bytes: 4096 };
            node.engines[0].call(AdminCall { request, reply });
            let is_made = within(&mut node, Duration::from_secs(1), |_| !replies.is_empty());
            machine.media[0].set_faults(FaultPlan::default());
            assert!(is_made || within(&mut node, Duration::from_secs(1000), |_| !replies.is_empty()), "{count}");
            assert_eq!(node.failure(), None);
        }
    }
}
