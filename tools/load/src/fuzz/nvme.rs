//! What an NVMe/TCP target says, for fuzzers and tests: valid inputs byte by byte, and the parsers that take any.

use std::{
    cell::RefCell,
    io::{Cursor, Read, Write},
    os::unix::net::UnixStream,
    rc::Rc,
    time::Duration,
};

use twinlog_chap::{Challenge, EXPONENT_BYTES, Group, Hash, Prover, Role, Secret};

use crate::nvme::{
    auth::{exchange::Exchange, keys::Keys},
    controller::{self, Opened, Parties},
    discovery::discover,
    goal::{Goal, Host, parse_goal},
    queue::receive_anything,
};

/// Bytes that one call hands to a socket: what every socket holds.
const SOCKET_BYTES: usize = 32 << 10;
const SUBSYSTEM: &str = "nqn.2014-08.org.nvmexpress:uuid:1";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:2";

/// What the first byte of [`open`] says.
mod mode {
    pub(super) const DISCOVERY: u8 = 1 << 0;
    pub(super) const DIGESTS: u8 = 1 << 1;
    /// The host has a secret.
    pub(super) const SECRET: u8 = 1 << 2;
    /// The controller has to prove itself.
    pub(super) const MUTUAL: u8 = 1 << 3;
}

/// Every byte that the host draws, and every byte of the target's exponent and challenge.
const DRAWN: u8 = 0x5a;
const TARGET_DRAWN: u8 = 7;

/// A target that says the same whatever it hears, over all its connections together.
#[derive(Clone)]
struct Script<'a>(Rc<RefCell<Cursor<&'a [u8]>>>);

impl Read for Script<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        // A little at a time, so that one connection does not take what the next one is to read: units are multiples of this long.
        let most = bytes.len().min(4);
        self.0.borrow_mut().read(&mut bytes[..most])
    }
}

impl Write for Script<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn goal(digests: bool) -> Goal {
    let digest = if digests { "both" } else { "none" };
    let goal = parse_goal(&format!("h/{SUBSYSTEM}?nsid=3&kato=1&digest={digest}&hostnqn={HOST}")).expect("a good URI");
    assert_eq!(goal.keep_alive, Duration::from_secs(1));
    goal
}

/// What this host knows, and draws.
fn keys(is_mutual: bool) -> Keys {
    fn draw(bytes: &mut [u8]) -> std::io::Result<()> {
        bytes.fill(DRAWN);
        Ok(())
    }
    let controller_secret = is_mutual.then(|| Secret::new([2; 32]));
    let (hashes, groups) = (Hash::ALL.to_vec(), vec![Group::Null, Group::Ffdhe2048]);
    Keys { secret: Secret::new([1; 32]), controller_secret, hashes, groups, draw }
}

/// What a target says while a path is opened, or its discovery log is read. The first byte says which, and what the host knows.
#[must_use]
pub fn open(data: &[u8]) -> bool {
    match try_open(data) {
        Ok(()) => true,
        Err(message) => said(&message),
    }
}

fn try_open(data: &[u8]) -> Result<(), String> {
    let Some((mode, script)) = data.split_first() else { return Err("nothing".to_owned()) };
    let script = Script(Rc::new(RefCell::new(Cursor::new(script))));
    let goal = goal(mode & mode::DIGESTS != 0);
    let host: Host = goal.host(1);
    let keys = (mode & mode::SECRET != 0).then(|| keys(mode & mode::MUTUAL != 0));
    if mode & mode::DISCOVERY != 0 {
        let found = discover(script, &host, keys.as_ref()).map_err(|error| error.to_string())?;
        assert!(!found.addresses.is_empty() && found.subsystem.len() <= 223);
        return Ok(());
    }
    let mut dial = || Ok(script.clone());
    let parties = Parties { host: &host, subsystem: SUBSYSTEM, keys: keys.as_ref() };
    let opened = controller::open(&mut dial, &goal, parties, 1);
    let Opened { queues, facts, .. } = opened.map_err(|error| error.to_string())?;
    let geometry = &facts.geometry;
    assert!(queues.len() == 1 && (1..=127).contains(&facts.depth) && geometry.block_bytes.is_power_of_two());
    assert!(geometry.size_bytes <= 1 << 62 && geometry.request_limit_bytes >= geometry.block_bytes);
    Ok(())
}

