//! Two nodes at one namespace, each through a controller in software.

use super::*;
use std::{cell::Cell, rc::Rc, time::Duration};
use twinlog::base::PoolId;
use twinlog_device::{BlockPool, Nanos, Persistence};
use twinlog_nvme::{
    Controller, ControllerOptions, ControllerState,
    model::{Mischief, Model, ModelConfig, ModelFunction},
};

const POOL: PoolId = PoolId(7);

type Disk = NvmeDisk<ModelFunction, Rc<Cell<Nanos>>>;

/// A node's controller: one disk for reservations, the others for writes.
struct Host {
    id: HostId,
    node: NodeIndex,
    model: Model,
    time: Rc<Cell<Nanos>>,
    pool: BlockPool,
    controller: Controller<ModelFunction>,
    reserving: Disk,
}

impl Host {
    fn new(model: Model, node: NodeIndex) -> Self {
        let time = Rc::new(Cell::new(Nanos(1)));
        let pool = BlockPool::new(8).expect("a small mapping");
        let id = [if node == NodeIndex::First { 1 } else { 2 }; 16];
        let options = ControllerOptions { disk_count: 8, host_id: Some(id), ..ControllerOptions::default() };
        let controller = Controller::start(model.function(), &[&pool], options, time.get()).expect("a usual one");
        while controller.poll(time.get()) != ControllerState::Live {
            turn(&model, &time);
        }
        let reserving = controller.open(1, time.clone()).expect("it is there");
        Self { id, node, model, time, pool, controller, reserving }
    }

    fn hold(&mut self, epoch: u64, is_fence: bool) -> Result<(), String> {
        let claim = Claim { pool: POOL, node: self.node, epoch: Epoch(epoch), is_fence };
        let (model, time) = (&self.model, &self.time);
        hold(&mut self.reserving, &claim, self.id, || turn(model, time))
    }

    fn disk(&self) -> Disk {
        self.controller.open(1, self.time.clone()).expect("it is there")
    }

    /// Writes a block that is all `byte`.
    fn write(&self, disk: &mut Disk, byte: u8) -> Result<(), DeviceErrorKind> {
        let mut block = self.pool.allocate().expect("there are eight");
        block.fill(byte);
        disk.write(Token(1), 3, vec![block.freeze()], Persistence::Durable);
        self.finish(disk)
    }

    fn finish(&self, disk: &mut Disk) -> Result<(), DeviceErrorKind> {
        let mut completions = Vec::new();
        while completions.is_empty() {
            disk.poll(&mut completions);
            turn(&self.model, &self.time);
        }
        completions.remove(0).result.map_err(|error| error.kind)
    }

    fn read(&self) -> u8 {
        let mut disk = self.disk();
        disk.read(Token(2), 3, vec![self.pool.allocate().expect("there are eight")]);
        let mut completions = Vec::new();
        while completions.is_empty() {
            disk.poll(&mut completions);
            turn(&self.model, &self.time);
        }
        completions[0].blocks[0][0]
    }
}

fn turn(model: &Model, time: &Rc<Cell<Nanos>>) {
    model.turn();
    time.set(time.get() + Duration::from_millis(1));
}

fn pair() -> [Host; 2] {
    let model = Model::new(ModelConfig::new(5));
    let second = model.second_controller();
    [Host::new(model, NodeIndex::First), Host::new(second, NodeIndex::Second)]
}

#[test]
fn who_was_fenced_writes_no_more_until_it_is_entitled_again() {
    let [mut a, mut b] = pair();
    a.hold(5, false).expect("nobody has it");
    a.hold(5, false).expect("it has it already");
    let mut disk = a.disk();
    assert_eq!(a.write(&mut disk, 1), Ok(()));
    assert!(b.hold(5, false).expect_err("the owner is entitled to it").contains("since epoch 5"));
    b.hold(6, true).expect("the register has gone on to 6 since");
    assert_eq!(a.write(&mut disk, 2), Err(DeviceErrorKind::Fenced));
    assert!(a.hold(6, false).expect_err("fenced at this epoch").contains("since epoch 6"));
    b.hold(7, false).expect("the takeover was made");
    let mut theirs = b.disk();
    assert_eq!(b.write(&mut theirs, 3), Ok(()));
    assert!(a.hold(6, true).expect_err("a fence of long ago").contains("since epoch 7"));
    assert_eq!((a.read(), b.read()), (3, 3), "everybody reads");
    a.hold(8, false).expect("it was given back");
    assert_eq!(b.write(&mut theirs, 4), Err(DeviceErrorKind::Fenced));
    assert_eq!(a.write(&mut disk, 5), Err(DeviceErrorKind::Fenced), "a queue of before");
    assert_eq!(a.write(&mut a.disk(), 5), Ok(()));
}

