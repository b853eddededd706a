//! A target that follows the rules, and then one that lies in every field.

use twinlog_chap::{Challenge, EXPONENT_BYTES, Group, Hash, Prover, Role, Secret};

use super::{
    exchange::{Exchange, Fault, Proof},
    keys::Keys,
};
use crate::nvme::{
    controller::{DISCOVERY, Parties},
    goal::{Host, parse_goal},
};

const SUBSYSTEM: &str = "nqn.2014-08.org.nvmexpress:uuid:1";
/// What the host draws, and with it its transaction.
const DRAWN: u8 = 0x5a;
const TRANSACTION: u16 = 0x5a5a;
const SEQUENCE: u32 = 0x5a5a_5a5a;
/// The target's exponent, challenge and sequence number.
const EXPONENT: [u8; EXPONENT_BYTES] = [7; EXPONENT_BYTES];
const CHALLENGE: [u8; 64] = [8; 64];
const TARGET_SEQUENCE: u32 = 9;

fn host() -> Host {
    parse_goal("h/?hostnqn=nqn.2014-08.host").expect("a good URI").host(1)
}

fn keys(is_mutual: bool) -> Keys {
    let controller_secret = is_mutual.then(|| Secret::new([2; 32]));
    let (hashes, groups) = (Hash::ALL.to_vec(), Group::ALL.to_vec());
    Keys { secret: Secret::new([1; 32]), controller_secret, hashes, groups, draw }
}

fn draw(bytes: &mut [u8]) -> std::io::Result<()> {
    bytes.fill(DRAWN);
    Ok(())
}

/// A challenge, byte by byte.
fn challenge(hash: Hash, group: Group) -> Vec<u8> {
    let element = if group == Group::Null { Vec::new() } else { group.element(&EXPONENT) };
    let bytes = u8::try_from(hash.bytes()).expect("short");
    let element_bytes = u16::try_from(element.len()).expect("short").to_le_bytes();
    let mut message = vec![1, 1, 0, 0, DRAWN, DRAWN, bytes, 0, hash.id(), group.id()];
    message.extend(element_bytes);
    message.extend(TARGET_SEQUENCE.to_le_bytes());
    [&message, &CHALLENGE[..hash.bytes()], &element].concat()
}

/// A success, with a response if there is one.
fn success(hash: Hash, response: Option<&[u8]>) -> Vec<u8> {
    let bytes = u8::try_from(hash.bytes()).expect("short");
    let mut message = vec![1, 3, 0, 0, DRAWN, DRAWN, bytes, 0, u8::from(response.is_some())];
    message.resize(16, 0);
    message.extend(response.unwrap_or_default());
    message
}

/// The target's answer to a reply that it looks at as a target does.
fn answer(hash: Hash, group: Group, reply: &[u8], is_mutual: bool) -> Vec<u8> {
    let (host, bytes) = (host(), hash.bytes());
    let (response, rest) = reply[16..].split_at(bytes);
    let (own, element) = rest.split_at(bytes);
    let common = if group == Group::Null { Vec::new() } else { group.common(element, &EXPONENT) };
    let base = Challenge {
        hash,
        group,
        transaction: TRANSACTION,
        value: &CHALLENGE[..bytes],
        sequence: TARGET_SEQUENCE,
        common: &common,
    };
    let (name, examiner) = (host.name.as_str(), SUBSYSTEM);
    let prover = Prover { role: Role::Host, name, secret: &Secret::new([1; 32]), examiner };
    assert!(base.is_answered(prover, response), "{hash:?} {group:?}");
    assert_eq!((reply[8] == 1, reply[12..16] == SEQUENCE.to_le_bytes()), (is_mutual, is_mutual));
    let asked = Challenge { value: own, sequence: SEQUENCE, ..base };
    let prover = Prover { role: Role::Controller, name: SUBSYSTEM, secret: &Secret::new([2; 32]), examiner: name };
    success(hash, is_mutual.then(|| asked.response(prover)).as_deref())
}

