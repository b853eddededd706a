//! What an NVMe/TCP target says, for fuzzers and tests: valid inputs byte by byte, and the parsers that take any.

use std::{
    cell::RefCell,
    io::{Cursor, Read, Write},
    os::unix::net::UnixStream,
    rc::Rc,
    time::Duration,
};

use crate::nvme::{
    controller::{self, Opened, Parties},
    discovery::discover,
    goal::{Goal, Host, parse_goal},
    queue::receive_anything,
};

/// Bytes that one call hands to a socket: what every socket holds.
const SOCKET_BYTES: usize = 32 << 10;
const SUBSYSTEM: &str = "nqn.2014-08.org.nvmexpress:uuid:1";

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
    let goal = parse_goal(&format!("h/{SUBSYSTEM}?nsid=3&kato=1&digest={digest}")).expect("a good URI");
    assert_eq!(goal.keep_alive, Duration::from_secs(1));
    goal
}

/// What a target says while a path is opened, or with an odd first byte, while its discovery log is read.
#[must_use]
pub fn open(data: &[u8]) -> bool {
    let Some((mode, script)) = data.split_first() else { return false };
    let script = Script(Rc::new(RefCell::new(Cursor::new(script))));
    let goal = goal(mode & 2 != 0);
    let host: Host = goal.host(1);
    if mode & 1 != 0 {
        return match discover(script, &host) {
            Ok(found) => {
                assert!(!found.addresses.is_empty() && found.subsystem.len() <= 223);
                true
            }
            Err(error) => said(&error.to_string()),
        };
    }
    let mut dial = || Ok(script.clone());
    match controller::open(&mut dial, &goal, Parties { host: &host, subsystem: SUBSYSTEM }, 1) {
        Ok(Opened { queues, facts, .. }) => {
            let geometry = &facts.geometry;
            assert!(queues.len() == 1 && (1..=127).contains(&facts.depth) && geometry.block_bytes.is_power_of_two());
            assert!(geometry.size_bytes <= 1 << 62 && geometry.request_limit_bytes >= geometry.block_bytes);
            true
        }
        Err(error) => said(&error.to_string()),
    }
}

fn said(message: &str) -> bool {
    assert!(!message.is_empty() && message.len() < 100_000, "a message is for people");
    false
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
    vec![
        [vec![0], path(false, true)].concat(),
        [vec![2], path(true, true)].concat(),
        [vec![0], path(false, false)].concat(),
        [vec![1], discovery()].concat(),
    ]
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

/// A path to namespace 3, with one I/O queue.
fn path(digests: bool, has_access: bool) -> Vec<u8> {
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
    let mut script = vec![ic_response(digests), answer(digests, 0, 0, 5), answer(digests, 1, 0, 127 | 10 << 24)];
    script.extend([answer(digests, 2, 0, 0), answer(digests, 3, 0, 1)]);
    script.extend([data(digests, 4, (0, true), &controller), data(digests, 5, (0, true), &namespace)]);
    script.push(data(digests, 6, (0, true), &descriptors));
    let mut next = 7;
    if has_access {
        script.extend([answer(digests, 7, 0, 0), data(digests, 8, (0, true), &log)]);
        next = 9;
    }
    script.push(answer(digests, next, 0, count));
    script.extend([ic_response(digests), answer(digests, 0, 0, 5)]);
    script.concat()
}

/// A group of the access log, without its list of namespaces.
fn group(id: u8, access: u8) -> [u8; 32] {
    let mut group = [0; 32];
    (group[0], group[16]) = (id, access);
    group
}

/// A discovery log with the service itself and a subsystem at two addresses.
fn discovery() -> Vec<u8> {
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
    let entries = [head, entry(3, "127.0.0.1"), entry(2, "127.0.0.1"), entry(2, "127.0.0.2")];
    let mut script = vec![ic_response(false), answer(false, 0, 0, 5), answer(false, 1, 0, 127 | 10 << 24)];
    script.extend([answer(false, 2, 0, 0), answer(false, 3, 0, 1)]);
    script.extend((4..).zip(&entries).map(|(id, entry)| data(false, id, (0, true), entry)));
    script.concat()
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
