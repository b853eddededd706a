//! Nodes that are no pair: each is told why, by name, and nothing else of the node is moved.

use super::{puppet::Puppet, *};
use crate::pair::wire::VERSION;

/// A pair in which node `node` is configured as `change` says.
fn differing(node: usize, change: impl FnOnce(&mut LinkConfig)) -> Pair {
    let mut configs = [config(0, 2), config(1, 2)];
    change(&mut configs[node]);
    Pair::with(7, configs)
}

type Change = fn(&mut LinkConfig);

const DIFFERENCES: [(RefusalReason, Change); 8] = [
    (RefusalReason::Key, |config| config.key = PairKey::new([8; 32])),
    (RefusalReason::Pair, |config| config.pair = PairId(6)),
    (RefusalReason::Name, |config| config.partner = "aa".to_owned()),
    (RefusalReason::Configuration, |config| config.configuration = 7),
    (RefusalReason::Pools, |config| config.pools.truncate(1)),
    (RefusalReason::Pools, |config| config.pools[0].pool = PoolId(9)),
    (RefusalReason::Portions, |config| config.pools[1].ring_bytes *= 2),
    (RefusalReason::Portions, |config| config.pools[0].lane_count = 3),
];

#[test]
fn whatever_differs_is_named_at_both_nodes() {
    for (reason, change) in DIFFERENCES {
        for node in 0..2 {
            // The node with the greater name listens, whomever it looks for.
            if node == 0 && reason == RefusalReason::Name {
                continue;
            }
            let mut pair = differing(node, change);
            pair.until("both know why", |pair| pair.nodes.iter().all(|node| node.refusal() == Some(reason)));
            pair.run(Duration::from_secs(30));
            for node in &pair.nodes {
                assert!(!node.link.is_up() && node.told.len() <= 2, "told once: {:?}", node.told);
                assert!(node.told.iter().all(|told| matches!(told, Told::Event(Event::Refused { .. }))));
            }
            let attempts = pair.nodes[0].link.status().refused_count;
            assert!((10..=60).contains(&attempts), "two paths, tried again at the longest interval: {attempts}");
            // Somebody mends it.
            pair.restart(node, LinkConfig { incarnation: Incarnation(50), ..config(node, 2) });
            pair.until_open(2);
            assert!(pair.nodes.iter().all(|node| node.refusal().is_none()), "a session shows that all is well");
            pair.can_talk();
        }
    }
}

/// A later version than ours.
const OTHER_VERSION: u8 = VERSION + 1;

/// Makes a frame one of another version: header and checksums are as in every version.
fn of_other_version(frame: &mut [u8]) {
    frame[4] = OTHER_VERSION;
    let sum = crate::base::checksum::checksum(0, &frame[..56]);
    frame[56..64].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn another_version_is_refused_by_name() {
    let mut pair = Pair::without_a(8);
    let mut puppet = Puppet::connect(&pair, config(0, 1));
    let hello = Message::Hello(Box::new(puppet.hello(1, 1)));
    let mut frame = puppet.frame(&hello, &[]);
    of_other_version(&mut frame);
    puppet.send_bytes(&frame);
    assert!(matches!(puppet.next(&mut pair), Some(Message::Hello(_))));
    let Some(Message::Refusal(refusal)) = puppet.next(&mut pair) else { panic!("it says why") };
    assert_eq!(refusal.reason, RefusalReason::Version);
    assert!(refusal.text.contains(&format!("version {OTHER_VERSION}")), "{refusal}");
    assert_eq!(puppet.next(&mut pair), None);
}

#[test]
fn a_listener_of_another_version_is_named_where_it_was_connected_to() {
    let mut pair = Pair::new(9, 1);
    // In the place of node b: something that says hello in another version.
    let (mut net, listener) = SimNet::open(&pair.nodes[1].agenda);
    pair.paths[0].listen(&listener, 0);
    let hello = {
        let puppet = Puppet::connect(&pair, config(1, 1));
        Hello { role: Role::Listens, ..puppet.hello(0, 0) }
    };
    let mut frame = Vec::new();
    let message = Message::Hello(Box::new(hello));
    let outgoing = Outgoing { pool: PoolId(0), epoch: Epoch(0), acks: &[], message: &message };
    outgoing.write(&mut Default::default(), &[], &mut frame);
    of_other_version(&mut frame);
    pair.until("node a knows why", |pair| {
        net.poll(&mut Vec::new());
        while let Some(accepted) = net.accept() {
            net.send(accepted.connection, &frame);
        }
        pair.nodes[0].refusal() == Some(RefusalReason::Version)
    });
    assert!(!pair.nodes[0].link.is_up());
}

#[test]
fn a_proof_of_another_connection_proves_nothing() {
    let mut pair = Pair::without_a(10);
    let mut first = Puppet::connect(&pair, config(0, 1));
    first.enter(&mut pair, 1);
    pair.until("the session is up", |pair| pair.nodes[1].link.is_up());
    let recorded = first.sent.clone();
    first.end();
    pair.until("the session has ended", |pair| !pair.nodes[1].link.is_up());
    // The same bytes again, as somebody on the way would record and repeat them.
    let mut again = Puppet::connect(&pair, config(0, 1));
    again.send_bytes(&recorded);
    assert!(matches!(again.next(&mut pair), Some(Message::Hello(_))));
    assert!(matches!(again.next(&mut pair), Some(Message::Proof(_))));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.nodes[1].refusal(), Some(RefusalReason::Key));
    assert!(!pair.nodes[1].link.is_up());
}

#[test]
fn a_node_that_hears_itself_refuses() {
    let mut pair = Pair::without_a(11);
    let mut mirror = Puppet::connect(&pair, config(1, 1));
    // Whatever the node says comes back.
    let hello = Hello { role: Role::Listens, ..mirror.hello(0, 0) };
    mirror.send(&Message::Hello(Box::new(hello)));
    assert!(matches!(mirror.next(&mut pair), Some(Message::Hello(_))));
    let Some(Message::Refusal(refusal)) = mirror.next(&mut pair) else { panic!("it says why") };
    assert_eq!(refusal.reason, RefusalReason::Name);
}

#[test]
fn a_session_that_has_ended_is_refused_and_a_new_one_taken() {
    let mut pair = Pair::without_a(12);
    let mut first = Puppet::connect(&pair, config(0, 1));
    first.enter(&mut pair, 4);
    pair.until("the session is up", |pair| pair.nodes[1].link.session() == Some(4));
    first.end();
    pair.until("the session has ended", |pair| !pair.nodes[1].link.is_up());
    let mut late = Puppet::connect(&pair, config(0, 1));
    late.greet(&mut pair, 4);
    late.prove(&mut pair);
    let Some(Message::Refusal(refusal)) = late.next(&mut pair) else { panic!("it says why") };
    assert_eq!(refusal.reason, RefusalReason::SessionOver);
    assert_eq!(pair.nodes[1].refusal(), None, "no fault, and nothing that people must know");
    let mut next = Puppet::connect(&pair, config(0, 1));
    next.enter(&mut pair, 5);
    pair.until("the next session is up", |pair| pair.nodes[1].link.session() == Some(5));
}
