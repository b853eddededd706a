//! The owner's engine with a mirror portion at another node: what waits for whom, and a takeover of what was mirrored.

use super::*;
use crate::{
    changelog::{MirrorLane, lane::MirrorItem},
    cp::message::MirrorOrder,
};

/// The partner's portion, in the hands of mirror lanes.
struct Partner {
    agenda: Agenda,
    logs: Vec<LogMedium>,
    lanes: Vec<MirrorLane<SimLog>>,
    told: Vec<Option<crate::base::Lsn>>,
}

impl Partner {
    fn new(machine: &Machine) -> Self {
        let agenda = Agenda::new(&machine.world);
        let shape =
            |log: &LogMedium| LogMedium::new(&machine.world, "mirror", LogShape::file(log.image().len() as u64));
        let logs: Vec<_> = machine.logs.iter().map(shape).collect();
        let lane_count = u16::try_from(logs.len()).expect("a few");
        let lane = |(lane, log): (u16, &LogMedium)| {
            let lane = LaneIndex(lane);
            let identity = LaneIdentity { pool: PoolId(7), role: PortionRole::Mirror, lane, lane_count };
            let mut format = Format::new(log.open(&agenda), &identity, PortionId(2));
            while !format.poll().expect("the log is sound") {
                agenda.turn(Wait::UpTo(Duration::from_millis(1)));
            }
            MirrorLane::open(format.into_log(), identity, Epoch(1))
        };
        let lanes: Vec<_> = (0..).zip(&logs).map(lane).collect();
        let told = vec![None; lanes.len()];
        Self { agenda, logs, lanes, told }
    }

    /// Takes what the owner sends, and acknowledges what is durable.
    fn turn(&mut self, owner: &mut Node) {
        while let Some((lane, item)) = owner.engines[0].next_mirror_item() {
            let lane = &mut self.lanes[lane.index()];
            match item {
                MirrorItem::Begin { epoch, start } => lane.begin(epoch, start).expect("in order"),
                MirrorItem::Write { epoch, start, end, bytes } => {
                    lane.write(epoch, start, end, &bytes).expect("in order");
                }
            }
        }
        self.agenda.turn(Wait::No);
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.poll().expect("sound");
            if lane.durable() > self.told[index] {
                self.told[index] = lane.durable();
                let durable = lane.durable().expect("it has begun");
                let lane = LaneIndex(u16::try_from(index).expect("a few"));
                owner.engines[0].order_mirror(lane, MirrorOrder::Mirrored(durable));
                owner.asleep[0] = None;
            }
        }
    }

    /// The owner is gone: what it mirrored is the log with which its pool is opened.
    fn take_over(self, machine: &mut Machine, epoch: u64) -> Node {
        machine.logs = self.logs;
        let grant = Grant { role: PortionRole::Mirror, epoch: Epoch(epoch), is_mirrored: false, is_power_on: false };
        let mut node = machine.boot_granted(1, grant);
        node.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving) || node.failure().is_some());
        node
    }
}

fn mirrored(epoch: u64) -> Grant {
    Grant { role: PortionRole::Own, epoch: Epoch(epoch), is_mirrored: true, is_power_on: false }
}

fn end_mirrored(node: &mut Node, partner: &mut Partner, request: u64) -> Result<ReplyData, VolumeError> {
    node.run_until("the request is answered", |node| {
        partner.turn(node);
        node.replies.contains_key(&request)
    });
    node.replies.remove(&request).expect("waited for")
}

/// An owner of two reactors and two lanes that serves, its mirror, and a volume.
fn pair(seed: u64) -> (Machine, Node, Partner, ObjectId) {
    let machine = Machine::new(seed, &[4096], 2, 64 * 4096);
    let mut node = machine.boot_granted(2, mirrored(2));
    let mut partner = Partner::new(&machine);
    node.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving) || node.failure().is_some());
    let (reply, replies) = crossbeam_channel::bounded(1);
    let request = AdminRequest::VolumeCreate { name: "v".to_owned(), size_bytes: 1 << 20, block_bytes: 4096 };
    node.engines[0].call(AdminCall { request, reply });
    node.run_until("it is made", |node| {
        partner.turn(node);
        !replies.is_empty()
    });
    let volume = node.volume("v");
    (machine, node, partner, volume)
}

#[test]
fn a_change_is_answered_and_read_only_when_both_portions_have_it() {
    let (_machine, mut node, mut partner, volume) = pair(1);
    let request = node.begin_write(volume, 0, &[7; 4096]);
    for _ in 0..2000 {
        node.turn();
    }
    let read = node.begin(0, volume, VolumeOperation::Read(0..4096));
    for _ in 0..2000 {
        node.turn();
    }
    assert!(node.replies.is_empty(), "the partner has not acknowledged");
    end_mirrored(&mut node, &mut partner, request).expect("both have it");
    end_mirrored(&mut node, &mut partner, read).expect("both have it");
}

#[test]
fn the_partner_performs_exactly_what_was_answered() {
    let (mut machine, mut node, mut partner, volume) = pair(2);
    for block in 0..40 {
        let value = u8::try_from(block + 1).expect("small");
        let request = node.begin_write(volume, block * 4096, &[value; 4096]);
        end_mirrored(&mut node, &mut partner, request).expect("both have it");
    }
    drop(node);
    let mut survivor = partner.take_over(&mut machine, 3);
    assert_eq!(survivor.failure(), None);
    assert_eq!(survivor.engines[0].coordinator().expect("reactor 0").epoch(), Epoch(3));
    for block in 0..40 {
        let value = u8::try_from(block + 1).expect("small");
        let bytes = survivor.read(volume, block * 4096..(block + 1) * 4096).expect("it was answered");
        assert_eq!(bytes, [value; 4096]);
    }
    survivor.check();
}

