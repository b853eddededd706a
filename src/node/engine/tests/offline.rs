//! Records that recovery cannot perform: they cost the use of their volume, and neither the pool nor anything that was answered.

use super::{
    damage::{BELOW, BLOCK, machine_and_node},
    *,
};
use crate::node::admin::OfflineStatus;

fn offline(node: &mut Node, name: &str) -> Option<OfflineStatus> {
    let AdminReply::Status(status) = node.admin(AdminRequest::Status) else { panic!("a status") };
    status.volumes.into_iter().find(|volume| volume.name == name).expect("it exists").offline
}

fn online(node: &mut Node, accept_loss: bool) -> AdminReply {
    node.admin(AdminRequest::VolumeOnline { name: "bad".to_owned(), accept_loss })
}

/// Every kind of request is refused, and nothing is read.
fn is_refused(node: &mut Node) {
    let bad = node.volume("bad");
    let operations = [
        VolumeOperation::Read(0..4096),
        VolumeOperation::Flush,
        VolumeOperation::Discard { range: 0..4096, durable: false },
        VolumeOperation::BlockStatus { range: 0..4096, extents_max: 1 },
        VolumeOperation::Cache(0..4096),
    ];
    for operation in operations {
        let request = node.begin(0, bad, operation);
        assert!(matches!(node.end(request), Err(VolumeError::Offline(_))));
    }
    assert!(matches!(node.write(bad, 0, &[1; 4096]), Err(VolumeError::Offline(_))));
    let resize = AdminRequest::VolumeResize { name: "bad".to_owned(), size_bytes: 4096 };
    assert!(matches!(node.admin(resize), AdminReply::Refused { .. }));
}

/// A machine whose log holds records of `bad`, the second of which needs a node that cannot be read any more, and of `good`.
fn poisoned() -> (Machine, u64) {
    let (mut machine, place) = machine_and_node();
    let mut node = machine.start(1);
    let [bad, good] = ["bad", "good"].map(|name| node.volume(name));
    node.write(bad, 3 * BLOCK, &[31; 4096]).expect("there is room");
    node.write(bad, BELOW * BLOCK + 100, &[32; 9000]).expect("there is room");
    node.write(good, 0, &[33; 4096]).expect("there is room");
    node.write(bad, 3 * BLOCK, &[34; 8192]).expect("there is room");
    let request = node.begin(0, bad, VolumeOperation::Discard { range: 8 * BLOCK..10 * BLOCK, durable: false });
    node.end(request).expect("there is room");
    machine.power_cut(node);
    machine.media[0].flip_bit(place, 77);
    (machine, place)
}

/// What the volumes hold when every answered change has been performed.
fn all_is_there(node: &mut Node) {
    let [bad, good] = ["bad", "good"].map(|name| node.volume(name));
    assert_eq!(node.read(good, 0..8192).expect("readable"), [[33; 4096], [2; 4096]].concat());
    assert_eq!(
        node.read(bad, 2 * BLOCK..6 * BLOCK).expect("readable"),
        [[1; 4096], [34; 4096], [34; 4096], [1; 4096]].concat()
    );
    assert_eq!(node.read(bad, 8 * BLOCK..11 * BLOCK).expect("readable"), [[0; 4096], [0; 4096], [1; 4096]].concat());
    let edge = node.read(bad, BELOW * BLOCK..(BELOW + 3) * BLOCK).expect("readable");
    assert!(edge[..100].iter().chain(&edge[9100..]).all(|&byte| byte == 1));
    assert!(edge[100..9100].iter().all(|&byte| byte == 32));
    node.check();
}

#[test]
fn a_record_that_cannot_be_performed_takes_its_volume_offline_and_no_other() {
    let (mut machine, place) = poisoned();
    let mut node = machine.start(1);
    assert_eq!(node.failure(), None);
    let found = offline(&mut node, "bad").expect("it is offline");
    assert_eq!((found.lane, found.held_records), (0, 3), "the first one was performed");
    assert!(found.why.contains("block 128"), "{}", found.why);
    assert_eq!(offline(&mut node, "good"), None);
    is_refused(&mut node);
    let good = node.volume("good");
    assert_eq!(node.read(good, 0..4096).expect("readable"), [33; 4096]);
    // The log knows nothing of it any more: the object record does.
    for _ in 0..2 {
        (0..3).for_each(|_| node.checkpoint());
        machine.power_cut(node);
        node = machine.start(1);
        assert_eq!(offline(&mut node, "bad"), Some(found.clone()));
        is_refused(&mut node);
    }
    let AdminReply::Report(report) = node.admin(AdminRequest::PoolCheck) else { panic!("a report") };
    assert!(report.offline[0].volume == "bad" && report.offline[0].why.contains(&found.lsn.to_string()));
    let AdminReply::Refused { message, .. } = online(&mut node, false) else { panic!("the node is damaged still") };
    assert!(message.contains("3 record(s) are held"), "{message}");
    is_refused(&mut node);
    machine.media[0].flip_bit(place, 77);
    let reply = online(&mut node, false);
    assert!(matches!(&reply, AdminReply::Volumes { volumes } if volumes[0].offline.is_none()), "{reply:?}");
    all_is_there(&mut node);
    machine.power_cut(node);
    let mut node = machine.start(1);
    all_is_there(&mut node);
    assert!(matches!(online(&mut node, false), AdminReply::Refused { .. }), "it is online");
}

