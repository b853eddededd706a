//! In-band authentication: a host written by hand, whose arithmetic is that of the libraries, and whose messages were held against those that Python
//! computes (hmac, hashlib and pow).

use crate::{
    host::{Answer, Bench, DISCOVERY, HOST, Queue, op},
    support::{byte_net::Closed, memory_service::MemoryService},
};
use crossbeam_channel::{Sender, unbounded};
use crypto_bigint::{
    BoxedUint,
    modular::{BoxedMontyForm, BoxedMontyParams},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::time::Duration;
use twinlog::{
    base::HostId,
    serve::nvme_tcp::{
        Host,
        auth::{Calculator, Here, Job, Means, Secret},
    },
};

/// Of 32 bytes, used as it is, and of 48 bytes, transformed by SHA-384.
const SECRET: &str = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
const OTHER: &str = "DHHC-1:02:ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoOEhYaHiImKi4yNjo+QkZKTvGwQfg==:";

/// Ids of hash functions and groups; bits of the groups.
const HASHES: [u8; 3] = [1, 2, 3];
const GROUPS: [(u8, usize); 6] = [(0, 0), (1, 2048), (2, 3072), (3, 4096), (4, 6144), (5, 8192)];

/// The host's exponent and challenge in every test.
const EXPONENT: [u8; 32] = [0x5a; 32];
const CHALLENGE: u8 = 0xc2;
const SEQUENCE: u32 = 0x0102_0304;
const TRANSACTION: u16 = 0x1234;

fn mac<M: Mac + KeyInit>(key: &[u8], text: &[u8]) -> Vec<u8> {
    <M as KeyInit>::new_from_slice(key).expect("any length").chain_update(text).finalize().into_bytes().to_vec()
}

/// HMAC, and the hash of what comes after nothing.
fn hmac(hash: u8, key: &[u8], text: &[u8]) -> Vec<u8> {
    match hash {
        1 => mac::<Hmac<Sha256>>(key, text),
        2 => mac::<Hmac<Sha384>>(key, text),
        _ => mac::<Hmac<Sha512>>(key, text),
    }
}

fn digest(hash: u8, text: &[u8]) -> Vec<u8> {
    match hash {
        1 => Sha256::digest(text).to_vec(),
        2 => Sha384::digest(text).to_vec(),
        _ => Sha512::digest(text).to_vec(),
    }
}

fn hash_bytes(hash: u8) -> usize {
    16 * (usize::from(hash) + 1)
}

/// The key of `name`: the secrets above in plain.
fn key(secret: &str, name: &str) -> Vec<u8> {
    match secret {
        SECRET => (0..32).collect(),
        OTHER => hmac(2, &(100..148).collect::<Vec<u8>>(), &[name.as_bytes(), b"NVMe-over-Fabrics"].concat()),
        _ => unreachable!("one of two"),
    }
}

/// A group's prime.
struct Prime(BoxedUint);

impl Prime {
    /// 2^b - 2^(b-64) + (floor(2^(b-130) e) + x) 2^64 - 1, with e by its series (RFC 7919, appendix A).
    fn of(bits: u32) -> Self {
        let wide = bits + 256;
        // Each term is one of a sum of e with 256 bits to spare.
        let mut term = BoxedUint::one_with_precision(wide) << (bits - 130 + 128);
        let mut sum = term.clone();
        for divisor in 1_u64.. {
            let divisor = BoxedUint::from(divisor).to_nz().expect("not zero");
            term = term.div_rem_vartime(&divisor).0;
            if bool::from(term.is_zero()) {
                break;
            }
            sum += &term;
        }
        let addend: u64 = match bits {
            2048 => 560_316,
            3072 => 2_625_351,
            4096 => 5_736_041,
            6144 => 15_705_020,
            _ => 10_965_728,
        };
        let middle = ((sum >> 128_u32) + addend) << 64_u32;
        let one = BoxedUint::one_with_precision(wide);
        let top = (one.clone() << bits) - (one.clone() << (bits - 64));
        let bytes = (top + middle - one).to_be_bytes();
        Self(BoxedUint::from_be_slice(&bytes[256 / 8..], bits).expect("it fits"))
    }

    fn power(&self, base: &[u8], exponent: &[u8]) -> Vec<u8> {
        let bits = self.0.bits_precision();
        let parameters = BoxedMontyParams::new_vartime(self.0.clone().into_odd().expect("odd"));
        let base = BoxedUint::from_be_slice(base, bits).expect("it fits");
        let exponent = BoxedUint::from_be_slice(exponent, 256).expect("it fits");
        BoxedMontyForm::new(base, &parameters).pow(&exponent).retrieve().to_be_bytes().into_vec()
    }
}

/// What a host knows and wants.
#[derive(Clone, Copy)]
struct Client<'a> {
    secret: &'a str,
    /// What it wants the controller to know.
    controller: Option<&'a str>,
    hash: u8,
    group: (u8, usize),
}

