//! Two hosts at one namespace: the fence of a pair with shared disks, and what becomes of commands in flight when their host is preempted.

use crate::support::{Rig, expect_whole};
use std::{collections::BTreeSet, time::Duration};
use twinlog_device::{BlockDevice, DeviceErrorKind, Persistence, Prng, Token};
use twinlog_nvme::{
    ControllerOptions, ControllerState, Reservation, ReservationKind,
    model::{Mischief, Model, ModelConfig},
};

const KIND: ReservationKind = ReservationKind::WriteExclusive;

/// A rig whose driver says that it is `host`, with three disks of the namespace.
fn hosted(model: Option<Model>, host: u8) -> Rig {
    let mut rig = Rig::new(ModelConfig::new(9), 64);
    if let Some(model) = model {
        rig.model = model;
    }
    bring_up(&mut rig, host);
    rig
}

fn bring_up(rig: &mut Rig, host: u8) {
    let options = ControllerOptions { disk_count: 3, host_id: Some([host; 16]), ..ControllerOptions::default() };
    assert_eq!(rig.start(options), ControllerState::Live);
    assert_eq!([0; 3].map(|_| rig.open(1)), [0, 1, 2]);
}

/// The last disk is for reservations.
fn reserve(rig: &mut Rig, reservation: Reservation) -> Result<(), DeviceErrorKind> {
    rig.disks[2].reserve(Token(1), reservation);
    rig.collect(2, 1).remove(0).result.map_err(|error| error.kind)
}

fn write(rig: &mut Rig, disk: usize) -> Result<(), DeviceErrorKind> {
    let source = rig.pool.allocate_zeroed().expect("free blocks").freeze();
    rig.disks[disk].write(Token(2), 3, vec![source], Persistence::Durable);
    rig.collect(disk, 1).remove(0).result.map_err(|error| error.kind)
}

/// Two hosts, one namespace: the fence of a pair with shared disks.
#[test]
fn a_preempted_host_cannot_write() {
    let kind = ReservationKind::WriteExclusive;
    let mut first = hosted(None, 1);
    let mut second = hosted(Some(first.model.second_controller()), 2);
    let namespace = first.disks[0].namespace();
    assert!(namespace.can_reserve(kind) && namespace.can_persist());
    assert_eq!(reserve(&mut first, Reservation::Register { key: 11, persists: Some(true) }), Ok(()));
    assert_eq!(reserve(&mut first, Reservation::Acquire { key: 11, kind }), Ok(()));
    assert_eq!(write(&mut first, 0), Ok(()));
    assert_eq!(write(&mut second, 0), Err(DeviceErrorKind::Fenced), "only the holder writes");
    assert_eq!(reserve(&mut second, Reservation::Acquire { key: 22, kind }), Err(DeviceErrorKind::Fenced));
    assert_eq!(reserve(&mut second, Reservation::Register { key: 22, persists: None }), Ok(()));
    assert_eq!(write(&mut second, 1), Err(DeviceErrorKind::Fenced), "to be registered is not enough");
    let wrong = Reservation::Preempt { key: 22, victim: 12, kind, aborts: true };
    assert_eq!(reserve(&mut second, wrong), Err(DeviceErrorKind::Fenced), "the victim has another key by now");
    assert_eq!(reserve(&mut second, Reservation::Preempt { key: 22, victim: 11, kind, aborts: true }), Ok(()));
    assert_eq!(write(&mut first, 0), Err(DeviceErrorKind::Fenced), "the fence holds");
    first.model.power_cut(&mut Prng::new(1));
    bring_up(&mut first, 1);
    assert_eq!(write(&mut first, 0), Err(DeviceErrorKind::Fenced), "and persists");
    assert_eq!(reserve(&mut second, Reservation::Report), Ok(()));
    let report = second.disks[2].take_report().expect("it succeeded");
    assert_eq!((report.kind, report.registered_count, report.persists), (Some(kind), 1, true));
    let host = report.hosts[0];
    assert_eq!((host.key, host.holds, host.controller_id, host.host_id), (22, true, 2, [2; 16]));
    expect_whole(first);
    expect_whole(second);
}