#[test]
fn a_fault_that_passes_before_the_consistency_point_costs_nothing() {
    let (mut machine, place) = poisoned();
    let mut node = machine.boot(1);
    (0..40).for_each(|_| node.turn());
    machine.power_cut(node);
    machine.media[0].flip_bit(place, 77);
    let mut node = machine.start(1);
    all_is_there(&mut node);
}

/// An error of a device that passes is none of a volume: nobody would have to act.
#[test]
fn a_read_error_that_passes_keeps_nobody_offline() {
    for skipped in 0..14 {
        let (machine, place) = poisoned();
        machine.media[0].flip_bit(place, 77);
        let mut node = machine.boot(1);
        machine.media[0].arm(Fault::ReadError, skipped);
        node.run_until("it opens or fails", |node| node.engines[0].is_serving() || node.failure().is_some());
        machine.media[0].repair();
        // Without its superblocks, lists and tables no pool is opened.
        if node.failure().is_none() {
            assert_eq!(offline(&mut node, "bad"), None, "after {skipped} reads");
            all_is_there(&mut node);
        }
    }
}

#[test]
fn held_records_are_dropped_only_when_somebody_says_so() {
    let (mut machine, place) = poisoned();
    let mut node = machine.start(1);
    let reply = online(&mut node, true);
    assert!(matches!(&reply, AdminReply::Volumes { volumes } if volumes[0].offline.is_none()), "{reply:?}");
    let bad = node.volume("bad");
    assert_eq!(node.read(bad, 3 * BLOCK..5 * BLOCK).expect("readable"), [[31; 4096], [1; 4096]].concat());
    node.write(bad, 0, &[40; 4096]).expect("it is online");
    machine.media[0].flip_bit(place, 77);
    (0..3).for_each(|_| node.checkpoint());
    node.check();
    machine.power_cut(node);
    let mut node = machine.start(1);
    assert_eq!(offline(&mut node, "bad"), None);
    assert_eq!(node.read(bad, 0..4096).expect("readable"), [40; 4096]);
}

#[test]
fn a_volume_that_is_offline_can_be_deleted() {
    for is_logged in [false, true] {
        let (mut machine, place) = poisoned();
        let mut node = machine.start(1);
        assert_eq!(node.admin(AdminRequest::VolumeDelete { name: "bad".to_owned() }), AdminReply::Done);
        if is_logged {
            machine.power_cut(node);
            node = machine.start(1);
        }
        machine.media[0].flip_bit(place, 77);
        assert!(node.engines[0].volume("bad").is_none());
        (0..3).for_each(|_| node.checkpoint());
        node.check();
    }
}

/// A crash at every turn of a retry: what was performed stays performed, what was not stays held.
#[test]
fn a_retry_that_is_interrupted_goes_on_where_a_consistency_point_has_it() {
    let (mut turns, mut was_over) = (1, false);
    while !was_over {
        let (mut machine, place) = poisoned();
        let mut node = machine.start(1);
        machine.media[0].flip_bit(place, 77);
        let (reply, replies) = crossbeam_channel::bounded(1);
        let request = AdminRequest::VolumeOnline { name: "bad".to_owned(), accept_loss: false };
        node.engines[0].call(AdminCall { request, reply });
        (0..turns).for_each(|_| node.turn());
        was_over = replies.try_recv().is_ok();
        machine.power_cut(node);
        let mut node = machine.start(1);
        assert_eq!(node.failure(), None);
        if offline(&mut node, "bad").is_some() {
            assert!(!was_over, "what was answered stays");
            online(&mut node, false);
        }
        all_is_there(&mut node);
        turns += 7;
    }
}

/// Whoever stops the node, or wants the pool, does not wait for what is held; nothing of it is lost.
#[test]
fn a_stop_interrupts_a_retry() {
    let mut refused = 0;
    for turns in 0..20 {
        let (mut machine, place) = poisoned();
        let mut node = machine.start(1);
        machine.media[0].flip_bit(place, 77);
        let (reply, replies) = crossbeam_channel::bounded(1);
        let request = AdminRequest::VolumeOnline { name: "bad".to_owned(), accept_loss: false };
        node.engines[0].call(AdminCall { request, reply });
        (0..turns).for_each(|_| node.turn());
        assert_eq!(node.admin(AdminRequest::Stop), AdminReply::Done);
        let is_online = matches!(replies.try_recv().expect("answered by now"), AdminReply::Volumes { .. });
        refused += u32::from(!is_online);
        machine.power_cut(node);
        let mut node = machine.start(1);
        assert_eq!(offline(&mut node, "bad").is_none(), is_online);
        if !is_online {
            online(&mut node, false);
        }
        all_is_there(&mut node);
    }
    assert!(refused > 0, "no stop came in the middle");
}

