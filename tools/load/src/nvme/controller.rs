//! How a path is opened: a controller made and enabled, its namespace found, its I/O queues connected. Blocking, over any stream with a time limit.
//!
//! ```text
//! ICReq --> Connect (admin) --> CC.EN, wait for CSTS.RDY --> Identify --> event configuration, access log --> for each I/O queue: ICReq, Connect
//! ```
//!
//! After each Connect the host authenticates itself, if the target demands it.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use super::{
    auth::{self, keys::Keys},
    goal::{Goal, Host, Which},
    link::{DATA_LIMIT, Link, LinkError, Reply},
    wire::{Agreement, Command, Status, WireError, connect_data, opcode, u16_at, u32_at, u64_at},
};
use crate::{
    engine::Geometry,
    units::{index, show_bytes},
};

/// The name of every discovery service (base, section 3.1.2.3).
pub(crate) const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Entries of a queue that are asked for; the target may have fewer.
const ENTRIES_WANTED: u16 = 128;
/// Entries of the admin queue.
const ADMIN_ENTRIES: u16 = 32;
/// The longest wait for a controller to become ready, whatever it says of itself.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at whether it is.
const READY_POLL: Duration = Duration::from_millis(1);
/// The most data in a capsule that is used.
const IN_CAPSULE_LIMIT: u32 = 64 << 10;
/// The longest request, in bytes: as for other targets.
const REQUEST_LIMIT: u64 = 32 << 20;
/// The most groups of namespaces of which the access is read: what an answer holds.
const GROUPS_LIMIT: u32 = (DATA_LIMIT - ACCESS_HEAD_BYTES) / ACCESS_GROUP_BYTES;
const ACCESS_HEAD_BYTES: u32 = 16;
const ACCESS_GROUP_BYTES: u32 = 32;
const IDENTIFY_BYTES: u32 = 4096;

/// Types of fabrics commands (base, section 6).
mod fabrics {
    pub(super) const PROPERTY_SET: u32 = 0x00;
    pub(super) const CONNECT: u32 = 0x01;
    pub(super) const PROPERTY_GET: u32 = 0x04;
}

/// Properties (base, section 3.1.3).
mod property {
    pub(super) const CAPABILITIES: u32 = 0x00;
    pub(super) const CONFIGURATION: u32 = 0x14;
    pub(super) const STATUS: u32 = 0x1c;
}

/// Structures of Identify (base, section 5.17.1).
mod structure {
    pub(super) const NAMESPACE: u32 = 0x00;
    pub(super) const CONTROLLER: u32 = 0x01;
    pub(super) const NAMESPACES: u32 = 0x02;
    pub(super) const DESCRIPTORS: u32 = 0x03;
}

/// CC: enabled, entries of 64 and 16 bytes.
const ENABLE: u32 = 0x0046_0001;
/// The bit of access changes in OAES and in the event configuration (base, figure 275).
const EVENT_ACCESS: u32 = 1 << 11;
/// The log page of asymmetric namespace access.
pub(crate) const LOG_ACCESS: u8 = 0x0c;

/// How a path leads to the namespace (base, section 8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    Optimized,
    NonOptimized,
    /// Inaccessible, lost for ever, or changing: nothing can be sent this way now.
    Closed,
}

/// What a controller says of itself and of the namespace.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) namespace: u32,
    /// NGUID and UUID, as far as there are any: the same over every path.
    pub(crate) identity: ([u8; 16], [u8; 16]),
    pub(crate) geometry: Geometry,
    /// Commands of an I/O queue in flight.
    pub(crate) depth: usize,
    /// Data of writes that goes into their capsules.
    pub(crate) in_capsule: u32,
    /// The target says when the access changes.
    pub(crate) has_events: bool,
    /// The group of the namespace; zero when access is the same over every path.
    pub(crate) group: u32,
    /// Bytes of the access log without lists of namespaces.
    pub(crate) access_bytes: u32,
    pub(crate) access: Access,
}

/// A path that was opened.
pub(crate) struct Opened<S> {
    pub(crate) admin: Link<S>,
    pub(crate) queues: Vec<(S, Agreement)>,
    pub(crate) facts: Facts,
}

/// Who connects to which subsystem, and what it knows to prove itself with.
#[derive(Clone, Copy)]
pub(crate) struct Parties<'a> {
    pub(crate) host: &'a Host,
    pub(crate) subsystem: &'a str,
    pub(crate) keys: Option<&'a Keys>,
}