#[test]
fn the_next_life_of_an_owner_holds_what_the_former_one_held() {
    let [mut a, b] = pair();
    a.hold(5, false).expect("nobody has it");
    let mut again = Host::new(a.model.clone(), NodeIndex::First);
    assert_eq!(b.write(&mut b.disk(), 2), Err(DeviceErrorKind::Fenced));
    again.hold(6, false).expect("its own");
    assert_eq!(again.write(&mut again.disk(), 3), Ok(()));
}

#[test]
fn a_strangers_reservation_is_left_alone() {
    let [mut a, mut b] = pair();
    for (kind, key) in [(ReservationKind::ExclusiveAccess, 9), (KIND, 9)] {
        let (model, time) = (b.model.clone(), b.time.clone());
        let mut wait = || turn(&model, &time);
        for command in [Reservation::Register { key, persists: None }, Reservation::Acquire { key, kind }] {
            perform(&mut b.reserving, command, &mut wait).expect("nobody has it");
        }
        assert!(a.hold(5, true).expect_err("it is no node's").contains("nvme resv-report"));
        perform(&mut b.reserving, Reservation::Unregister { key }, &mut wait).expect("its own");
    }
    a.hold(5, true).expect("nobody has it");
}

/// The answer to its preemption is lost: it holds the namespace, and has fenced nobody, not in its next life either, until the partner has opened it again.
#[test]
fn a_preemption_whose_answer_is_lost_is_no_fence() {
    let mut unproven = 0;
    for seed in 0..200 {
        let model = Model::new(ModelConfig::new(seed));
        let (mut a, mut b) =
            (Host::new(model.clone(), NodeIndex::First), Host::new(model.second_controller(), NodeIndex::Second));
        a.hold(1, false).expect("nobody has it");
        b.model.set_mischief(Mischief { lost_answer: 60, ..Mischief::default() });
        let outcome = b.hold(2, true);
        b.model.set_mischief(Mischief::default());
        let Err(said) = outcome else { continue };
        if !said.contains("the answer was lost") {
            continue;
        }
        unproven += 1;
        assert_eq!(a.write(&mut a.disk(), 2), Err(DeviceErrorKind::Fenced), "seed {seed}");
        let mut again = Host::new(b.model.clone(), NodeIndex::Second);
        again.hold(2, true).expect_err("its next life has not heard it either");
        a.hold(3, false).expect("it claims its pool again");
        again.hold(4, true).expect("and this one is heard");
    }
    assert!(unproven > 5, "{unproven} of 200");
}

/// Commands that a reset has ended may have been performed; answers are late, lost, or errors. What is held in the end is held.
#[test]
fn a_controller_that_misbehaves_makes_nobody_hold_what_another_has() {
    let mut held = 0;
    for seed in 0..200 {
        let mut config = ModelConfig::new(seed);
        config.delay_max = 1;
        let model = Model::new(config);
        let (mut a, mut b) =
            (Host::new(model.clone(), NodeIndex::First), Host::new(model.second_controller(), NodeIndex::Second));
        a.hold(1, false).expect("nobody has it");
        b.model.set_mischief(Mischief {
            no_answer: 50,
            lost_answer: 50,
            late: 100,
            bad_status: 200,
            ..Mischief::default()
        });
        let outcome = b.hold(2, true);
        b.model.set_mischief(Mischief::default());
        let mut disk = a.disk();
        match outcome {
            Ok(()) => {
                held += 1;
                assert_eq!(a.write(&mut disk, 2), Err(DeviceErrorKind::Fenced), "seed {seed}");
            }
            // It may hold it all the same; the owner takes it back.
            Err(_) if a.hold(3, false).is_ok() => assert_eq!(a.write(&mut a.disk(), 3), Ok(()), "seed {seed}"),
            Err(reason) => panic!("seed {seed}: {reason}"),
        }
    }
    assert!(held > 60, "{held} of 200");
}