#[test]
fn a_disk_that_was_fenced_asks_no_more() {
    let kind = ReservationKind::WriteExclusive;
    let mut first = hosted(None, 1);
    let mut second = hosted(Some(first.model.second_controller()), 2);
    assert_eq!(reserve(&mut second, Reservation::Register { key: 22, persists: None }), Ok(()));
    assert_eq!(reserve(&mut second, Reservation::Acquire { key: 22, kind }), Ok(()));
    assert_eq!(write(&mut first, 0), Err(DeviceErrorKind::Fenced));
    assert_eq!(reserve(&mut second, Reservation::Release { key: 22, kind }), Ok(()));
    assert_eq!(write(&mut first, 0), Err(DeviceErrorKind::Fenced), "the disk is fenced, whatever the namespace says");
    first.disks[0].flush(Token(3));
    assert_eq!(first.collect(0, 1).remove(0).result.map_err(|error| error.kind), Err(DeviceErrorKind::Fenced));
    let target = first.pool.allocate_many(1).expect("free blocks");
    first.disks[0].read(Token(4), 3, target);
    assert!(first.collect(0, 1).remove(0).result.is_ok(), "it may read");
    assert_eq!(write(&mut first, 1), Ok(()), "another disk has met no fence");
    expect_whole(first);
    expect_whole(second);
}

/// Who the host is outlives its processes and the controller's resets: a new driver holds what the former one held.
#[test]
fn a_host_is_known_by_its_identifier() {
    let kind = ReservationKind::WriteExclusive;
    let mut first = hosted(None, 1);
    let mut other_port = hosted(Some(first.model.second_controller()), 1);
    let persists = Some(true);
    assert_eq!(reserve(&mut first, Reservation::Register { key: 11, persists }), Ok(()));
    assert_eq!(reserve(&mut first, Reservation::Acquire { key: 11, kind }), Ok(()));
    assert_eq!(write(&mut other_port, 0), Ok(()), "two controllers, one host");
    first.model.fail();
    assert_eq!(write(&mut first, 0), Ok(()), "after a reset the controller is told again");
    assert_eq!(first.controller().reset_count(), 1);
    bring_up(&mut first, 1);
    assert_eq!(write(&mut first, 0), Ok(()), "as is the next process' driver");
    bring_up(&mut first, 3);
    assert_eq!(write(&mut first, 0), Err(DeviceErrorKind::Fenced), "another host is another host");
    expect_whole(first);
    expect_whole(other_port);
}

/// Writes of the first host that its controller has fetched, and that are done some turns later.
const IN_FLIGHT: u64 = 8;

/// Two hosts, of which the second has preempted the first, which had writes in flight; and which of those had landed by then.
fn preempted(seed: u64, aborts: bool) -> (Rig, Rig, BTreeSet<u64>) {
    let mut config = ModelConfig::new(seed);
    config.delay_max = 20;
    let mut first = Rig::new(config, 64);
    bring_up(&mut first, 1);
    let mut second = hosted(Some(first.model.second_controller()), 2);
    assert_eq!(reserve(&mut first, Reservation::Register { key: 11, persists: None }), Ok(()));
    assert_eq!(reserve(&mut first, Reservation::Acquire { key: 11, kind: KIND }), Ok(()));
    assert_eq!(reserve(&mut second, Reservation::Register { key: 22, persists: None }), Ok(()));
    for block in 0..IN_FLIGHT {
        let mut bytes = first.pool.allocate().expect("free blocks");
        bytes.fill(7);
        first.disks[0].write(Token(block), block, vec![bytes.freeze()], Persistence::Durable);
    }
    first.disks[0].poll(&mut Vec::new());
    (0..4).for_each(|_| first.turn());
    assert_eq!(reserve(&mut second, Reservation::Preempt { key: 22, victim: 11, kind: KIND, aborts }), Ok(()));
    let landed = landed(&mut second);
    (first, second, landed)
}

/// The blocks that hold what the first host writes.
fn landed(rig: &mut Rig) -> BTreeSet<u64> {
    let is_there = |&block: &u64| {
        let target = rig.pool.allocate_many(1).expect("free blocks");
        rig.disks[0].read(Token(1), block, target);
        let completion = rig.one(0);
        completion.result.expect("everybody reads");
        completion.blocks[0][0] == 7
    };
    (0..IN_FLIGHT).filter(is_there).collect()
}

/// What the driver says of each write in flight: it was done, or its host is fenced.
fn answered(rig: &mut Rig) -> BTreeSet<u64> {
    let count = usize::try_from(IN_FLIGHT).expect("few");
    let completions = rig.collect(0, count).into_iter();
    let is_done = |completion: &twinlog_device::BlockCompletion| match &completion.result {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.kind, DeviceErrorKind::Fenced);
            false
        }
    };
    completions.filter(is_done).map(|completion| completion.token.0).collect()
}