const CLIENT: Client<'static> = Client { secret: SECRET, controller: None, hash: 1, group: (0, 0) };

/// A challenge as the target has made it.
struct Challenged {
    whole: Vec<u8>,
    challenge: Vec<u8>,
    sequence: u32,
    element: Vec<u8>,
}

impl Client<'_> {
    fn negotiate(self) -> Vec<u8> {
        negotiate(&[self.hash], &[self.group.0])
    }

    fn response(
        self,
        key: &[u8],
        challenge: &[u8],
        common: &[u8],
        (sequence, label): (u32, &str),
        names: [&str; 2],
    ) -> Vec<u8> {
        let challenge = match self.group.0 {
            0 => challenge.to_vec(),
            _ => hmac(self.hash, &digest(self.hash, common), challenge),
        };
        let mut text = challenge;
        text.extend(sequence.to_le_bytes());
        text.extend(TRANSACTION.to_le_bytes());
        text.push(0);
        text.extend(label.as_bytes());
        text.extend(names[0].as_bytes());
        text.push(0);
        text.extend(names[1].as_bytes());
        hmac(self.hash, key, &text)
    }

    /// The reply, and the response that the host expects in return.
    fn reply(self, challenged: &Challenged, subsystem: &str) -> (Vec<u8>, Option<Vec<u8>>) {
        let (element, common) = match self.group {
            (0, _) => (Vec::new(), Vec::new()),
            (_, bits) => {
                let prime = Prime::of(u32::try_from(bits).expect("it fits"));
                (prime.power(&[2], &EXPONENT), prime.power(&challenged.element, &EXPONENT))
            }
        };
        let whose = [HOST, subsystem];
        let own = key(self.secret, HOST);
        let response = self.response(&own, &challenged.challenge, &common, (challenged.sequence, "HostHost"), whose);
        let bytes = hash_bytes(self.hash);
        let own_challenge = vec![CHALLENGE; bytes];
        let expected = self.controller.map(|secret| {
            let key = key(secret, subsystem);
            self.response(&key, &own_challenge, &common, (SEQUENCE, "Controller"), [subsystem, HOST])
        });
        let mut message = vec![1, 2, 0, 0];
        message.extend(TRANSACTION.to_le_bytes());
        message.extend([u8::try_from(bytes).expect("it fits"), 0, u8::from(self.controller.is_some()), 0]);
        message.extend(u16::try_from(element.len()).expect("it fits").to_le_bytes());
        message.extend(if self.controller.is_some() { SEQUENCE } else { 0 }.to_le_bytes());
        message.extend(response);
        message.extend(if self.controller.is_some() { own_challenge } else { vec![0; bytes] });
        message.extend(element);
        (message, expected)
    }
}