fn said(message: &str) -> bool {
    assert!(!message.is_empty() && message.len() < 100_000, "a message is for people");
    false
}

/// What a target says to a host that authenticates itself: a byte as [`open`] has it, the length of the challenge in two bytes, the challenge, the success.
#[must_use]
pub fn authentication(data: &[u8]) -> bool {
    let Some((&[mode, low, high], messages)) = data.split_first_chunk::<3>() else { return false };
    let (challenge, success) = messages.split_at(messages.len().min(usize::from(u16::from_le_bytes([low, high]))));
    let (host, keys) = (goal(false).host(1), keys(mode & mode::MUTUAL != 0));
    let parties = Parties { host: &host, subsystem: SUBSYSTEM, keys: Some(&keys) };
    let Ok(exchange) = Exchange::new(parties, &keys) else { return false };
    let proof = match exchange.prove(challenge) {
        Ok(proof) => proof,
        Err(fault) => return said(&fault.to_string()),
    };
    assert!((16 + 64..=16 + 128 + 256).contains(&proof.reply.len()), "no other functions and groups were offered");
    match exchange.conclude(&proof, success) {
        Ok(last) => {
            assert_eq!(last.is_some(), keys.controller_secret.is_some(), "nothing else is believed");
            true
        }
        Err(fault) => said(&fault.to_string()),
    }
}

/// What a target sends to four open commands; an odd first byte: with digests.
#[must_use]
pub fn answers(data: &[u8]) -> bool {
    let Some((mode, units)) = data.split_first() else { return false };
    let Ok((client, mut target)) = UnixStream::pair() else { return false };
    if target.write_all(&units[..units.len().min(SOCKET_BYTES)]).is_err()
        || target.shutdown(std::net::Shutdown::Write).is_err()
    {
        return false;
    }
    receive_anything(client, mode & 1 != 0) > 0
}

/// Valid inputs of [`open`].
pub(super) fn opens() -> Vec<Vec<u8>> {
    use mode::{DIGESTS, DISCOVERY, MUTUAL, SECRET};
    vec![
        [vec![0], path(0, true)].concat(),
        [vec![DIGESTS], path(DIGESTS, true)].concat(),
        [vec![0], path(0, false)].concat(),
        [vec![DISCOVERY], discovery(0)].concat(),
        [vec![SECRET], path(SECRET, false)].concat(),
        [vec![SECRET | MUTUAL | DIGESTS], path(SECRET | MUTUAL | DIGESTS, true)].concat(),
        [vec![DISCOVERY | SECRET], discovery(SECRET)].concat(),
    ]
}

/// Valid inputs of [`authentication`].
pub(super) fn authentications() -> Vec<Vec<u8>> {
    let all = [(Hash::Sha256, Group::Null), (Hash::Sha384, Group::Ffdhe2048), (Hash::Sha512, Group::Null)];
    let seed = |mode: u8, hash: Hash, group: Group| {
        let [challenge, success] = words(mode, hash, group);
        let length = u16::try_from(challenge.len()).expect("short").to_le_bytes();
        [&[mode], &length[..], &challenge, &success].concat()
    };
    all.into_iter().flat_map(|(hash, group)| [0, mode::MUTUAL].map(|mode| seed(mode, hash, group))).collect()
}

/// What a target says to this host that authenticates itself: the challenge and the success.
fn words(mode: u8, hash: Hash, group: Group) -> [Vec<u8>; 2] {
    let exponent = [TARGET_DRAWN; EXPONENT_BYTES];
    let element = if group == Group::Null { Vec::new() } else { group.element(&exponent) };
    let bytes = u8::try_from(hash.bytes()).expect("short");
    let element_bytes = u16::try_from(element.len()).expect("short").to_le_bytes();
    let head = [1, 1, 0, 0, DRAWN, DRAWN, bytes, 0, hash.id(), group.id()];
    let challenge = [&head[..], &element_bytes, &[9, 0, 0, 0], &vec![TARGET_DRAWN; hash.bytes()], &element].concat();
    let common = match group {
        Group::Null => Vec::new(),
        _ => group.common(&element, &[DRAWN; EXPONENT_BYTES]),
    };
    let (is_mutual, value) = (mode & mode::MUTUAL != 0, vec![DRAWN; hash.bytes()]);
    let (transaction, sequence) = (u16::from_le_bytes([DRAWN; 2]), u32::from_le_bytes([DRAWN; 4]));
    let asked = Challenge { hash, group, transaction, value: &value, sequence, common: &common };
    let secret = &Secret::new([2; 32]);
    let response = asked.response(Prover { role: Role::Controller, name: SUBSYSTEM, secret, examiner: HOST });
    let head = [1, 3, 0, 0, DRAWN, DRAWN, bytes, 0, u8::from(is_mutual), 0, 0, 0, 0, 0, 0, 0];
    [challenge, [&head[..], if is_mutual { &response[..] } else { &[] }].concat()]
}