#[test]
fn what_is_aborted_with_a_preemption_has_landed_or_never_does() {
    let mut count = 0;
    for seed in 0..40 {
        let (mut first, mut second, before) = preempted(seed, true);
        assert_eq!(answered(&mut first), before, "seed {seed}");
        assert_eq!(landed(&mut second), before, "seed {seed}: nothing lands after the preemption");
        assert_eq!(write(&mut first, 0), Err(DeviceErrorKind::Fenced));
        count += before.len();
        expect_whole(first);
        expect_whole(second);
    }
    assert!((20..300).contains(&count), "{count} of 320 writes were done before");
}

/// Preempt alone ends nothing: commands that a controller is processing may change the namespace after it was answered. That is why the pair's fence aborts.
#[test]
fn what_is_under_way_at_a_preemption_without_an_abort_may_land_after_it() {
    let (mut late, mut refused) = (0, 0);
    for seed in 0..40 {
        let (mut first, mut second, before) = preempted(seed, false);
        let done = answered(&mut first);
        assert_eq!(landed(&mut second), done, "seed {seed}");
        assert!(done.is_superset(&before), "seed {seed}");
        assert_eq!(write(&mut first, 1), Err(DeviceErrorKind::Fenced), "what comes later is refused");
        late += done.len() - before.len();
        refused += IN_FLIGHT - done.len() as u64;
        expect_whole(first);
        expect_whole(second);
    }
    assert!(late > 40 && refused > 40, "{late} landed late, {refused} were refused");
}

/// A read that was aborted is not the device's failure either, and its block comes back.
#[test]
fn a_read_that_was_aborted_says_that_its_host_is_fenced() {
    let mut config = ModelConfig::new(3);
    config.delay_max = 200;
    let mut first = Rig::new(config, 64);
    bring_up(&mut first, 1);
    let mut second = hosted(Some(first.model.second_controller()), 2);
    assert_eq!(reserve(&mut first, Reservation::Register { key: 11, persists: None }), Ok(()));
    assert_eq!(reserve(&mut second, Reservation::Register { key: 22, persists: None }), Ok(()));
    let target = first.pool.allocate_many(1).expect("free blocks");
    first.disks[0].read(Token(1), 3, target);
    first.disks[0].poll(&mut Vec::new());
    first.turn();
    let preempt = Reservation::Preempt { key: 22, victim: 11, kind: KIND, aborts: true };
    assert_eq!(reserve(&mut second, preempt), Ok(()));
    let ended = first.one(0);
    assert_eq!(ended.result.map_err(|error| error.kind), Err(DeviceErrorKind::Fenced));
    drop(ended.blocks);
    assert_eq!(reserve(&mut second, Reservation::Clear { key: 22 }), Ok(()));
    assert_eq!(write(&mut first, 0), Err(DeviceErrorKind::Fenced), "the disk has met the fence, and asks no more");
    assert_eq!(first.controller().reset_count(), 0);
    expect_whole(first);
    expect_whole(second);
}

/// A write has not been answered in time, and the controller has not ended it either, when its host is preempted: that, and no failure of the device, is
/// what ends it.
#[test]
fn what_is_late_when_its_host_is_preempted_is_fenced_too() {
    let mut first = hosted(None, 1);
    let mut second = hosted(Some(first.model.second_controller()), 2);
    assert_eq!(reserve(&mut first, Reservation::Register { key: 11, persists: None }), Ok(()));
    assert_eq!(reserve(&mut second, Reservation::Register { key: 22, persists: None }), Ok(()));
    first.model.set_mischief(Mischief { late: 1000, ..Mischief::default() });
    let source = first.pool.allocate_zeroed().expect("free blocks").freeze();
    first.disks[0].write(Token(1), 3, vec![source], Persistence::Durable);
    first.disks[0].poll(&mut Vec::new());
    first.turn();
    first.model.set_mischief(Mischief { ignored_abort: 1000, ..Mischief::default() });
    first.time.set(first.time.get() + ControllerOptions::default().command_timeout + Duration::from_millis(1));
    let mut ended = Vec::new();
    first.disks[0].poll(&mut ended);
    first.turn();
    assert!(ended.is_empty() && first.disks[0].health().expect("a controller can say").timeout_count == 1);
    let preempt = Reservation::Preempt { key: 22, victim: 11, kind: KIND, aborts: true };
    assert_eq!(reserve(&mut second, preempt), Ok(()));
    assert_eq!(first.one(0).result.map_err(|error| error.kind), Err(DeviceErrorKind::Fenced));
    first.model.set_mischief(Mischief::default());
    expect_whole(first);
    expect_whole(second);
}