/// Opens a path with `queues` I/O queues; `dial` makes a connection.
pub(crate) fn open<S: Read + Write>(
    dial: &mut dyn FnMut() -> Result<S, LinkError>,
    goal: &Goal,
    parties: Parties<'_>,
    queues: u16,
) -> Result<Opened<S>, LinkError> {
    let digests = (goal.header_digest, goal.data_digest);
    let mut admin = Link::open(dial()?, digests)?;
    let keep_alive = u32::try_from(goal.keep_alive.as_millis()).unwrap_or(u32::MAX);
    let (controller, capabilities) = connect_admin(&mut admin, parties, keep_alive)?;
    let facts = describe(&mut admin, goal, capabilities)?;
    let granted = number_of_queues(&mut admin, queues)?;
    if granted < queues {
        return Err(LinkError::Refused(format!("the target gives {granted} I/O queues: lower --connections")));
    }
    let entries = u16::try_from(facts.depth).unwrap_or(ENTRIES_WANTED) + 1;
    let mut connected = Vec::with_capacity(usize::from(queues));
    for number in 1..=queues {
        let mut link = Link::open(dial()?, digests)?;
        connect(&mut link, parties, (number, entries, controller), 0)?;
        connected.push(link.into_queue()?);
    }
    Ok(Opened { admin, queues: connected, facts })
}

/// Makes a controller and enables it; its id, and CAP.
pub(crate) fn connect_admin<S: Read + Write>(
    admin: &mut Link<S>,
    parties: Parties<'_>,
    keep_alive_ms: u32,
) -> Result<(u16, u64), LinkError> {
    let result = connect(admin, parties, (0, ADMIN_ENTRIES, u16::MAX), keep_alive_ms)?;
    let controller = u16::try_from(result & 0xffff).expect("sixteen bits");
    let capabilities = get(admin, property::CAPABILITIES, true)?;
    set(admin, property::CONFIGURATION, ENABLE)?;
    let patience = Duration::from_millis(500 * (capabilities >> 24 & 0xff)).min(READY_LIMIT);
    let begun = Instant::now();
    loop {
        let status = get(admin, property::STATUS, false)?;
        match status & 0b11 {
            0b01 => return Ok((controller, capabilities)),
            0b10 | 0b11 => return Err(LinkError::Refused("the controller failed when it was enabled".to_owned())),
            _ if begun.elapsed() > patience => {
                return Err(LinkError::Refused("the controller does not become ready".to_owned()));
            }
            _ => std::thread::sleep(READY_POLL),
        }
    }
}

/// Makes the connection a queue, of a host that has authenticated itself if it has to; the result of the command.
fn connect<S: Read + Write>(
    link: &mut Link<S>,
    parties: Parties<'_>,
    (queue, entries, controller): (u16, u16, u16),
    keep_alive_ms: u32,
) -> Result<u64, LinkError> {
    let Parties { host, subsystem, .. } = parties;
    let mut command = Command::new(opcode::FABRICS, fabrics::CONNECT);
    // CATTR bit 2: without flow control of the submission queue.
    command.words[..3].copy_from_slice(&[u32::from(queue) << 16, u32::from(entries - 1) | 1 << 18, keep_alive_ms]);
    let data = connect_data(subsystem, controller, (&host.name, &host.id));
    let Reply { answer, .. } = link.call(command, 0, &data)?;
    if !answer.status.is_success() {
        return Err(refused(&format!("connecting queue {queue} of {subsystem}"), answer.status));
    }
    auth::satisfy(link, parties, answer.result)?;
    Ok(answer.result)
}

fn refused(what: &str, status: Status) -> LinkError {
    let meaning = match status.connect_fault() {
        Some(meaning) => format!(" ({meaning})"),
        None => String::new(),
    };
    LinkError::Refused(format!("the target refuses {what}: {status}{meaning}"))
}

fn get<S: Read + Write>(admin: &mut Link<S>, property: u32, long: bool) -> Result<u64, LinkError> {
    let mut command = Command::new(opcode::FABRICS, fabrics::PROPERTY_GET);
    command.words[..2].copy_from_slice(&[u32::from(long), property]);
    let Reply { answer, .. } = admin.call(command, 0, &[])?;
    match answer.status.is_success() {
        true => Ok(answer.result),
        false => Err(refused(&format!("property {property:#x}"), answer.status)),
    }
}