/// Valid inputs of [`answers`].
pub(super) fn answers_seeds() -> Vec<Vec<u8>> {
    let all = |digests: bool| {
        let read = |slot: u16, length: usize| data(digests, 1 << 12 | slot, (0, true), &vec![7; length]);
        let halves = [
            transfer(digests, 7, 0, (1 << 12 | 1, 0, 0, 4096), &[1; 4096]),
            transfer(digests, 7, 4, (1 << 12 | 1, 0, 4096, 4096), &[2; 4096]),
            answer(digests, 1 << 12 | 1, 0, 0),
        ];
        let wanted = transfer(digests, 9, 0, (1 << 12 | 2, 9, 0, 8192), &[]);
        let ends = [answer(digests, 1 << 12 | 2, 0, 0), answer(digests, 1 << 12 | 3, 0, 0)];
        [vec![u8::from(digests)], read(0, 512), halves.concat(), wanted, ends.concat()].concat()
    };
    let refused = [vec![0], answer(false, 1 << 12, 0x4281, 0), answer(false, 1 << 12 | 3, 0x303, 0)].concat();
    let ended = [vec![0, 3, 0, 24, 0, 24, 0, 0, 0, 2, 0], vec![0; 14]].concat();
    vec![all(false), all(true), refused, ended]
}

/// What a target says on one connection: answers to commands in their order.
struct Voice {
    mode: u8,
    script: Vec<u8>,
    next_id: u16,
}

impl Voice {
    fn new(mode: u8) -> Self {
        Self { mode, script: ic_response(mode & mode::DIGESTS != 0), next_id: 0 }
    }

    fn id(&mut self) -> u16 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn answer(&mut self, result: u64) {
        let id = self.id();
        self.script.extend(answer(self.mode & mode::DIGESTS != 0, id, 0, result));
    }

    fn data(&mut self, bytes: &[u8]) {
        let id = self.id();
        self.script.extend(data(self.mode & mode::DIGESTS != 0, id, (0, true), bytes));
    }

    /// Controller 5 is connected to, by a host that has to authenticate itself if it can.
    fn connected(&mut self) {
        let has_to = self.mode & mode::SECRET != 0;
        self.answer(5 | u64::from(has_to) << 17);
        if !has_to {
            return;
        }
        for mut message in words(self.mode, Hash::Sha256, Group::Null) {
            self.answer(0);
            message.resize(4096, 0);
            self.data(&message);
        }
        if self.mode & mode::MUTUAL != 0 {
            self.answer(0);
        }
    }

    /// An admin queue is connected, and its controller enabled.
    fn admin(mode: u8) -> Self {
        let mut admin = Self::new(mode);
        admin.connected();
        [127 | 10 << 24, 0, 1].into_iter().for_each(|result| admin.answer(result));
        admin
    }
}

/// A path to namespace 3, with one I/O queue.
fn path(mode: u8, has_access: bool) -> Vec<u8> {
    let mut controller = vec![0; 4096];
    (controller[76], controller[77]) = (if has_access { 1 << 3 } else { 0 }, 8);
    controller[93] = if has_access { 1 << 3 } else { 0 };
    (controller[348], controller[520], controller[525]) = (2, 0b1100, 1);
    controller[1792..1794].copy_from_slice(&((64_u16 + 8192) / 16).to_le_bytes());
    controller[1796] = 1;
    let mut namespace = vec![0; 4096];
    (namespace[1], namespace[92], namespace[104], namespace[130]) = (1, 2, 7, 12);
    let descriptors = [&[3, 16, 0, 0][..], &[5; 16], &[0; 4076]].concat();
    let log = [&[0; 8][..], &[2, 0], &[0; 6], &group(1, 1), &group(2, 2)].concat();
    let count = 31 << 16 | 31;
    let mut admin = Voice::admin(mode);
    [&controller, &namespace, &descriptors].into_iter().for_each(|page| admin.data(page));
    if has_access {
        admin.answer(0);
        admin.data(&log);
    }
    admin.answer(count);
    let mut queue = Voice::new(mode);
    queue.connected();
    [admin.script, queue.script].concat()
}