fn negotiate(hashes: &[u8], groups: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 72];
    bytes[4..6].copy_from_slice(&TRANSACTION.to_le_bytes());
    (bytes[7], bytes[8]) = (1, 1);
    (bytes[10], bytes[11]) = (u8::try_from(hashes.len()).expect("few"), u8::try_from(groups.len()).expect("few"));
    bytes[12..][..hashes.len()].copy_from_slice(hashes);
    bytes[42..][..groups.len()].copy_from_slice(groups);
    bytes
}

fn host(secret: Option<&str>, controller: Option<&str>) -> Host {
    let parse = |text: &str| Secret::parse(text).expect("a secret");
    Host { secret: secret.map(parse), controller_secret: controller.map(parse), ..Host::named(HOST) }
}

fn bench(secret: Option<&str>, controller: Option<&str>) -> Bench {
    bench_with(secret, controller, Box::new(Here))
}

fn bench_with(secret: Option<&str>, controller: Option<&str>, calculator: Box<dyn Calculator>) -> Bench {
    let service = MemoryService::new(1, 4096, &[("unseen", 4096), ("vol", 8 << 20)]);
    let means = Means::new([5; 32], calculator);
    Bench::with_hosts(service, vec![host(secret, controller)], means)
}

impl Bench {
    /// A connected queue. Returns it with the Connect's result.
    #[track_caller]
    fn knock(&mut self, number: u16, controller: u16) -> (Queue, u64) {
        let subsystem = self.target.subsystem().to_owned();
        let mut queue = self.open(number == 1);
        let answer = self.connect(&mut queue, number, controller, &subsystem, 0);
        assert_eq!(answer.status, 0);
        (queue, answer.result)
    }

    fn say(&mut self, queue: &mut Queue, message: &[u8]) -> Answer {
        let mut entry = queue.entry(op::FABRICS);
        (entry[4], entry[41], entry[42], entry[43]) = (5, 1, 1, 0xe9);
        entry[44..48].copy_from_slice(&u32::try_from(message.len()).expect("short").to_le_bytes());
        self.run(queue, entry, Some(message), message.len().is_multiple_of(2))
    }

    fn fetch_entry(queue: &mut Queue, length: u32) -> [u8; 64] {
        let mut entry = queue.entry(op::FABRICS);
        (entry[4], entry[41], entry[42], entry[43]) = (6, 1, 1, 0xe9);
        entry[44..48].copy_from_slice(&length.to_le_bytes());
        entry[32..36].copy_from_slice(&length.to_le_bytes());
        entry
    }

    fn fetch(&mut self, queue: &mut Queue) -> Answer {
        let entry = Self::fetch_entry(queue, 4096);
        self.run(queue, entry, None, false)
    }

    /// Negotiates, and fetches the challenge.
    #[track_caller]
    fn challenge(&mut self, queue: &mut Queue, client: Client<'_>) -> Challenged {
        assert_eq!(self.say(queue, &client.negotiate()).status, 0);
        let data = self.fetch(queue).data;
        let bytes = hash_bytes(client.hash);
        let element_bytes = client.group.1 / 8;
        assert_eq!(data.len(), 4096);
        assert_eq!(
            (data[0], data[1], data[6], data[8], data[9]),
            (1, 1, u8::try_from(bytes).expect("short"), client.hash, client.group.0)
        );
        assert_eq!(u16::from_le_bytes([data[4], data[5]]), TRANSACTION);
        assert_eq!(usize::from(u16::from_le_bytes([data[10], data[11]])), element_bytes);
        Challenged {
            whole: data[..16 + bytes + element_bytes].to_vec(),
            challenge: data[16..][..bytes].to_vec(),
            sequence: u32::from_le_bytes(data[12..16].try_into().expect("four")),
            element: data[16 + bytes..][..element_bytes].to_vec(),
        }
    }