fn set<S: Read + Write>(admin: &mut Link<S>, property: u32, value: u32) -> Result<(), LinkError> {
    let mut command = Command::new(opcode::FABRICS, fabrics::PROPERTY_SET);
    command.words[1..3].copy_from_slice(&[property, value]);
    let Reply { answer, .. } = admin.call(command, 0, &[])?;
    if answer.status.is_success() { Ok(()) } else { Err(refused("to be enabled", answer.status)) }
}

/// A structure of Identify, whole.
fn identify<S: Read + Write>(admin: &mut Link<S>, structure: u32, namespace: u32) -> Result<Vec<u8>, LinkError> {
    let mut command = Command::new(opcode::IDENTIFY, namespace);
    command.words[0] = structure;
    let Reply { answer, data } = admin.call(command, IDENTIFY_BYTES, &[])?;
    if !answer.status.is_success() {
        let what = match namespace {
            0 => "to identify the controller".to_owned(),
            id => format!("to identify namespace {id}"),
        };
        return Err(refused(&what, answer.status));
    }
    match data.len() == index(u64::from(IDENTIFY_BYTES)) {
        true => Ok(data),
        false => Err(WireError(format!("an identify structure of {} bytes", data.len())).into()),
    }
}

/// I/O queues that the target lets the host have, of `wanted`.
fn number_of_queues<S: Read + Write>(admin: &mut Link<S>, wanted: u16) -> Result<u16, LinkError> {
    let mut command = Command::new(opcode::SET_FEATURES, 0);
    let count = u32::from(wanted - 1);
    command.words[..2].copy_from_slice(&[0x07, count << 16 | count]);
    let Reply { answer, .. } = admin.call(command, 0, &[])?;
    if !answer.status.is_success() {
        return Err(refused("to say how many queues there may be", answer.status));
    }
    let least = (answer.result & 0xffff).min(answer.result >> 16 & 0xffff);
    Ok(u16::try_from(least).unwrap_or(u16::MAX).saturating_add(1))
}

/// Everything about the controller and the namespace.
fn describe<S: Read + Write>(admin: &mut Link<S>, goal: &Goal, capabilities: u64) -> Result<Facts, LinkError> {
    let controller = identify(admin, structure::CONTROLLER, 0)?;
    let namespace = choose(admin, goal.which)?;
    let described = identify(admin, structure::NAMESPACE, namespace)?;
    let mut geometry = geometry(&described)?;
    limits(&controller, capabilities, &mut geometry);
    let has_access = controller[76] & 1 << 3 != 0;
    let groups = if has_access { u32_at(&controller, 348) } else { 0 };
    if groups > GROUPS_LIMIT {
        return Err(LinkError::Refused(format!("{groups} access groups; at most {GROUPS_LIMIT} are supported")));
    }
    let group = if has_access { u32_at(&described, 92) } else { 0 };
    let capsule = u32_at(&controller, 1792).saturating_mul(16).saturating_sub(64);
    let offset = u16_at(&controller, 1800);
    let capsule = if offset == 0 { capsule.min(IN_CAPSULE_LIMIT) } else { 0 };
    // The range of a Dataset Management is sent in its capsule, or not at all.
    geometry.can_trim &= capsule >= 16;
    let entries_max = u16::try_from(capabilities & 0xffff).expect("sixteen bits").saturating_add(1);
    if entries_max < 2 {
        return Err(WireError("queues of one entry".to_owned()).into());
    }
    let mut facts = Facts {
        namespace,
        identity: identity(admin, namespace, &described),
        geometry,
        depth: usize::from(entries_max.min(ENTRIES_WANTED)) - 1,
        in_capsule: if goal.in_capsule { capsule } else { 0 },
        has_events: false,
        group,
        access_bytes: ACCESS_HEAD_BYTES + groups * ACCESS_GROUP_BYTES,
        access: Access::Optimized,
    };
    if u32_at(&controller, 92) & EVENT_ACCESS != 0 {
        let mut command = Command::new(opcode::SET_FEATURES, 0);
        command.words[..2].copy_from_slice(&[0x0b, EVENT_ACCESS]);
        facts.has_events = admin.call(command, 0, &[])?.answer.status.is_success();
    }
    if group != 0 {
        let Reply { answer, data } = admin.call(access_log(&facts), facts.access_bytes, &[])?;
        facts.access = match answer.status.is_success() {
            true => access_of(&data, group),
            false => return Err(refused("to tell how namespaces are reached", answer.status)),
        };
    }
    Ok(facts)
}