/// A group of the access log, without its list of namespaces.
fn group(id: u8, access: u8) -> [u8; 32] {
    let mut group = [0; 32];
    (group[0], group[16]) = (id, access);
    group
}

/// A discovery log with the service itself and a subsystem at two addresses.
fn discovery(mode: u8) -> Vec<u8> {
    let entry = |kind: u8, address: &str| {
        let mut entry = vec![0; 1024];
        (entry[0], entry[1], entry[2]) = (3, 1, kind);
        entry[32..64].fill(b' ');
        entry[32..36].copy_from_slice(b"4420");
        entry[256..256 + SUBSYSTEM.len()].copy_from_slice(SUBSYSTEM.as_bytes());
        entry[512..512 + address.len()].copy_from_slice(address.as_bytes());
        entry
    };
    let mut head = vec![0; 1024];
    (head[0], head[8]) = (1, 3);
    let mut admin = Voice::admin(mode);
    let entries = [head, entry(3, "127.0.0.1"), entry(2, "127.0.0.1"), entry(2, "127.0.0.2")];
    entries.iter().for_each(|entry| admin.data(entry));
    admin.script
}

/// An ICResp: data at any multiple of four bytes, at most 1 MiB at a time.
fn ic_response(digests: bool) -> Vec<u8> {
    let mut unit = vec![0; 128];
    (unit[0], unit[2], unit[4], unit[14]) = (1, 128, 128, 16);
    unit[11] = if digests { 3 } else { 0 };
    unit
}

/// A unit of this kind: its header after the first eight bytes, and its data.
fn unit(digests: bool, kind: u8, flags: u8, header: &[u8], data: &[u8]) -> Vec<u8> {
    let around = if digests { 4 } else { 0 };
    let head_bytes = 8 + header.len();
    let (flags, offset) = match (digests, data.is_empty()) {
        (true, true) => (flags | 1, 0),
        (true, false) => (flags | 3, head_bytes + 4),
        (false, true) => (flags, 0),
        (false, false) => (flags, head_bytes),
    };
    let tail = if data.is_empty() { 0 } else { data.len() + around };
    let length = u32::try_from(head_bytes + around + tail).expect("short");
    let byte = |number: usize| u8::try_from(number).expect("short");
    let mut unit = [&[kind, flags, byte(head_bytes), byte(offset)][..], &length.to_le_bytes(), header].concat();
    if digests {
        unit.extend(crc32c::crc32c(&unit).to_le_bytes());
    }
    unit.extend(data);
    if digests && !data.is_empty() {
        unit.extend(crc32c::crc32c(data).to_le_bytes());
    }
    unit
}

/// An answer to command `id`.
fn answer(digests: bool, id: u16, status: u16, result: u64) -> Vec<u8> {
    let parts = [&result.to_le_bytes()[..], &[0; 4], &id.to_le_bytes(), &(status << 1).to_le_bytes()];
    unit(digests, 5, 0, &parts.concat(), &[])
}

/// A C2HData with all of command `id`'s data from `offset`; with `true` it is the last, and a success.
fn data(digests: bool, id: u16, (offset, success): (u32, bool), bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short");
    transfer(digests, 7, if success { 12 } else { 0 }, (id, 0, offset, length), bytes)
}