/// Has a host see what a target says.
fn with<T>(keys: &Keys, look: impl FnOnce(&Exchange<'_>) -> T) -> T {
    let host = host();
    let parties = Parties { host: &host, subsystem: SUBSYSTEM, keys: Some(keys) };
    look(&Exchange::new(parties, keys).expect("there is enough of these bytes"))
}

#[test]
fn both_ends_believe_each_other_with_every_function_and_group() {
    for (hash, group) in Hash::ALL.into_iter().flat_map(|hash| Group::ALL.map(|group| (hash, group))) {
        for is_mutual in [false, true] {
            with(&keys(is_mutual), |exchange| {
                let proof = exchange.prove(&challenge(hash, group)).expect("a challenge");
                let answer = answer(hash, group, &proof.reply, is_mutual);
                let last = exchange.conclude(&proof, &answer);
                let expected = is_mutual.then(|| [&[1, 4, 0, 0, DRAWN, DRAWN][..], &[0; 10]].concat());
                assert_eq!(last, Ok(expected), "{hash:?} {group:?}");
            });
        }
    }
}

#[test]
fn a_discovery_service_is_not_asked_to_prove_anything() {
    let (host, keys) = (host(), keys(true));
    let parties = Parties { host: &host, subsystem: DISCOVERY, keys: Some(&keys) };
    let exchange = Exchange::new(parties, &keys).expect("there is enough of these bytes");
    let proof = exchange.prove(&challenge(Hash::Sha256, Group::Null)).expect("a challenge");
    assert_eq!((proof.reply[8], &proof.reply[12..16]), (0, &[0; 4][..]));
    assert_eq!(exchange.conclude(&proof, &success(Hash::Sha256, None)), Ok(None));
    assert!(exchange.conclude(&proof, &success(Hash::Sha256, Some(&[1; 32]))).is_err(), "a response to no challenge");
}

#[test]
fn a_negotiation_offers_what_it_should() {
    with(&keys(false).offering(None, Some(Group::Ffdhe8192)), |exchange| {
        let message = exchange.negotiate();
        assert_eq!(message[..15], [0, 0, 0, 0, DRAWN, DRAWN, 0, 1, 1, 0, 3, 1, 1, 2, 3]);
        assert_eq!((message[42], message.len(), message.iter().filter(|byte| **byte != 0).count()), (5, 72, 10));
    });
}

/// The fault of a challenge in which some bytes are others.
fn fault_of(changes: &[(usize, u8)], hash: Hash, group: Group) -> Fault {
    let mut message = challenge(hash, group);
    changes.iter().for_each(|&(at, byte)| message[at] = byte);
    with(&keys(false).offering(Some(Hash::Sha256), Some(group)), |exchange| {
        exchange.prove(&message).expect_err("it lies")
    })
}

#[test]
fn a_challenge_that_lies_is_refused_with_its_reason() {
    /// Bytes that are others, the explanation, words.
    type Lie = (&'static [(usize, u8)], u8, &'static str);
    let null = |changes: &[(usize, u8)]| fault_of(changes, Hash::Sha256, Group::Null);
    let lies: [Lie; 12] = [
        (&[(0, 0)], 7, "message 0x01 of type 0 instead of 0x01 of type 1"),
        (&[(1, 3)], 7, "message 0x03"),
        (&[(4, 0)], 6, "transaction 23040, in the middle of transaction 23130"),
        (&[(6, 31)], 6, "a challenge of 31 bytes for sha256"),
        (&[(6, 48)], 6, "a challenge of 48 bytes"),
        (&[(8, 0)], 4, "hash function 0"),
        (&[(8, 4)], 4, "hash function 4"),
        (&[(8, 2), (6, 48)], 6, "cut short"),
        (&[(9, 6)], 5, "group 6"),
        (&[(9, 1)], 5, "ffdhe2048, which was not offered"),
        (&[(10, 1)], 6, "cut short after 48 bytes"),
        (&[(11, 0xff)], 6, "cut short"),
    ];
    for (changes, explanation, words) in lies {
        let Fault::Wrong(said, what) = null(changes) else { panic!("{words}") };
        assert!(said == explanation && what.contains(words), "{said} {what}, not {words}");
    }
    let Fault::Wrong(4, what) = fault_of(&[], Hash::Sha512, Group::Null) else { panic!("not offered") };
    assert_eq!(what, "it has chosen sha512, which was not offered");
    let good = challenge(Hash::Sha256, Group::Ffdhe2048);
    with(&keys(false), |exchange| {
        for length in 0..good.len() {
            assert!(matches!(exchange.prove(&good[..length]), Err(Fault::Wrong(6, _))), "{length}");
        }
        assert!(exchange.prove(&[&good[..], &[9; 99]].concat()).is_ok(), "filled up");
    });
}

#[test]
fn an_element_that_tells_the_result_is_refused() {
    let good = challenge(Hash::Sha256, Group::Ffdhe2048);
    // 0, 1, 2, and more than the prime; what lies at its bound is tried where elements are made.
    for (first, last, is_good) in [(0, 0, false), (0, 1, false), (0, 2, true), (0xff, 0xff, false)] {
        let mut message = good.clone();
        message[48..].fill(first);
        *message.last_mut().expect("long") = last;
        let result = with(&keys(false), |exchange| exchange.prove(&message).map(|_| ()));
        match result {
            Err(Fault::Wrong(6, what)) if !is_good => assert!(what.contains("no element of group ffdhe2048"), "{what}"),
            other => assert!(is_good && other.is_ok(), "{other:?}"),
        }
    }
}

/// The fault of a success that answers a reply with SHA-256 and no group.
fn judged(is_mutual: bool, answer: impl FnOnce(&Proof) -> Vec<u8>) -> Result<Option<Vec<u8>>, Fault> {
    with(&keys(is_mutual), |exchange| {
        let proof = exchange.prove(&challenge(Hash::Sha256, Group::Null)).expect("a challenge");
        exchange.conclude(&proof, &answer(&proof))
    })
}

#[test]
fn a_controller_without_its_secret_is_no_controller() {
    let right = |proof: &Proof| answer(Hash::Sha256, Group::Null, &proof.reply, true);
    assert!(judged(true, right).is_ok());
    for at in [16, 47] {
        let wrong = |proof: &Proof| {
            let mut message = right(proof);
            message[at] ^= 1;
            message
        };
        assert_eq!(judged(true, wrong), Err(Fault::Impostor));
    }
    assert_eq!(judged(true, |_| success(Hash::Sha256, None)), Err(Fault::Impostor), "it says nothing");
    // The host's own response, sent back.
    assert_eq!(judged(true, |proof| success(Hash::Sha256, Some(&proof.reply[16..48]))), Err(Fault::Impostor));
    let Err(Fault::Wrong(6, what)) = judged(false, |_| success(Hash::Sha256, Some(&[1; 32]))) else { panic!("wrong") };
    assert_eq!(what, "a response to no challenge");
}

#[test]
fn a_success_that_lies_is_refused_with_its_reason() {
    for (at, byte, explanation, words) in [
        (1, 1, 7, "message 0x01 of type 1 instead of 0x03"),
        (5, 0, 6, "in the middle of transaction"),
        (6, 48, 6, "a success with 48 bytes for sha256"),
        (8, 2, 6, "a response that is 2"),
    ] {
        let lie = |_: &Proof| {
            let mut message = success(Hash::Sha256, Some(&[1; 32]));
            message[at] = byte;
            message
        };
        let Err(Fault::Wrong(said, what)) = judged(true, lie) else { panic!("{words}") };
        assert!(said == explanation && what.contains(words), "{said} {what}");
    }
    for length in 0..48 {
        let cut = |_: &Proof| success(Hash::Sha256, Some(&[1; 32]))[..length].to_vec();
        assert!(matches!(judged(true, cut), Err(Fault::Wrong(6, _))), "{length}");
    }
}

#[test]
fn a_failure_says_what_the_target_means() {
    let failure = |explanation| vec![0, 0xf1, 0, 0, DRAWN, DRAWN, 1, explanation];
    let early = |explanation| {
        with(&keys(false), |exchange| exchange.prove(&failure(explanation)).expect_err("a failure").to_string())
    };
    for (explanation, words) in [
        (1, "authentication failed"),
        (2, "no protocol"),
        (3, "a secure channel"),
        (4, "no hash function"),
        (5, "no Diffie-Hellman group"),
        (6, "content"),
        (7, "did not expect"),
        (0, "no reason that is known"),
        (8, "no reason that is known"),
    ] {
        assert!(early(explanation).contains(words), "{explanation}: {}", early(explanation));
    }
    for (is_mutual, words) in [(false, "is not the one that it has for this host's name"), (true, "or it has none for")]
    {
        let fault = judged(is_mutual, |_| failure(1)).expect_err("a failure");
        assert!(matches!(fault, Fault::Refused(_)) && fault.to_string().contains(words), "{fault}");
        assert_eq!(with(&keys(is_mutual), |exchange| exchange.farewell(&fault)), None, "it knows");
    }
    assert!(judged(false, |_| failure(5)).expect_err("a failure").to_string().contains("no Diffie-Hellman group"));
    let cut = with(&keys(false), |exchange| exchange.prove(&failure(1)[..7]).expect_err("cut"));
    assert!(matches!(cut, Fault::Wrong(6, _)));
}

#[test]
fn the_target_is_told_why_the_host_goes() {
    with(&keys(true), |exchange| {
        let wrong = exchange.farewell(&Fault::Wrong(5, String::new()));
        assert_eq!(wrong, Some(vec![0, 0xf0, 0, 0, DRAWN, DRAWN, 1, 5]));
        assert_eq!(exchange.farewell(&Fault::Impostor), Some(vec![0, 0xf0, 0, 0, DRAWN, DRAWN, 1, 1]));
    });
}