    /// The whole way of a host that knows everything. Returns the messages that the target and the host compute.
    #[track_caller]
    fn authenticate(&mut self, queue: &mut Queue, client: Client<'_>) -> [Vec<u8>; 3] {
        let challenged = self.challenge(queue, client);
        let (reply, expected) = client.reply(&challenged, self.target.subsystem());
        assert_eq!(self.say(queue, &reply).status, 0);
        let data = self.fetch(queue).data;
        let bytes = hash_bytes(client.hash);
        assert_eq!((data[0], data[1], data[8]), (1, 3, u8::from(expected.is_some())), "it succeeds");
        if let Some(expected) = &expected {
            assert_eq!(data[16..][..bytes], expected[..]);
            assert_eq!(self.property(queue, 8, false).status, 0x191, "the host has not said whether it believes that");
            assert_eq!(self.say(queue, &success2()).status, 0);
        }
        let success = data[..16 + if expected.is_some() { bytes } else { 0 }].to_vec();
        [challenged.whole, reply, success]
    }

    /// Fetches a failure for this reason, after which the connection ends.
    #[track_caller]
    fn fails(&mut self, queue: &mut Queue, explanation: u8) {
        let data = self.fetch(queue).data;
        let [low, high] = TRANSACTION.to_le_bytes();
        assert_eq!(data[..8], [0, 0xf1, 0, 0, low, high, 1, explanation]);
        assert_eq!(self.closed(queue), Some(Closed::Gracefully));
    }
}

fn success2() -> Vec<u8> {
    let mut message = vec![1, 4, 0, 0];
    message.extend(TRANSACTION.to_le_bytes());
    message.resize(16, 0);
    message
}

#[test]
fn nothing_is_performed_before_the_host_has_authenticated_itself() {
    let mut bench = bench(Some(SECRET), None);
    let (mut admin, result) = bench.knock(0, 0xffff);
    assert_eq!(result >> 16, 2, "it has to authenticate itself");
    let controller = u16::try_from(result & 0xffff).expect("it fits");
    assert_eq!(bench.property(&mut admin, 0, true).status, 0x191);
    assert_eq!(bench.set_property(&mut admin, 0x14, 0x0046_0001).status, 0x191);
    assert_eq!(bench.ask(&mut admin, op::IDENTIFY, &[1], 0, 4096).status, 0x191);
    assert_eq!(bench.ask(&mut admin, op::ALIVE, &[], 0, 0).status, 0x191);
    bench.authenticate(&mut admin, CLIENT);
    assert_eq!(bench.set_property(&mut admin, 0x14, 0x0046_0001).status, 0);
    let (mut io, result) = bench.knock(1, controller);
    assert_eq!(result >> 16, 2, "each queue has to");
    let read = io.blocks(op::READ, 0, 1, 0);
    assert_eq!(bench.run(&mut io, read, None, false).status, 0x191);
    let write = io.blocks(op::WRITE, 0, 1, 0);
    assert_eq!(bench.run(&mut io, write, Some(&[7; 4096]), true).status, 0x191);
    bench.authenticate(&mut io, CLIENT);
    let read = io.blocks(op::READ, 0, 1, 0);
    assert_eq!(bench.run(&mut io, read, None, false).data, vec![0; 4096], "nothing was written");
}

#[test]
fn messages_are_those_of_another_implementation() {
    let expected = include_str!("authentication.kat");
    let mut expected = expected.lines().filter(|line| !line.starts_with('#'));
    for group in GROUPS {
        for hash in HASHES {
            let mut bench = bench(Some(OTHER), Some(SECRET));
            let (mut admin, _) = bench.knock(0, 0xffff);
            let controller = Some(SECRET);
            let messages = bench.authenticate(&mut admin, Client { secret: OTHER, controller, hash, group });
            let sum = |bytes: &Vec<u8>| Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            let sums: Vec<String> = messages.iter().map(sum).collect();
            assert_eq!(Some(format!("{} {hash} {}", group.1, sums.join(" ")).as_str()), expected.next());
            assert_eq!(bench.property(&mut admin, 8, false).status, 0);
        }
    }
    assert_eq!(expected.next(), None);
}