/// The command that reads the access log without lists of namespaces (base, section 5.16.1.13).
pub(crate) fn access_log(facts: &Facts) -> Command {
    let mut command = Command::new(opcode::GET_LOG_PAGE, 0xffff_ffff);
    // NUMDL is zero's based, in dwords; bit 8: groups only.
    command.words[0] = u32::from(LOG_ACCESS) | 1 << 8 | (facts.access_bytes / 4 - 1) << 16;
    command
}

/// How `group` is reached, by that log; closed if the log does not say.
pub(crate) fn access_of(log: &[u8], group: u32) -> Access {
    let Some((head, mut rest)) = log.split_at_checked(16) else { return Access::Closed };
    for _ in 0..u16_at(head, 8) {
        let Some((entry, more)) = rest.split_at_checked(32) else { break };
        if u32_at(entry, 0) == group {
            return match entry[16] & 0xf {
                1 => Access::Optimized,
                2 => Access::NonOptimized,
                _ => Access::Closed,
            };
        }
        let listed = index(u64::from(u32_at(entry, 4)).saturating_mul(4));
        let Some(next) = more.get(listed..) else { break };
        rest = next;
    }
    Access::Closed
}

/// The namespace that is wanted.
fn choose<S: Read + Write>(admin: &mut Link<S>, which: Which) -> Result<u32, LinkError> {
    if let Which::Id(id) = which {
        return Ok(id);
    }
    let list = identify(admin, structure::NAMESPACES, 0)?;
    let ids: Vec<u32> = list.chunks_exact(4).map(|word| u32_at(word, 0)).take_while(|id| *id != 0).collect();
    if let Which::Uuid(wanted) = which {
        for id in ids {
            let described = identify(admin, structure::NAMESPACE, id)?;
            if identity(admin, id, &described).1 == wanted.into_bytes() {
                return Ok(id);
            }
        }
        return Err(LinkError::Refused(format!("no namespace has the UUID {wanted}")));
    }
    if let [id] = ids[..] {
        return Ok(id);
    }
    let mut shown = Vec::new();
    for id in ids.iter().take(16) {
        let size = geometry(&identify(admin, structure::NAMESPACE, *id)?).map_or(0, |geometry| geometry.size_bytes);
        shown.push(format!("?nsid={id} ({})", show_bytes(size as f64)));
    }
    Err(LinkError::Refused(match ids.len() {
        0 => "the subsystem has no namespaces".to_owned(),
        count => format!("the subsystem has {count} namespaces: say which, {}", shown.join(", ")),
    }))
}

/// NGUID and UUID of a namespace; a target that does not tell them says zero.
fn identity<S: Read + Write>(admin: &mut Link<S>, namespace: u32, described: &[u8]) -> ([u8; 16], [u8; 16]) {
    let mut nguid = [0; 16];
    nguid.copy_from_slice(&described[104..120]);
    let uuid = identify(admin, structure::DESCRIPTORS, namespace).ok().and_then(|list| uuid_of(&list));
    (nguid, uuid.unwrap_or_default())
}

/// The UUID in a list of identification descriptors (base, section 5.17.2.3).
fn uuid_of(mut list: &[u8]) -> Option<[u8; 16]> {
    loop {
        let (head, rest) = list.split_at_checked(4)?;
        let length = usize::from(head[1]);
        match head[0] {
            0 => return None,
            3 if length == 16 => return rest.first_chunk().copied(),
            _ => list = rest.get(length..)?,
        }
    }
}

/// Size, block and abilities of a namespace (NVM, section 4.1.5.1).
fn geometry(described: &[u8]) -> Result<Geometry, LinkError> {
    let blocks = u64_at(described, 0);
    let format = described[26];
    let format = usize::from(format & 0xf) | usize::from(format >> 5 & 0b11) << 4;
    let (metadata, block_log) = (u16_at(described, 128 + 4 * format), described[130 + 4 * format]);
    if blocks == 0 {
        return Err(LinkError::Refused("there is no such namespace, or it is empty".to_owned()));
    }
    if metadata != 0 {
        return Err(LinkError::Refused("the namespace has metadata, which is not supported".to_owned()));
    }
    if !(9..=16).contains(&block_log) || blocks > 1 << (62 - block_log) {
        return Err(WireError(format!("{blocks} blocks of 2^{block_log} bytes")).into());
    }
    Ok(Geometry {
        size_bytes: blocks << block_log,
        block_bytes: 1 << block_log,
        request_limit_bytes: REQUEST_LIMIT,
        read_only: described[99] & 1 != 0,
        can_flush: false,
        can_fua: true,
        can_trim: false,
        can_zero: false,
        multi_conn: true,
    })
}

