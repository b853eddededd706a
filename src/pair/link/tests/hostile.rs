//! Strangers, and partners that stop in the middle: a healthy session goes on, and nothing of them is left.

use super::{puppet::Puppet, *};

const SEED: u64 = 20;

/// Those who are not open.
fn greeting_count(pair: &Pair) -> usize {
    pair.nodes[1].link.channels.iter().filter(|channel| !channel.is_open()).count()
}

fn has_lost_nothing(pair: &Pair) {
    let is_loss = |event: &Event| matches!(event, Event::PathDown { .. } | Event::Down { .. } | Event::Refused { .. });
    for node in &pair.nodes {
        assert!(!node.saw(is_loss), "{:?}", node.told);
    }
}

#[test]
fn strangers_that_say_nothing_push_nobody_out() {
    let mut pair = Pair::up(SEED, 2);
    let mut strangers = Vec::new();
    for _ in 0..200 {
        strangers.push(pair.nodes[1].listener.connect(0));
        pair.turn();
        assert!(greeting_count(&pair) <= HANDSHAKES_MAX);
    }
    assert!(pair.nodes[1].link.status().stranger_count >= 190);
    pair.can_talk();
    has_lost_nothing(&pair);
    // A path that breaks meanwhile comes back, although strangers go on.
    pair.paths[1].break_connections();
    pair.until("the path comes back", |pair| {
        strangers.push(pair.nodes[1].listener.connect(0));
        pair.run(Duration::from_micros(200));
        let reopened = |told: &&Told| matches!(told, Told::Event(Event::PathUp { path: 1 }));
        pair.nodes[1].told.iter().filter(reopened).count() == 2
    });
    pair.can_talk();
    pair.run(Duration::from_secs(6));
    assert_eq!(greeting_count(&pair), 0, "their time is over");
}

/// A partner that is slow to say its welcome has proved who it is: strangers do not push it out.
#[test]
fn who_has_proved_the_key_is_not_pushed_out_by_strangers() {
    let mut pair = Pair::without_a(SEED);
    let mut slow = Puppet::connect(&pair, config(0, 1));
    slow.greet(&mut pair, 1);
    slow.prove(&mut pair);
    assert_eq!(slow.next(&mut pair), Some(Message::Welcome));
    let strangers: Vec<_> = (0..100)
        .map(|_| {
            let stranger = pair.nodes[1].listener.connect(0);
            pair.turn();
            stranger
        })
        .collect();
    assert!(greeting_count(&pair) <= HANDSHAKES_MAX);
    slow.send(&Message::Welcome);
    pair.until("the session is up", |pair| pair.nodes[1].link.is_up());
    drop(strangers);
}

/// Moves a puppet up to step `steps` of its life, and leaves it there.
fn stalled(pair: &mut Pair, steps: usize) -> Puppet {
    let mut puppet = Puppet::connect(pair, config(0, 1));
    if steps == 1 {
        puppet.send_bytes(b"TWLF");
    }
    if steps == 2 {
        let hello = Message::Hello(Box::new(puppet.hello(9, 1)));
        let frame = puppet.frame(&hello, &[]);
        puppet.send_bytes(&frame[..frame.len() - 1]);
    }
    if steps >= 3 {
        puppet.greet(pair, 9);
    }
    if steps >= 4 {
        puppet.prove(pair);
    }
    puppet
}

#[test]
fn a_peer_that_stalls_in_any_state_is_given_up() {
    for steps in 0..5 {
        let mut pair = Pair::up(SEED + 1, 1);
        let puppet = stalled(&mut pair, steps);
        pair.run(Duration::from_secs(2));
        assert_eq!(greeting_count(&pair), 1, "step {steps}: it has {:?}", Timing::default().handshake);
        pair.run(Duration::from_secs(4));
        assert_eq!(greeting_count(&pair), 0, "step {steps}");
        pair.can_talk();
        has_lost_nothing(&pair);
        drop(puppet);
    }
}