#[test]
fn a_host_without_the_secret_is_refused() {
    for group in [GROUPS[0], GROUPS[1]] {
        let mut bench = bench(Some(SECRET), Some(OTHER));
        let (mut admin, _) = bench.knock(0, 0xffff);
        let wrong = Client { secret: OTHER, controller: Some(SECRET), group, ..CLIENT };
        let challenged = bench.challenge(&mut admin, wrong);
        let (reply, _) = wrong.reply(&challenged, bench.target.subsystem());
        assert_eq!(bench.say(&mut admin, &reply).status, 0);
        bench.fails(&mut admin, 1);
        assert!(bench.target.hosts().is_empty(), "its controller has ended");
    }
}

#[test]
fn what_was_said_before_proves_nothing() {
    let mut bench = bench(Some(SECRET), None);
    let subsystem = bench.target.subsystem().to_owned();
    let (mut first, _) = bench.knock(0, 0xffff);
    let challenged = bench.challenge(&mut first, CLIENT);
    let (reply, _) = CLIENT.reply(&challenged, &subsystem);
    assert_eq!(bench.say(&mut first, &reply).status, 0);
    assert_eq!(bench.fetch(&mut first).data[1], 3);
    let (mut second, _) = bench.knock(0, 0xffff);
    let other = bench.challenge(&mut second, CLIENT);
    assert_ne!(other.challenge, challenged.challenge);
    assert_eq!(bench.say(&mut second, &reply).status, 0);
    bench.fails(&mut second, 1);
    // The target's own challenge is no question to ask it.
    let (mut third, _) = bench.knock(0, 0xffff);
    let challenged = bench.challenge(&mut third, CLIENT);
    let (mut reply, _) = CLIENT.reply(&challenged, &subsystem);
    (reply[8], reply[12]) = (1, 1);
    reply[48..80].copy_from_slice(&challenged.challenge);
    assert_eq!(bench.say(&mut third, &reply).status, 0);
    bench.fails(&mut third, 6);
}

#[test]
fn elements_that_tell_the_common_secret_are_refused() {
    let client = Client { group: GROUPS[1], ..CLIENT };
    let prime = Prime::of(2048).0;
    let bytes = |number: BoxedUint| number.to_be_bytes().into_vec();
    let (zero, one) = (BoxedUint::zero_with_precision(2048), BoxedUint::one_with_precision(2048));
    for bad in [bytes(zero), bytes(one.clone()), bytes(prime.clone() - one), bytes(prime), vec![2], Vec::new()] {
        let mut bench = bench(Some(SECRET), None);
        let (mut admin, _) = bench.knock(0, 0xffff);
        let challenged = bench.challenge(&mut admin, client);
        let (mut reply, _) = client.reply(&challenged, bench.target.subsystem());
        reply.truncate(80);
        reply[10..12].copy_from_slice(&u16::try_from(bad.len()).expect("it fits").to_le_bytes());
        reply.extend(bad);
        assert_eq!(bench.say(&mut admin, &reply).status, 0);
        bench.fails(&mut admin, 6);
    }
}