/// A whole record that asks for what its volume cannot have: nobody can perform it, and what was answered before and after it is not lost.
#[test]
fn a_record_beyond_the_end_of_its_volume_is_held() {
    let (mut machine, _) = machine_and_node();
    let mut node = machine.start(1);
    let [bad, good] = ["bad", "good"].map(|name| node.volume(name));
    node.write(bad, 0, &[41; 4096]).expect("there is room");
    node.write(good, 0, &[42; 4096]).expect("there is room");
    machine.power_cut(node);
    let mut image = machine.logs[0].image();
    let is_wanted = |place: &usize| image[*place..].starts_with(b"TWLR") && image[place + 128..].starts_with(&[41; 64]);
    let place = (4096..image.len()).step_by(128).find(is_wanted).expect("the record of the first write");
    let lsn = u64::from_le_bytes(image[place + 24..place + 32].try_into().expect("8 bytes"));
    image[place + 48..place + 56].copy_from_slice(&(64 * MIB).to_le_bytes());
    let sum = crate::base::checksum(lsn, &image[place..place + 120]);
    image[place + 120..place + 128].copy_from_slice(&sum.to_le_bytes());
    machine.logs[0].restore(&image);
    let mut node = machine.start(1);
    let found = offline(&mut node, "bad").expect("it is offline");
    assert_eq!((found.lsn, found.held_records, found.held_bytes), (lsn, 1, 4096 + 128));
    let good = node.volume("good");
    assert_eq!(node.read(good, 0..4096).expect("readable"), [42; 4096]);
    let AdminReply::Refused { message, .. } = online(&mut node, false) else { panic!("it cannot be performed") };
    assert!(message.contains(&lsn.to_string()), "{message}");
    node.check();
}

/// A whole record of a volume that is offline already, which no program writes: it is held behind the others.
#[test]
fn what_two_recoveries_hold_is_performed_in_order() {
    let (mut machine, place) = poisoned();
    let mut node = machine.start(1);
    let (bad, good) = (node.volume("bad"), node.volume("good"));
    node.write(good, 3 * BLOCK, &[43; 4096]).expect("there is room");
    machine.power_cut(node);
    let mut image = machine.logs[0].image();
    let is_wanted = |place: &usize| image[*place..].starts_with(b"TWLR") && image[place + 128..].starts_with(&[43; 64]);
    let record = (4096..image.len()).step_by(128).find(is_wanted).expect("the record of the write");
    let lsn = u64::from_le_bytes(image[record + 24..record + 32].try_into().expect("8 bytes"));
    image[record + 40..record + 48].copy_from_slice(&bad.0.to_le_bytes());
    let sum = crate::base::checksum(lsn, &image[record..record + 120]);
    image[record + 120..record + 128].copy_from_slice(&sum.to_le_bytes());
    machine.logs[0].restore(&image);
    let mut node = machine.start(1);
    let found = offline(&mut node, "bad").expect("it is offline");
    assert!(found.held_records == 4 && found.lsn < lsn, "{found:?}");
    machine.media[0].flip_bit(place, 77);
    assert!(matches!(online(&mut node, false), AdminReply::Volumes { .. }));
    assert_eq!(node.read(bad, 3 * BLOCK..5 * BLOCK).expect("readable"), [[43; 4096], [34; 4096]].concat());
    assert_eq!(node.read(good, 3 * BLOCK..4 * BLOCK).expect("readable"), [2; 4096]);
    node.check();
}

/// Every reactor refuses, whichever has the volume; and as many records as the log takes are held.
#[test]
fn a_log_full_of_records_is_held_and_performed() {
    let (mut machine, place) = machine_and_node();
    let mut node = machine.start(1);
    let bad = node.volume("bad");
    let mut value = 0;
    for round in 0..200_u64 {
        value = u8::try_from(round % 251).expect("small");
        node.write(bad, BELOW * BLOCK + 7, &[value; 5000]).expect("there is room");
        if node.engines[0].coordinator().expect("reactor 0").phase() != "idle" {
            break;
        }
    }
    machine.power_cut(node);
    machine.media[0].flip_bit(place, 77);
    let mut node = machine.start(2);
    let found = offline(&mut node, "bad").expect("it is offline");
    assert!(found.held_records > 100 && found.held_bytes == found.held_records * (128 + 5120), "{found:?}");
    let bad = node.volume("bad");
    for reactor in 0..2 {
        let request = node.begin(reactor, bad, VolumeOperation::Read(0..4096));
        assert!(matches!(node.end(request), Err(VolumeError::Offline(_))));
    }
    machine.media[0].flip_bit(place, 77);
    assert!(matches!(online(&mut node, false), AdminReply::Volumes { .. }));
    assert_eq!(node.read(bad, BELOW * BLOCK + 7..BELOW * BLOCK + 5007).expect("readable"), [value; 5000]);
    node.check();
}