/// A partner that is open and then says no more is lost by silence.
#[test]
fn a_partner_that_stalls_when_open_is_lost() {
    let mut pair = Pair::without_a(SEED + 2);
    let mut puppet = Puppet::connect(&pair, config(0, 1));
    puppet.enter(&mut pair, 1);
    pair.until("it is up", |pair| pair.nodes[1].link.is_up());
    let begun = pair.world.now();
    pair.until("it is lost", |pair| !pair.nodes[1].link.is_up());
    assert!(pair.world.now().since(begun) <= Timing::default().silence * 2);
    let silent = |event: &Event| matches!(event, Event::Down { loss: Loss::Silent(_) });
    assert!(pair.nodes[1].saw(silent));
}

/// Everything that a partner says from its first byte on, and where each frame ends.
fn whole_life(pair: &mut Pair) -> (Vec<u8>, Vec<usize>) {
    let mut puppet = Puppet::connect(pair, config(0, 1));
    let mut ends = Vec::new();
    puppet.greet(pair, 1);
    ends.push(puppet.sent.len());
    puppet.prove(pair);
    ends.push(puppet.sent.len());
    assert_eq!(puppet.next(pair), Some(Message::Welcome));
    let records = vec![5; 1024];
    let write = Message::MirrorWrite { lane: crate::base::LaneIndex(0), start: Lsn(0), end: Lsn(1024) };
    for (message, payload) in [
        (Message::Welcome, &[][..]),
        (word(1), &[]),
        (write, &records),
        (Message::Acknowledgement, &[]),
        (word(2), &[]),
    ] {
        let frame = puppet.frame(&message, payload);
        puppet.send_bytes(&frame);
        ends.push(puppet.sent.len());
    }
    (puppet.sent.clone(), ends)
}

#[test]
fn a_peer_that_closes_in_the_middle_of_any_frame_is_heard_up_to_there() {
    let (life, ends) = whole_life(&mut Pair::without_a(SEED + 3));
    let frames_of = |bytes: usize| ends.iter().filter(|&&end| end <= bytes).count();
    // The same seed and the same bytes: the node's challenge is the same, and so are the proofs.
    let step = 7;
    for cut in (0..life.len()).step_by(step).chain(ends.iter().copied()) {
        let mut pair = Pair::without_a(SEED + 3);
        let mut puppet = Puppet::connect(&pair, config(0, 1));
        // As in the life that was recorded: what answers the node is said after it has spoken.
        let mut said = 0;
        for (index, &end) in ends.iter().enumerate() {
            let until = end.min(cut);
            puppet.send_bytes(&life[said..until]);
            said = until;
            if until < end {
                break;
            }
            if index < 2 {
                assert!(puppet.next(&mut pair).is_some());
                puppet.bind_after(index);
            }
        }
        puppet.end();
        pair.until("it is gone", |pair| !pair.nodes[1].link.is_up() && greeting_count(pair) == 0);
        let told = |told: &&Told| matches!(told, Told::Frame { .. });
        let frames = pair.nodes[1].told.iter().filter(told).count();
        let expected = match frames_of(cut) {
            0..=3 => 0,
            4 => 1,
            5 | 6 => 2,
            _ => 3,
        };
        assert_eq!(frames, expected, "cut at {cut} of {}", life.len());
    }
}

#[test]
fn every_flipped_bit_of_a_life_ends_it_before_the_frame_is_used() {
    let (life, ends) = whole_life(&mut Pair::without_a(SEED + 3));
    let mut prng = Prng::new(1);
    for _ in 0..300 {
        let mut pair = Pair::without_a(SEED + 3);
        let mut puppet = Puppet::connect(&pair, config(0, 1));
        let bit = prng.below(life.len() as u64 * 8);
        let (place, bit) = (usize::try_from(bit / 8).expect("small"), bit % 8);
        let mut damaged = life.clone();
        damaged[place] ^= 1 << bit;
        let mut said = 0;
        for (index, &end) in ends.iter().enumerate() {
            puppet.send_bytes(&damaged[said..end]);
            said = end;
            if index < 2 && puppet.next(&mut pair).is_some() {
                puppet.bind_after(index);
            }
        }
        pair.run(Duration::from_secs(8));
        let numbers = pair.nodes[1].told.iter().filter_map(|told| match told {
            Told::Frame { message: message @ Message::PoolState(_), .. } => Some(number_of(message)),
            _ => None,
        });
        let bad_frame = ends.iter().filter(|&&end| end <= place).count();
        let before = [3, 6].iter().filter(|&&index| index < bad_frame).count();
        assert_eq!(numbers.collect::<Vec<_>>(), (1..=before as u64).collect::<Vec<_>>(), "bit {bit} of byte {place}");
    }
}

