//! What a pool remembers of changes that the partner forwarded: exactly those that it contains, whatever happens to the node.

use super::*;
use crate::{
    base::{ForwardId, forwarded::forward_slots},
    node::request::FORWARDED_SESSION,
};

fn remembers(node: &Node, volume: ObjectId, id: ForwardId) -> bool {
    let superblock = node.engines[0].coordinator().and_then(Coordinator::superblock).expect("the pool is open");
    superblock.forwarded[LaneIndex::of(volume, superblock.forwarded.len()).index()].contains(id)
}

fn forward(node: &mut Node, volume: ObjectId, id: ForwardId, operation: VolumeOperation) {
    let tag = RequestTag { session: FORWARDED_SESSION, request: id.bits() };
    node.asleep[0] = None;
    node.engines[0].submit(VolumeRequest { tag, volume, host: None, pass: None, operation });
}

fn forward_write(node: &mut Node, volume: ObjectId, id: ForwardId, offset: u64) {
    let mut payload =
        Payload::allocate(node.engines[0].blocks(), offset..offset + 4096).expect("memory is large enough");
    payload.fill(0, &[7; 4096]);
    forward(node, volume, id, VolumeOperation::Write { payload, durable: false });
}

#[test]
fn a_pool_remembers_the_forwarded_changes_that_it_contains() {
    let mut machine = Machine::new(11, &[4096], 4, MIB);
    let mut node = machine.start(2);
    let volumes = ["one", "two", "three"].map(|name| node.create(name, MIB));
    let ids: Vec<ForwardId> = (0..3).map(|slot| ForwardId::new(1000, slot)).collect();
    for (&volume, &id) in volumes.iter().zip(&ids) {
        forward_write(&mut node, volume, id, 0);
        node.end(id.bits()).expect("there is room");
    }
    assert!(!remembers(&node, volumes[0], ids[0]), "it is in the log, not in a consistency point");
    // Two of them are in a consistency point when the power goes, one in the log only; a fourth was never asked for.
    node.checkpoint();
    assert!(volumes.iter().zip(&ids).all(|(&volume, &id)| remembers(&node, volume, id)));
    let newer = ForwardId::new(1001, 2);
    let range = 0..4096;
    forward(&mut node, volumes[2], newer, VolumeOperation::Discard { range, durable: false });
    node.end(newer.bits()).expect("there is room");
    for _ in 0..2 {
        machine.power_cut(node);
        node = machine.start(1);
        assert!(remembers(&node, volumes[0], ids[0]) && remembers(&node, volumes[1], ids[1]));
        assert!(remembers(&node, volumes[2], newer) && !remembers(&node, volumes[2], ids[2]), "the newest of its slot");
        assert!(!remembers(&node, volumes[0], ForwardId::new(1002, 3)));
    }
    assert_eq!(node.read(volumes[0], 0..4096), Ok(vec![7; 4096]));
}

/// After any power cut a pool remembers a change exactly if it has it.
#[test]
fn what_is_remembered_is_what_is_there() {
    let mut were_there = [0, 0];
    for seed in 0..60 {
        let mut machine = Machine::new(seed, &[4096], 2, MIB);
        let mut node = machine.start(1);
        let volume = node.create("vol", MIB);
        let ids: Vec<ForwardId> = (0..forward_slots(2))
            .zip(seed * 100..)
            .take(20)
            .map(|(slot, number)| ForwardId::new(number, slot))
            .collect();
        for (index, &id) in (0..).zip(&ids) {
            forward_write(&mut node, volume, id, index * 4096);
            if index == 10 {
                node.asleep[0] = None;
                let (reply, _nobody_waits) = crossbeam_channel::bounded(1);
                node.engines[0].call(AdminCall { request: AdminRequest::Checkpoint, reply });
            }
            (0..seed % 7).for_each(|_| node.turn());
        }
        machine.power_cut(node);
        node = machine.start(1);
        for (index, &id) in (0..).zip(&ids) {
            let bytes = node.read(volume, index * 4096..(index + 1) * 4096).expect("it is readable");
            let is_there = bytes == vec![7; 4096];
            assert_eq!(remembers(&node, volume, id), is_there, "seed {seed}, change {index}");
            were_there[usize::from(is_there)] += 1;
        }
    }
    assert!(were_there.iter().all(|&count| count > 50), "both happen: {were_there:?}");
}