#[test]
fn what_is_offered_decides() {
    for (message, explanation) in [
        (negotiate(&[9], &[0]), 4),
        (negotiate(&[], &[0]), 4),
        (negotiate(&[1], &[6]), 5),
        (negotiate(&[1], &[0]).into_iter().enumerate().map(|(at, byte)| if at == 6 { 1 } else { byte }).collect(), 3),
        (negotiate(&[1], &[0]).into_iter().enumerate().map(|(at, byte)| if at == 8 { 2 } else { byte }).collect(), 2),
        (negotiate(&[1], &[0])[..71].to_vec(), 6),
        (success2(), 7),
        (
            CLIENT
                .reply(&Challenged { whole: Vec::new(), challenge: vec![0; 32], sequence: 1, element: Vec::new() }, "x")
                .0,
            7,
        ),
    ] {
        let mut bench = bench(Some(SECRET), None);
        let (mut admin, _) = bench.knock(0, 0xffff);
        assert_eq!(bench.say(&mut admin, &message).status, 0);
        bench.fails(&mut admin, explanation);
    }
    let mut bench = bench(Some(SECRET), None);
    let (mut admin, _) = bench.knock(0, 0xffff);
    assert_eq!(bench.say(&mut admin, &negotiate(&[1, 2, 3], &[0, 5, 3, 1])).status, 0);
    let data = bench.fetch(&mut admin).data;
    assert_eq!((data[8], data[9]), (3, 1), "the best hash function, the smallest group that is one");
}

#[test]
fn truncated_replies_are_refused() {
    let client = Client { group: GROUPS[1], ..CLIENT };
    for length in [0, 5, 6, 15, 16, 47, 79, 80, 335] {
        let mut bench = bench(Some(SECRET), None);
        let (mut admin, _) = bench.knock(0, 0xffff);
        let challenged = bench.challenge(&mut admin, client);
        let (reply, _) = client.reply(&challenged, bench.target.subsystem());
        assert_eq!(reply.len(), 336);
        if length == 0 {
            assert_eq!(bench.say(&mut admin, &[]).status, 2, "no command brings nothing");
            continue;
        }
        assert_eq!(bench.say(&mut admin, &reply[..length]).status, 0);
        bench.fails(&mut admin, 6);
    }
}

#[test]
fn a_host_that_doubts_the_controller_ends_the_connection() {
    let mut bench = bench(Some(SECRET), Some(OTHER));
    let (mut admin, _) = bench.knock(0, 0xffff);
    let client = Client { controller: Some(OTHER), ..CLIENT };
    let challenged = bench.challenge(&mut admin, client);
    let (reply, _) = client.reply(&challenged, bench.target.subsystem());
    assert_eq!(bench.say(&mut admin, &reply).status, 0);
    assert_eq!(bench.fetch(&mut admin).data[1], 3);
    let [low, high] = TRANSACTION.to_le_bytes();
    assert_eq!(bench.say(&mut admin, &[0, 0xf0, 0, 0, low, high, 1, 1]).status, 0);
    assert_eq!(bench.closed(&admin), Some(Closed::Gracefully));
}

#[test]
fn a_controller_without_a_secret_cannot_prove_itself() {
    let mut bench = bench(Some(SECRET), None);
    let (mut admin, _) = bench.knock(0, 0xffff);
    let client = Client { controller: Some(OTHER), ..CLIENT };
    let challenged = bench.challenge(&mut admin, client);
    let (reply, _) = client.reply(&challenged, bench.target.subsystem());
    assert_eq!(bench.say(&mut admin, &reply).status, 0);
    bench.fails(&mut admin, 1);
}

#[test]
fn a_host_authenticates_again_while_it_works() {
    let mut bench = bench(Some(SECRET), Some(OTHER));
    let (mut admin, _) = bench.knock(0, 0xffff);
    bench.authenticate(&mut admin, CLIENT);
    assert_eq!(bench.set_property(&mut admin, 0x14, 0x0046_0001).status, 0);
    bench.authenticate(&mut admin, Client { hash: 3, ..CLIENT });
    let challenged = bench.challenge(&mut admin, CLIENT);
    assert_eq!(bench.ask(&mut admin, op::ALIVE, &[], 0, 0).status, 0, "it goes on meanwhile");
    let (mut reply, _) = CLIENT.reply(&challenged, bench.target.subsystem());
    reply[16] ^= 1;
    assert_eq!(bench.say(&mut admin, &reply).status, 0);
    bench.fails(&mut admin, 1);
}