#[test]
fn a_mirror_is_brought_in_step_while_the_owner_serves() {
    let machine = Machine::new(3, &[4096], 2, 64 * 4096);
    let mut node = machine.boot_granted(2, Grant { is_mirrored: false, ..mirrored(2) });
    node.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving));
    let volume = node.create("v", 1 << 20);
    node.write(volume, 0, &[1; 4096]).expect("alone");
    let mut partner = Partner::new(&machine);
    node.engines[0].coordinator_mut().expect("reactor 0").start_mirroring(4096);
    node.asleep[0] = None;
    let mut block = 1;
    node.run_until("the mirror is in step", |node| {
        partner.turn(node);
        if node.replies.len() as u64 == block - 1 && block < 30 {
            node.begin_write(volume, block * 4096, &[2; 4096]);
            block += 1;
        }
        node.engines[0].next_mirror_news() == Some(PoolMirrorNews::InStep)
    });
    node.engines[0].coordinator_mut().expect("reactor 0").mirror_is_in_sync(Epoch(3));
    let last = node.begin_write(volume, 200 * 4096, &[3; 4096]);
    end_mirrored(&mut node, &mut partner, last).expect("both have it");
    let answered = node.replies.len() as u64;
    drop(node);
    let mut machine = machine;
    let mut survivor = partner.take_over(&mut machine, 4);
    for (block, value) in (1..=answered).map(|block| (block, 2)).chain([(0, 1), (200, 3)]) {
        let bytes = survivor.read(volume, block * 4096..(block + 1) * 4096).expect("it was answered");
        assert_eq!(bytes, [value; 4096], "block {block}");
    }
    survivor.check();
}

#[test]
fn an_owner_whose_partner_is_gone_answers_once_the_register_says_stale() {
    let (machine, mut node, mut partner, volume) = pair(4);
    let request = node.begin_write(volume, 0, &[1; 4096]);
    end_mirrored(&mut node, &mut partner, request).expect("both have it");
    let waiting = node.begin_write(volume, 4096, &[2; 4096]);
    for _ in 0..2000 {
        node.turn();
    }
    assert!(node.replies.is_empty());
    node.engines[0].coordinator_mut().expect("reactor 0").mirror_is_stale(Epoch(3));
    node.asleep[0] = None;
    node.end(waiting).expect("alone");
    drop(node);
    // Restarted, it has records of both epochs.
    let mut again = machine.boot_granted(2, Grant { is_mirrored: false, ..mirrored(4) });
    again.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving) || node.failure().is_some());
    assert_eq!(again.failure(), None);
    assert_eq!(again.read(volume, 0..4096).expect("there"), [1; 4096]);
    assert_eq!(again.read(volume, 4096..8192).expect("there"), [2; 4096]);
}

#[test]
fn an_owner_that_lost_the_register_finds_its_records_void() {
    let (mut machine, mut node, mut partner, volume) = pair(5);
    let request = node.begin_write(volume, 0, &[1; 4096]);
    end_mirrored(&mut node, &mut partner, request).expect("both have it");
    // Durable at the owner alone, never answered: the stale tail of design rule R4.
    node.begin_write(volume, 0, &[9; 4096]);
    for _ in 0..2000 {
        node.turn();
    }
    drop(node);
    let own = std::mem::take(&mut machine.logs);
    let mut survivor = partner.take_over(&mut machine, 3);
    assert_eq!(survivor.read(volume, 0..4096).expect("there"), [1; 4096]);
    survivor.close_all();
    machine.logs = own;
    let grant = Grant { role: PortionRole::Own, epoch: Epoch(4), is_mirrored: false, is_power_on: false };
    let mut again = machine.boot_granted(2, grant);
    again.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving) || node.failure().is_some());
    assert_eq!(again.failure(), None);
    assert_eq!(again.read(volume, 0..4096).expect("there"), [1; 4096], "what was discarded does not rise again");
}

#[test]
fn a_pool_of_a_later_epoch_is_not_opened() {
    let machine = Machine::new(6, &[4096], 1, 64 * 4096);
    let mut node = machine.boot_granted(1, Grant { is_mirrored: false, ..mirrored(5) });
    node.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving));
    drop(node);
    let mut fenced = machine.boot_granted(1, Grant { is_mirrored: false, ..mirrored(4) });
    fenced.run_until("it refuses", |node| node.failure().is_some());
    assert!(fenced.failure().expect("it stopped").contains("epoch 5"));
}

#[test]
fn a_pool_that_closes_answers_everything_and_lets_go_everywhere() {
    let (machine, mut node, _partner, volume) = pair(7);
    let waiting = node.begin_write(volume, 0, &[1; 4096]);
    node.close_all();
    let Err(VolumeError::Stopped(reason)) = node.replies.remove(&waiting).expect("answered") else {
        panic!("the partner had not acknowledged");
    };
    assert_eq!(reason, "test");
    let mut again = machine.boot_granted(1, Grant { is_mirrored: false, ..mirrored(3) });
    again.run_until("it serves", |node| node.engines.iter().all(Engine::is_serving) || node.failure().is_some());
    assert_eq!(again.failure(), None);
}

#[test]
fn a_pool_that_one_reactor_cannot_open_stops_and_is_let_go_everywhere() {
    let mut machine = Machine::new(8, &[4096], 3, 64 * 4096);
    for reactor in 0..3 {
        machine.refuses = Some(reactor);
        let mut node = machine.boot(3);
        node.run_until("it has failed", |node| node.failure().is_some());
        assert_eq!(node.failure(), Some(format!("reactor {reactor}: no memory")));
        node.close_all();
        drop(node);
        machine.refuses = None;
        let again = machine.start(3);
        assert_eq!(again.failure(), None);
    }
}
