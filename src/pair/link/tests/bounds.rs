//! Every queue at its bound, and acknowledgements, of which the newest counts.

use super::*;
use crate::{
    base::LaneIndex,
    pair::{
        interconnect::{self, Interconnect},
        way::LinkWay,
        wire::PAYLOAD_BYTES_MAX,
    },
};

fn ack(lane: u16, durable: u64) -> Ack {
    let durable = Lsn(durable);
    Ack { pool: POOLS[0], lane: LaneIndex(lane), epoch: EPOCH, durable, expected: durable }
}

fn unsent(node: &Node) -> usize {
    let open = node.link.channels.iter().filter(|channel| channel.is_open());
    open.map(|channel| node.net.unsent_bytes(channel.connection)).max().unwrap_or(0)
}

fn send_batch(node: &mut Node, start: u64) -> Result<u64, NoRoom> {
    let payload = Arc::new(vec![1; PAYLOAD_BYTES_MAX / 128 * 128]);
    let end = start + payload.len() as u64;
    let message = Message::MirrorWrite { lane: LaneIndex(0), start: Lsn(start), end: Lsn(end) };
    let part = PayloadPart::Shared(&payload, 0..payload.len());
    node.link.send(&mut node.net, (POOLS[0], EPOCH), &message, &[part])?;
    Ok(end)
}

#[test]
fn a_partner_that_takes_nothing_slows_the_sender_down_and_lives() {
    let mut pair = Pair::up(30, 1);
    pair.nodes[1].takes = 0;
    let (mut start, mut refused) = (0, 0);
    let end = pair.world.now() + Duration::from_secs(5);
    while pair.world.now() < end {
        for _ in 0..3 {
            match send_batch(&mut pair.nodes[0], start) {
                Ok(next) => start = next,
                Err(NoRoom) => refused += 1,
            }
        }
        (0..50).for_each(|lane| pair.nodes[0].link.acknowledge(ack(lane % 16, u64::from(lane) * 128)));
        let bound = UNSENT_BYTES_MAX + crate::pair::wire::FRAME_BYTES_MAX;
        assert!(unsent(&pair.nodes[0]) <= bound + UNSENT_BYTES_MAX, "acknowledgements and heartbeats have a bound");
        pair.turn();
    }
    assert!(refused > 100 && start > UNSENT_BYTES_MAX as u64);
    assert!(pair.nodes.iter().all(|node| node.open_paths() == 1), "it is slow, not dead");
    assert!(pair.nodes[1].told.iter().all(|told| !matches!(told, Told::Frame { .. })));
    // It goes on, each frame once and in order.
    pair.nodes[1].takes = usize::MAX;
    pair.until("all is taken", |pair| {
        let frames = pair.nodes[1].told.iter().filter(|told| matches!(told, Told::Frame { .. }));
        frames.count() as u64 * (PAYLOAD_BYTES_MAX / 128 * 128) as u64 == start
    });
    let starts = pair.nodes[1].told.iter().filter_map(|told| match told {
        Told::Frame { message: Message::MirrorWrite { start, .. }, .. } => Some(*start),
        _ => None,
    });
    assert!(starts.is_sorted());
    pair.can_talk();
}

#[test]
fn the_newest_acknowledgement_of_a_lane_is_told_and_repeated_when_a_path_is_lost() {
    let mut pair = Pair::up(31, 2);
    pair.nodes.iter_mut().for_each(|node| node.told.clear());
    for durable in 1..=1000 {
        pair.nodes[1].link.acknowledge(ack(3, durable * 128));
    }
    let told = |node: &Node| {
        let acks = node.told.iter().filter_map(|told| match told {
            Told::Event(Event::Acknowledged(ack)) => Some(ack.durable.0 / 128),
            _ => None,
        });
        acks.collect::<Vec<_>>()
    };
    pair.until("it is told", |pair| !told(&pair.nodes[0]).is_empty());
    assert_eq!(told(&pair.nodes[0]), [1000], "the later makes the earlier superfluous");
    pair.paths[0].break_connections();
    pair.until("it is told again", |pair| told(&pair.nodes[0]).len() == 2);
    assert_eq!(told(&pair.nodes[0]), [1000, 1000]);
    pair.until_open(2);
    pair.paths.iter().for_each(SimPath::break_connections);
    pair.until("a new session", |pair| pair.nodes[0].link.session() == Some(2));
    pair.until_open(2);
    pair.can_talk();
    assert_eq!(told(&pair.nodes[0]).len(), 2, "a new session begins with new positions");
}

