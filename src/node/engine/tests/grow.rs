//! A device joins: crashes and failures on the way.

use super::*;
use twinlog_sim::Fault;

const BLOCKS: u64 = 1024;

fn ask_to_grow(node: &mut Node) -> crossbeam_channel::Receiver<AdminReply> {
    let (reply, replies) = crossbeam_channel::bounded(1);
    node.engines[0].call(AdminCall { request: AdminRequest::PoolGrow { device: "disk-1".to_owned() }, reply });
    let mut wanted = vec![false; node.engines.len()];
    node.run_until("every reactor wants the device", |node| {
        for (engine, wanted) in node.engines.iter_mut().zip(&mut wanted) {
            *wanted |= engine.wanted_device().is_some();
        }
        wanted.iter().all(|&wanted| wanted)
    });
    replies
}

fn open(node: &mut Node, reactor: usize, medium: &SimMedium) {
    let device = medium.open(node.platforms[reactor].agenda());
    node.engines[reactor].device_opened(Ok(device));
}

/// Lets the last medium join a node of one reactor; `None`: the power went.
fn grow(machine: &Machine, node: &mut Node) -> Option<AdminReply> {
    let replies = ask_to_grow(node);
    open(node, 0, machine.media.last().expect("made before"));
    let mut answer = None;
    node.run_until("control has its answer, or the power is gone", |_| {
        answer = replies.try_recv().ok();
        answer.is_some() || machine.world.crashed()
    });
    answer
}

fn add_medium(machine: &mut Machine) {
    machine.media.push(SimMedium::new(&machine.world, MediumConfig::new("disk-1", BLOCKS)));
}

/// A node on what was configured: both devices, of which the second may not have joined. Tells whether it has.
fn start_configured(machine: &mut Machine) -> (Node, bool) {
    let node = machine.start(1);
    let Some(reason) = node.failure() else { return (node, true) };
    assert!(reason.contains("disk-1 belongs to pool"), "{reason}");
    machine.media.truncate(1);
    (machine.start(1), false)
}

#[test]
fn a_power_cut_at_any_step_of_a_join_leaves_a_pool_that_opens() {
    for seed in 0..2 {
        let mut outcomes = [0, 0];
        for step in 0.. {
            let mut machine = Machine::new(seed, &[BLOCKS], 1, MIB);
            let mut node = machine.start(1);
            let volume = node.create("vol", MIB);
            node.write(volume, 0, &[1; 8192]).expect("there is room");
            node.checkpoint();
            add_medium(&mut machine);
            machine.world.crash_at_step(machine.world.steps() + step);
            let answer = grow(&machine, &mut node);
            machine.power_cut(node);
            machine.world.recover();
            let (mut node, has_joined) = start_configured(&mut machine);
            assert_eq!(node.failure(), None, "seed {seed}, step {step}");
            assert!(has_joined || answer.is_none(), "seed {seed}, step {step}: answered, and gone");
            outcomes[usize::from(has_joined)] += 1;
            let volume = node.volume("vol");
            assert_eq!(node.read(volume, 0..8192).expect("readable"), vec![1; 8192]);
            node.check();
            if answer.is_some() {
                break;
            }
        }
        assert!(outcomes.iter().all(|&count| count > 1), "seed {seed}: {outcomes:?}");
    }
}

#[test]
fn a_device_that_fails_while_it_joins_is_sent_away_and_the_pool_serves_on() {
    for skipped in 0..2 {
        let mut machine = Machine::new(11, &[BLOCKS], 1, MIB);
        let mut node = machine.start(1);
        let volume = node.create("vol", MIB);
        add_medium(&mut machine);
        machine.media[1].arm(Fault::WriteError, skipped);
        let answer = grow(&machine, &mut node);
        assert!(matches!(answer, Some(AdminReply::Refused { .. })), "{answer:?}");
        assert_eq!(node.failure(), None);
        node.write(volume, 0, &[1; 8192]).expect("it serves");
        node.checkpoint();
        node.check();
        // What the failed device holds is not believed, also when it is configured still.
        machine.power_cut(node);
        let (mut node, has_joined) = start_configured(&mut machine);
        assert!(!has_joined);
        let volume = node.volume("vol");
        assert_eq!(node.read(volume, 0..8192).expect("readable"), vec![1; 8192]);
        add_medium(&mut machine);
        assert_eq!(grow(&machine, &mut node), Some(AdminReply::Done));
        node.check();
    }
}

#[test]
fn a_device_is_refused_while_a_consistency_point_is_committed() {
    let mut machine = Machine::new(12, &[BLOCKS], 2, MIB);
    let mut node = machine.start(2);
    let volume = node.create("vol", MIB);
    add_medium(&mut machine);
    machine.media[1].arm(Fault::SlowOperation, 0);
    let refused = ask_to_grow(&mut node);
    open(&mut node, 0, &machine.media[1]);
    node.write(volume, 0, &[1; 8192]).expect("there is room");
    let (reply, committed) = crossbeam_channel::bounded(1);
    node.engines[0].call(AdminCall { request: AdminRequest::Checkpoint, reply });
    node.run_until("it is committed", |node| node.engines[0].coordinator().map(Coordinator::phase) == Some("commit"));
    node.engines[1].device_opened(Err("no such device".to_owned()));
    node.run_until("both have their answers", |_| !refused.is_empty() && !committed.is_empty());
    assert!(matches!(refused.recv(), Ok(AdminReply::Refused { .. })));
    assert_eq!(committed.recv(), Ok(AdminReply::Done));
    node.check();
}