/// Keeps jobs until it is told to run them.
#[derive(Debug)]
struct Slow(Sender<Job>);

impl Calculator for Slow {
    fn start(&self, job: Job) -> bool {
        self.0.send(job).is_ok()
    }
}

#[test]
fn powers_are_waited_for_and_nothing_else_is() {
    let (sender, jobs) = unbounded();
    let mut bench = bench_with(Some(SECRET), None, Box::new(Slow(sender)));
    let client = Client { group: GROUPS[1], ..CLIENT };
    let subsystem = bench.target.subsystem().to_owned();
    let (mut admin, _) = bench.knock(0, 0xffff);
    assert_eq!(bench.say(&mut admin, &client.negotiate()).status, 0);
    let mut answers = Vec::new();
    for step in 0..2 {
        let entry = Bench::fetch_entry(&mut admin, 4096);
        let capsule = admin.capsule(entry, None, false);
        bench.net.client_send(admin.connection, &capsule);
        bench.serve(&mut admin);
        assert!(admin.answers.is_empty(), "it waits");
        assert_eq!(bench.fetch(&mut admin).status, 0x0c, "one at a time");
        assert_eq!(bench.property(&mut admin, 0, true).status, 0x191, "others are answered");
        jobs.try_recv().expect("a job").run();
        assert!(jobs.is_empty());
        bench.serve(&mut admin);
        let (_, answer) = admin.answers.pop_first().expect("it is answered");
        if step == 0 {
            let data = &answer.data;
            let challenged = Challenged {
                whole: Vec::new(),
                challenge: data[16..48].to_vec(),
                sequence: u32::from_le_bytes(data[12..16].try_into().expect("four")),
                element: data[48..304].to_vec(),
            };
            assert_eq!(bench.say(&mut admin, &client.reply(&challenged, &subsystem).0).status, 0);
        }
        answers.push(answer.data[1]);
    }
    assert_eq!(answers, [1, 3]);
    assert_eq!(bench.property(&mut admin, 0, true).status, 0);
}

#[test]
fn a_host_that_takes_too_long_is_dropped() {
    let mut bench = bench(Some(SECRET), None);
    let (mut admin, _) = bench.knock(0, 0xffff);
    bench.challenge(&mut admin, CLIENT);
    bench.pass(Duration::from_secs(119));
    assert_eq!(bench.closed(&admin), None);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.closed(&admin), Some(Closed::Aborted));
    let (mut admin, _) = bench.knock(0, 0xffff);
    bench.authenticate(&mut admin, CLIENT);
    bench.pass(Duration::from_secs(1000));
    assert_eq!(bench.closed(&admin), None);
}

#[test]
fn commands_that_fetch_wrongly_are_refused() {
    let mut bench = bench(Some(SECRET), None);
    let (mut admin, _) = bench.knock(0, 0xffff);
    assert_eq!(bench.fetch(&mut admin).status, 0x0c, "there is nothing");
    assert_eq!(bench.say(&mut admin, &CLIENT.negotiate()).status, 0);
    for (place, byte) in [(41, 0), (42, 2), (43, 0), (46, 1)] {
        let mut entry = Bench::fetch_entry(&mut admin, 4096);
        entry[place] = byte;
        assert_eq!(bench.run(&mut admin, entry, None, false).status, 2, "{place}");
    }
    let mut entry = Bench::fetch_entry(&mut admin, 4096);
    entry[33] = 1;
    assert_eq!(bench.run(&mut admin, entry, None, false).status, 0x0f, "two lengths");
    let entry = Bench::fetch_entry(&mut admin, 16);
    assert_eq!(bench.run(&mut admin, entry, None, false).status, 2, "it does not fit");
}