#[test]
fn acknowledgements_of_every_lane_travel_at_once() {
    let mut pair = Pair::up(32, 1);
    for pool in 1..=8_u128 {
        for lane in 0..16 {
            pair.nodes[1].link.acknowledge(Ack { pool: PoolId(pool), ..ack(lane, 128) });
        }
    }
    let acks = |node: &Node| {
        let is_ack = |told: &&Told| matches!(told, Told::Event(Event::Acknowledged(_)));
        node.told.iter().filter(is_ack).count()
    };
    pair.until("each is told", |pair| acks(&pair.nodes[0]) == 128);
}

#[test]
fn a_turn_takes_a_bounded_number_of_frames() {
    let mut pair = Pair::up(33, 1);
    pair.nodes[1].takes = 0;
    for number in 0..2000 {
        pair.nodes[0].send_word(0, number).expect("there is room");
    }
    pair.run(Duration::from_millis(300));
    let node = &mut pair.nodes[1];
    node.told.clear();
    node.takes = usize::MAX;
    node.turn();
    let first = node.told.len();
    assert!((1..=FRAMES_PER_TURN).contains(&first), "{first}");
    pair.until("all are taken", |pair| pair.nodes[1].told.len() == 2000);
    let numbers: Vec<u64> = pair.nodes[1]
        .told
        .iter()
        .map(|told| match told {
            Told::Frame { message, .. } => number_of(message),
            Told::Event(event) => panic!("{event:?}"),
        })
        .collect();
    assert!(numbers.is_sorted() && numbers[0] == 0);
}

/// Batches wait for room on a path, and it is lost: over the other one they would come before those that were lost with it.
#[test]
fn what_waits_for_a_path_that_is_lost_goes_over_no_other() {
    for lost in 0..2 {
        let mut pair = Pair::up(37, 2);
        pair.nodes[1].takes = 0;
        let Pair { world, nodes: [a, mut b], paths } = pair;
        let mut way = LinkWay::new(a.net, a.link);
        let batch = Arc::new(vec![1; PAYLOAD_BYTES_MAX / 128 * 128]);
        let length = batch.len() as u64;
        let mut sent = 0;
        while way.has_room() {
            let (pool, lane, epoch, bytes) = (POOLS[0], LaneIndex(0), EPOCH, Arc::clone(&batch));
            let (start, end) = (Lsn(sent), Lsn(sent + length));
            way.send(interconnect::Message::Write { pool, lane, epoch, start, end, bytes });
            sent += length;
        }
        let mut losses = 0;
        for turn in 0..2000 {
            if turn == 100 {
                paths[lost].break_connections();
                b.takes = usize::MAX;
            }
            a.agenda.turn(Wait::UpTo(Duration::from_millis(1)));
            way.poll(world.now());
            while let Some(event) = way.next_event() {
                losses += u64::from(event == interconnect::Event::PathLost);
            }
            way.flush();
            b.turn();
        }
        assert_eq!(losses, 1);
        let starts = b.told.iter().filter_map(|told| match told {
            Told::Frame { message: Message::MirrorWrite { start, .. }, .. } => Some(start.0),
            _ => None,
        });
        let starts: Vec<u64> = starts.collect();
        assert_eq!(starts, (0..starts.len() as u64).map(|index| index * length).collect::<Vec<_>>(), "path {lost}");
    }
}