#[test]
fn who_has_not_proved_the_key_ends_nothing() {
    let unproved = [
        Message::PathClosed { path: 0, connection: 1 },
        Message::Refusal(Refusal { reason: RefusalReason::SessionOver, text: "over".to_owned() }),
        Message::Refusal(Refusal { reason: RefusalReason::Stopping, text: "stops".to_owned() }),
        Message::Refusal(Refusal { reason: RefusalReason::Key, text: "no".to_owned() }),
        Message::Heartbeat(Default::default()),
        Message::Welcome,
        Message::Proof([0; 32]),
        word(1),
    ];
    for message in unproved {
        let mut pair = Pair::up(SEED + 4, 2);
        // It knows everything that a hello says, which is no secret.
        let mut puppet = Puppet::connect(&pair, LinkConfig { incarnation: Incarnation(1), ..config(0, 1) });
        puppet.greet(&mut pair, 1);
        puppet.send(&message);
        pair.run(Duration::from_secs(7));
        assert_eq!(pair.nodes.each_ref().map(Node::open_paths), [2, 2], "{message:?}");
        pair.can_talk();
        has_lost_nothing(&pair);
        assert_eq!(pair.nodes[1].refusal(), None, "{message:?}: what a stranger says is no news of the pair");
    }
}

/// Somebody at one of the partner's addresses: the session over the other path goes on.
#[test]
fn an_impostor_at_an_address_of_the_partner_ends_nothing() {
    for reason in [RefusalReason::SessionOver, RefusalReason::Stopping, RefusalReason::Key] {
        let mut pair = Pair::up(SEED + 5, 2);
        let (mut net, listener) = SimNet::open(&pair.nodes[1].agenda);
        pair.paths[1].break_connections();
        pair.paths[1].listen(&listener, 0);
        let puppet = Puppet::connect(&pair, config(1, 2));
        let hello = Message::Hello(Box::new(Hello { role: Role::Listens, ..puppet.hello(0, 0) }));
        let refusal = Message::Refusal(Refusal { reason, text: "go away".to_owned() });
        let mut lies = Vec::new();
        let mut seal = Default::default();
        for message in [&hello, &refusal] {
            Outgoing { pool: PoolId(0), epoch: Epoch(0), acks: &[], message }.write(&mut seal, &[], &mut lies);
        }
        let mut lied = 0;
        let end = pair.world.now() + Duration::from_secs(10);
        while pair.world.now() < end {
            pair.turn();
            net.poll(&mut Vec::new());
            while let Some(accepted) = net.accept() {
                net.send(accepted.connection, &lies);
                lied += 1;
            }
        }
        assert!(lied > 1, "it was connected to");
        let down = |event: &Event| matches!(event, Event::Down { .. });
        assert!(!pair.nodes.iter().any(|node| node.saw(down)), "{reason:?}");
        pair.can_talk();
    }
}

#[test]
fn a_stranger_cannot_fill_the_log() {
    let mut pair = Pair::without_a(SEED + 6);
    for round in 0..100_u64 {
        let mut wrong = config(0, 1);
        if round % 2 == 0 {
            wrong.pair = PairId(77)
        } else {
            wrong.configuration = 77
        }
        let mut puppet = Puppet::connect(&pair, wrong);
        puppet.greet(&mut pair, 1);
        while puppet.next(&mut pair).is_some() {}
    }
    let told = pair.nodes[1].told.len() as u64;
    let seconds = pair.world.now().0 / 1_000_000_000;
    assert!(told <= 2 + seconds, "{told} reports in {seconds} seconds");
    assert!(pair.nodes[1].link.status().refused_count >= 100, "each is counted");
}