/// A C2HData or R2T.
fn transfer(digests: bool, kind: u8, flags: u8, about: (u16, u16, u32, u32), bytes: &[u8]) -> Vec<u8> {
    let (id, tag, offset, length) = about;
    let parts = [&id.to_le_bytes()[..], &tag.to_le_bytes(), &offset.to_le_bytes(), &length.to_le_bytes(), &[0; 4]];
    unit(digests, kind, flags, &parts.concat(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_valid_is_understood_and_what_is_cut_off_is_not() {
        for seed in opens() {
            assert!(open(&seed), "mode {}", seed[0]);
            assert!((0..seed.len()).step_by(61).all(|length| !open(&seed[..length])), "mode {}", seed[0]);
        }
        let [all, digests, refused, ended] = &answers_seeds()[..] else { panic!("four") };
        assert!(answers(all) && answers(digests) && answers(refused) && !answers(ended));
    }

    #[test]
    fn who_authenticates_is_understood_and_who_breaks_off_is_not() {
        for seed in authentications() {
            assert!(authentication(&seed), "mode {}", seed[0]);
            assert!((0..seed.len()).all(|length| !authentication(&seed[..length])), "mode {}", seed[0]);
        }
    }

    /// What a host says that has this mode, to a target that has that one.
    fn meets(host: u8, target: u8) -> String {
        try_open(&[vec![host], path(target, true)].concat()).expect_err("they do not fit")
    }

    #[test]
    fn what_a_host_misses_it_names() {
        use mode::{MUTUAL, SECRET};
        assert!(meets(0, SECRET).contains("give --secret-file FILE"));
        let (unasked, unproven) = (meets(SECRET | MUTUAL, 0), meets(SECRET | MUTUAL, SECRET));
        assert!(unasked.contains("demands no authentication"), "{unasked}");
        assert!(unproven.contains("does not know the secret in --controller-secret-file"), "{unproven}");
        assert!(meets(SECRET, SECRET | MUTUAL).contains("a response to no challenge"));
        assert!(open(&[vec![SECRET], path(0, true)].concat()), "who is not asked says nothing");
        let mut channel = Voice::new(0);
        channel.answer(5 | 1 << 18);
        let said = try_open(&[vec![SECRET], channel.script].concat()).expect_err("no channel");
        assert!(said.contains("a secure channel (TLS), which is not supported"), "{said}");
    }

    #[test]
    fn a_target_that_breaks_off_is_told_apart() {
        let meet = |target: &dyn Fn(&mut Voice)| {
            let mut voice = Voice::new(mode::SECRET);
            voice.answer(5 | 1 << 17);
            target(&mut voice);
            try_open(&[vec![mode::SECRET], voice.script].concat()).expect_err("it breaks off")
        };
        let refuses = |voice: &mut Voice| {
            let id = voice.id();
            voice.script.extend(answer(false, id, 2, 0));
        };
        assert!(meet(&refuses).contains("does not take a message that authenticates: status 0x002"));
        let gives_nothing = |voice: &mut Voice| {
            voice.answer(0);
            refuses(voice);
        };
        assert!(meet(&gives_nothing).contains("gives no message that authenticates"));
        let fails = |voice: &mut Voice| {
            let [challenge, _] = words(0, Hash::Sha256, Group::Null);
            voice.answer(0);
            voice.data(&challenge);
            voice.answer(0);
            voice.data(&[0, 0xf1, 0, 0, DRAWN, DRAWN, 1, 1]);
        };
        assert!(meet(&fails).contains("the secret in --secret-file is not the one that it has for this host's name"));
        let lies = |voice: &mut Voice| {
            voice.answer(0);
            voice.data(&[1, 1, 0, 0, 0, 0, 32, 0]);
            // It is told so, and may say what it likes to that.
            voice.answer(0);
        };
        let said = meet(&lies);
        assert!(said.contains("broke the NVMe/TCP protocol: transaction 0, in the middle of transaction"), "{said}");
        assert!(meet(&|voice| voice.answer(0)).contains("closed the connection"));
    }

    #[test]
    fn a_damaged_unit_with_digests_is_never_believed() {
        let seed = &answers_seeds()[1];
        let whole = {
            let (client, mut target) = UnixStream::pair().unwrap();
            target.write_all(&seed[1..]).unwrap();
            drop(target);
            receive_anything(client, true)
        };
        assert_eq!(whole, 4);
        for at in (1..seed.len()).step_by(97) {
            let mut bad = seed.clone();
            bad[at] ^= 1;
            let (client, mut target) = UnixStream::pair().unwrap();
            target.write_all(&bad[1..]).unwrap();
            drop(target);
            assert!(receive_anything(client, true) < 4, "{at}");
        }
    }
}