/// What the controller adds to a namespace's geometry (base, section 5.17.2.1).
fn limits(controller: &[u8], capabilities: u64, geometry: &mut Geometry) {
    let page_log = 12 + u32::from(u8::try_from(capabilities >> 48 & 0xf).expect("four bits"));
    let transfer = match controller[77] {
        0 => REQUEST_LIMIT,
        pages_log => 1_u64.checked_shl(page_log + u32::from(pages_log)).unwrap_or(REQUEST_LIMIT),
    };
    // A read or write counts its blocks in 16 bits.
    geometry.request_limit_bytes = transfer.min(geometry.block_bytes << 16).min(REQUEST_LIMIT);
    let optional = u16_at(controller, 520);
    geometry.can_trim = optional & 1 << 2 != 0;
    geometry.can_zero = optional & 1 << 3 != 0;
    // Without a volatile cache there is nothing to flush, and the command does no harm.
    geometry.can_flush = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry of the access log, with as many ids of namespaces.
    fn group(id: u8, access: u8, namespaces: u8) -> Vec<u8> {
        let mut group = vec![0; 32 + 4 * usize::from(namespaces)];
        (group[0], group[4], group[16]) = (id, namespaces, access);
        group
    }

    #[test]
    fn access_is_found_behind_other_groups_and_their_lists() {
        let head = [vec![0; 8], vec![3, 0], vec![0; 6]].concat();
        let log = [head, group(1, 1, 5), group(2, 2, 0), group(7, 0xf, 1)].concat();
        assert_eq!(
            [1, 2, 7, 3].map(|id| access_of(&log, id)),
            [Access::Optimized, Access::NonOptimized, Access::Closed, Access::Closed]
        );
        // Cut off anywhere, and with a list that is longer than everything.
        (0..log.len() - 4).for_each(|length| assert!(access_of(&log[..length], 7) == Access::Closed, "{length}"));
        let mut long = log.clone();
        long[20..24].fill(0xff);
        assert_eq!([1, 2].map(|id| access_of(&long, id)), [Access::Optimized, Access::Closed]);
    }

    #[test]
    fn a_namespace_s_size_and_blocks_have_bounds() {
        let described = |blocks: u64, format: u8, block_log: u8, metadata: u8| {
            let mut page = vec![0; 4096];
            page[..8].copy_from_slice(&blocks.to_le_bytes());
            page[26] = (format & 0xf) | (format >> 4) << 5;
            let at = 128 + 4 * usize::from(format);
            (page[at], page[at + 2]) = (metadata, block_log);
            geometry(&page)
        };
        assert_eq!(described(256, 0, 12, 0).map(|geometry| geometry.size_bytes).ok(), Some(1 << 20));
        assert_eq!(described(1, 63, 9, 0).map(|geometry| geometry.block_bytes).ok(), Some(512));
        assert!(described(1 << 50, 0, 12, 0).is_ok() && described(1, 0, 16, 0).is_ok());
        for (blocks, block_log, metadata) in [(0, 12, 0), (1, 8, 0), (1, 17, 0), (1, 12, 8), ((1 << 50) + 1, 12, 0)] {
            assert!(described(blocks, 0, block_log, metadata).is_err(), "{blocks} {block_log} {metadata}");
        }
    }

    #[test]
    fn requests_are_as_long_as_the_target_lets_them() {
        let limit = |transfer: u8, page: u64| {
            let mut controller = vec![0; 4096];
            controller[77] = transfer;
            let mut namespace = vec![0; 4096];
            (namespace[0], namespace[130]) = (1, 12);
            let mut geometry = geometry(&namespace).expect("good");
            limits(&controller, page << 48, &mut geometry);
            geometry.request_limit_bytes
        };
        assert_eq!([limit(8, 0), limit(1, 2), limit(0, 0)], [1 << 20, 32 << 10, 32 << 20]);
        assert_eq!([limit(13, 0), limit(14, 0), limit(255, 15)], [32 << 20; 3]);
    }

    #[test]
    fn a_uuid_is_found_among_descriptors() {
        let list = [&[1, 8, 0, 0][..], &[9; 8], &[3, 16, 0, 0], &[5; 16], &[0; 16]].concat();
        assert_eq!(uuid_of(&list), Some([5; 16]));
        assert!((0..32).all(|length| uuid_of(&list[..length]).is_none()) && uuid_of(&[0; 64]).is_none());
        assert_eq!(uuid_of(&[1, 255, 0, 0, 3, 16, 0, 0]), None);
    }
}