#[test]
fn hosts_without_a_secret_and_discovery_ask_for_nothing() {
    let mut bench = bench(None, None);
    let (mut admin, result) = bench.knock(0, 0xffff);
    assert_eq!(result >> 16, 0);
    assert_ne!(bench.say(&mut admin, &CLIENT.negotiate()).status, 0);
    assert_eq!(bench.property(&mut admin, 0, true).status, 0);
    let mut bench = self::bench(Some(SECRET), None);
    let mut queue = bench.open(false);
    let answer = bench.connect(&mut queue, 0, 0xffff, DISCOVERY, 0);
    assert_eq!((answer.status, answer.result >> 16), (0, 0));
}

#[test]
fn a_host_that_has_an_identifier_has_it_alone() {
    const OTHER_NAME: &str = "nqn.2014-08.other";
    let mut bench = bench(None, None);
    let [own, other] = [1, 2].map(|byte| HostId::new([byte; 16]));
    let subsystem = bench.target.subsystem().to_owned();
    let connect = |bench: &mut Bench, host, host_id, subsystem: &str| {
        let mut queue = bench.open(false);
        bench.host_id = host_id;
        let answer = bench.connect_as(&mut queue, (0, 31), 0xffff, (subsystem, host), 0);
        (queue, (answer.status, answer.result))
    };
    let refused = (0x184, 1 << 16);
    let hosts = |id| vec![Host { id, ..Host::named(HOST) }, Host::named(OTHER_NAME)];
    bench.target.replace_hosts(hosts(own));
    assert_eq!(connect(&mut bench, HOST, 2, &subsystem).1, refused, "it has another one");
    assert_eq!(connect(&mut bench, OTHER_NAME, 1, &subsystem).1, refused, "it is another host's");
    assert_eq!(connect(&mut bench, OTHER_NAME, 1, DISCOVERY).1.0, 0, "who looks around has no use for one");
    let (first, (status, _)) = connect(&mut bench, HOST, 1, &subsystem);
    let (second, (other_status, _)) = connect(&mut bench, OTHER_NAME, 2, &subsystem);
    assert_eq!((status, other_status), (0, 0));
    bench.target.replace_hosts(hosts(other));
    bench.pass(Duration::from_secs(1));
    bench.pass(Duration::from_secs(1));
    assert_eq!((bench.closed(&first), bench.closed(&second)), (Some(Closed::Aborted), Some(Closed::Aborted)));
}

#[test]
fn a_host_that_is_not_admitted_any_more_is_gone_within_a_second() {
    let second = Duration::from_secs(1);
    let mut bench = bench(Some(SECRET), None);
    let (mut admin, result) = bench.knock(0, 0xffff);
    bench.authenticate(&mut admin, CLIENT);
    assert_eq!(bench.set_property(&mut admin, 0x14, 0x0046_0001).status, 0);
    let (mut io, _) = bench.knock(1, u16::try_from(result & 0xffff).expect("it fits"));
    bench.authenticate(&mut io, CLIENT);
    bench.target.replace_hosts(vec![host(Some(SECRET), None), Host::named("nqn.2014-08.other")]);
    bench.pass(second);
    assert_eq!((bench.closed(&admin), bench.closed(&io)), (None, None), "nothing has changed for it");
    bench.target.replace_hosts(vec![host(Some(OTHER), None)]);
    bench.pass(second);
    bench.pass(second);
    assert_eq!((bench.closed(&admin), bench.closed(&io)), (Some(Closed::Aborted), Some(Closed::Aborted)));
    assert!(bench.target.hosts().is_empty());
    let (mut admin, _) = bench.knock(0, 0xffff);
    bench.authenticate(&mut admin, Client { secret: OTHER, ..CLIENT });
    bench.target.replace_hosts(vec![Host::named("nqn.2014-08.other")]);
    bench.pass(second);
    assert_eq!(bench.closed(&admin), Some(Closed::Aborted));
    let mut queue = bench.open(false);
    let subsystem = bench.target.subsystem().to_owned();
    assert_eq!(bench.connect(&mut queue, 0, 0xffff, &subsystem, 0).status, 0x184);
}
