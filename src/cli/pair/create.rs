//! `twinlog pair create`: makes what one node of a pair needs, on that node's machine.
//!
//! # Invariants
//!
//! 1. Nothing that holds data is overwritten, and there is no option to: who wants that removes it by hand, or uses `pool create --overwrite`.
//! 2. Everything is judged by what it holds, before anything is written. So the command can be interrupted at any moment, by a power cut too, and run again; when all is
//!    there it changes nothing.
//!
//! # What may be made anew
//!
//! | found | it is | so |
//! |---|---|---|
//! | a file of zeroes, shorter than it should be | a log whose writing was interrupted | made anew |
//! | lane headers and otherwise zeroes, where no pool is or one that was never served | a log that was formatted before the pool was made | formatted anew |
//! | the first superblock of a pool of this name, on some devices | a pool whose making was interrupted, and that nobody has served | made anew |
//! | anything else that does not belong together | somebody's data | refused |
//!
//! The mirror is not formatted here, as the partner's pool need not exist yet: the node does that when the partner has claimed its pool.

use crate::cli::{
    compose::{self, Devices},
    foreign::{self, Foreign},
    output::{Exit, Failure, Output},
    place::shell_word,
    provision,
    superblocks::{self, ReadAt},
};
use serde::Serialize;
use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};
use twinlog::{
    base::limits::{BLOCK_BYTES, LANES_MAX},
    control::config::{self, LogBackend, LogConfig, NodeConfig, PairConfig},
    format::{
        lane_header::{LaneHeader, PortionRole},
        register::MailboxHeader,
        superblock::Superblock,
    },
};

/// Something that the node needs.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Part {
    what: &'static str,
    place: String,
    /// `made`, `there`, or who makes it.
    state: &'static str,
}

/// What has to be done about a part.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It is there.
    Keep,
    /// It is made. What is named holds what an interrupted run has left.
    Make(Vec<PathBuf>),
}

/// Makes what is missing.
pub(crate) fn run(file: &Path, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Created {
        node: String,
        parts: Vec<Part>,
        partner_pool_is_there: bool,
    }
    let config = config::load(file)?;
    let (Some(pair), Some(partner_pool), Some(mirror)) = (&config.pair, &config.partner_pool, &config.mirror) else {
        let message = format!("{} has no [pair]", file.display());
        return Err(Failure::new(
            Exit::Usage,
            message,
            "`twinlog pool create --config FILE` makes a node without a partner",
        ));
    };
    let parts = make(&config, pair, mirror, output)?;
    let partner_pool_is_there = superblocks::assemble(&Devices::offline(config.nvme), &partner_pool.devices).is_ok();
    let created = Created { node: config.name.clone(), parts, partner_pool_is_there };
    output.show(&created, || {
        let mut text = format!("node {} of the pair with {}\n", config.name, pair.partner);
        for Part { what, place, state } in &created.parts {
            text.push_str(&format!("  {what:<8} {state:<8} {place}\n"));
        }
        let next = if partner_pool_is_there {
            format!("twinlog serve --config {}, or start its service", shell_word(file))
        } else {
            format!("twinlog pair create --config {}.toml on the machine of {0}, then start both", pair.partner)
        };
        text.push_str(&format!("  next: {next}\n"));
        text
    })?;
    Ok(Exit::Done)
}

fn make(config: &NodeConfig, pair: &PairConfig, mirror: &LogConfig, output: &Output) -> Result<Vec<Part>, Failure> {
    if !pair.key.exists() {
        let message = format!("{} is not there", pair.key.display());
        let hint = "copy it from where `twinlog pair configure` has made it; both nodes need the same";
        return Err(Failure::new(Exit::Usage, message, hint));
    }
    compose::read_key(&pair.key)?;
    let (pool_plan, mirror_plan) = (plan_pool(config)?, plan_mirror(mirror)?);
    let mailbox_plan = pair.mailbox.as_deref().map(|path| plan_mailbox(path, config, pair)).transpose()?;
    let pool_state = if let Plan::Make(left) = &pool_plan {
        remove_short(&config.log)?;
        let left: Vec<PathBuf> = left.iter().filter(|path| path.exists()).cloned().collect();
        provision::make_log_and_pool(config, &left, output)?;
        "made"
    } else {
        "there"
    };
    let devices = config.pool.devices.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let mut parts = vec![
        Part { what: "key", place: pair.key.display().to_string(), state: "there" },
        Part { what: "log", place: place(&config.log), state: pool_state },
        Part { what: "pool", place: devices, state: pool_state },
    ];
    let mirror_state = if mirror_plan == Plan::Keep {
        "there"
    } else {
        remove_short(mirror)?;
        provision::make_log(mirror, |_| false, output)?;
        "made"
    };
    parts.push(Part { what: "mirror", place: place(mirror), state: mirror_state });
    if let (Some(path), Some(plan)) = (&pair.mailbox, mailbox_plan) {
        let is_mine = config.name < pair.partner;
        if let (Plan::Make(left), true) = (&plan, is_mine) {
            for path in left {
                fs::remove_file(path).map_err(|error| Failure::system("remove", path.display(), &error))?;
            }
            provision::make_mailbox(path, [&config.name, &pair.partner])?;
        }
        let state = match plan {
            Plan::Keep => "there",
            // Made by one node only, or two might be made at once.
            Plan::Make(_) => {
                if is_mine {
                    "made"
                } else {
                    "made by the partner"
                }
            }
        };
        parts.push(Part { what: "mailbox", place: path.display().to_string(), state });
    }
    Ok(parts)
}

fn place(log: &LogConfig) -> String {
    log.path.as_ref().map_or_else(|| "memory".to_owned(), |path| path.display().to_string())
}

fn refused(message: String, hint: &str) -> Failure {
    Failure::new(Exit::Refused, format!("{message}; nothing was written"), hint)
}

/// The node's own pool and its log.
fn plan_pool(config: &NodeConfig) -> Result<Plan, Failure> {
    let (name, devices) = (&config.pool.name, &config.pool.devices);
    let log = look_at(&config.log)?;
    // One for all that is looked at: a controller is not started for each. It is let go before anything is made.
    let opener = Devices::offline(config.nvme);
    let is_unserved = |path: &&PathBuf| superblocks::is_unserved(&opener, path, name);
    if let Ok(found) = superblocks::assemble(&opener, devices) {
        let Superblock { pool, name: called, .. } = &found.superblock;
        if called != name {
            let message = format!("the devices of pool {name} hold pool {called} ({pool})");
            return Err(refused(message, "check `devices` in [pool]: do both machines mean the same by these paths?"));
        }
        let is_its_log = match &log {
            Found::Memory => true,
            Found::Lane(header, _) => {
                let identity = &header.identity;
                identity.pool == *pool
                    && identity.role == PortionRole::Own
                    && usize::from(identity.lane_count) == found.superblock.applied.len()
            }
            Found::Nothing | Found::Zeroes { .. } => false,
        };
        if is_its_log {
            return Ok(Plan::Keep);
        }
        if !devices.iter().all(|path| is_unserved(&path)) {
            let message = format!("pool {name} is there and was served, and {} is not its log", place(&config.log));
            return Err(refused(message, "check `path` in [log]; a log that is lost: see docs/operating/pair.md"));
        }
    }
    let mut left = Vec::new();
    for path in devices {
        if is_unserved(&path) {
            left.push(path.clone());
        } else {
            let (medium, block_count) = opener.read(path)?;
            no_data(&medium, path, block_count * BLOCK_BYTES)?;
        }
    }
    match log {
        Found::Lane(_, Some(byte)) => {
            let message =
                format!("{} holds a log with records (byte {byte}), and its pool is not there", place(&config.log));
            Err(refused(message, "check `devices` in [pool] and `path` in [log]"))
        }
        Found::Lane(_, None) => {
            left.extend(config.log.path.clone());
            Ok(Plan::Make(left))
        }
        Found::Memory | Found::Nothing | Found::Zeroes { .. } => Ok(Plan::Make(left)),
    }
}

fn plan_mirror(mirror: &LogConfig) -> Result<Plan, Failure> {
    match look_at(mirror)? {
        Found::Lane(header, _) if header.identity.role == PortionRole::Own => {
            let message = format!("{} is the own log of pool {}, and no mirror", place(mirror), header.identity.pool);
            Err(refused(message, "give [mirror] a path of its own"))
        }
        Found::Memory | Found::Lane(..) | Found::Zeroes { is_whole: true } => Ok(Plan::Keep),
        Found::Nothing | Found::Zeroes { is_whole: false } => Ok(Plan::Make(Vec::new())),
    }
}

fn plan_mailbox(path: &Path, config: &NodeConfig, pair: &PairConfig) -> Result<Plan, Failure> {
    provision::refuse_device_for_mailbox(path)?;
    let failed = |error: &io::Error| Failure::system("look at", path.display(), error);
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Plan::Make(Vec::new())),
        opened => opened.map_err(|error| failed(&error))?,
    };
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(Plan::Make(vec![path.to_owned()]));
    }
    let header = bytes.first_chunk().map(|block| MailboxHeader::verify(block, None));
    match header {
        Some(Ok(header)) => {
            let mut nodes = [config.name.clone(), pair.partner.clone()];
            nodes.sort();
            if header.nodes == nodes {
                return Ok(Plan::Keep);
            }
            let [first, second] = header.nodes;
            let message = format!("{} is the mailbox of the pair {first}, {second}", path.display());
            Err(refused(message, "each pair has a mailbox of its own"))
        }
        _ => Err(refused(format!("{} holds data that is no mailbox", path.display()), "is it the right path?")),
    }
}

/// What lies where a portion of change log is wanted.
#[derive(Debug)]
enum Found {
    /// It is in memory.
    Memory,
    Nothing,
    /// `is_whole`: as many as are wanted.
    Zeroes {
        is_whole: bool,
    },
    /// A portion, and its first byte beyond the headers of lanes that is not zero.
    Lane(LaneHeader, Option<u64>),
}

/// Looks at a log; anything but a portion of a change log is refused.
fn look_at(log: &LogConfig) -> Result<Found, Failure> {
    let Some(path) = log.path.as_ref().filter(|_| log.backend != LogBackend::Memory) else { return Ok(Found::Memory) };
    let failed = |error: &io::Error| Failure::system("look at", path.display(), error);
    if let Some(node) = compose::DaxNode::open(path)? {
        let bytes = node.size_bytes();
        return judge(log, path, bytes, node, |node| refuse_found(path, node.find()));
    }
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        opened => opened.map_err(|error| failed(&error))?,
    };
    let bytes =
        file.seek(SeekFrom::End(0)).and_then(|bytes| file.rewind().map(|()| bytes)).map_err(|error| failed(&error))?;
    judge(log, path, bytes, file, |file| no_data(&file, path, bytes))
}

/// What `source`, at whose begin it stands, holds; `no_data` refuses anything but zeroes.
fn judge<R: Read>(
    log: &LogConfig,
    path: &Path,
    bytes: u64,
    mut source: R,
    no_data: impl FnOnce(R) -> Result<(), Failure>,
) -> Result<Found, Failure> {
    let failed = |error: &io::Error| Failure::system("look at", path.display(), error);
    let mut head = Vec::new();
    (&mut source).take(BLOCK_BYTES).read_to_end(&mut head).map_err(|error| failed(&error))?;
    let lanes = 1..=u16::try_from(LANES_MAX).expect("a few");
    let mut headers = lanes.filter_map(|count| {
        let header = LaneHeader::read(&head, log.lane_bytes(count)).ok()?;
        (header.identity.lane_count == count).then_some(header)
    });
    match headers.next() {
        Some(header) => {
            let lane_bytes = log.lane_bytes(header.identity.lane_count);
            let record = first_record(source, lane_bytes).map_err(|error| failed(&error))?;
            Ok(Found::Lane(header, record))
        }
        None => {
            no_data(source)?;
            Ok(Found::Zeroes { is_whole: bytes >= log.size.bytes() })
        }
    }
}

/// The first byte that is not zero, of what is no header of a lane. `source` is behind the first lane's.
fn first_record(source: impl Read, lane_bytes: u64) -> io::Result<Option<u64>> {
    let mut source = BufReader::with_capacity(1 << 20, source);
    let mut block = [0; 4096];
    let mut place = BLOCK_BYTES;
    loop {
        match source.read_exact(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let is_header = place.is_multiple_of(lane_bytes);
        if let Some(at) = block.iter().position(|&byte| byte != 0).filter(|_| !is_header) {
            return Ok(Some(place + at as u64));
        }
        place += BLOCK_BYTES;
    }
}

/// Removes a log whose writing was interrupted: a file of zeroes that is too short.
fn remove_short(log: &LogConfig) -> Result<(), Failure> {
    match (look_at(log)?, &log.path) {
        (Found::Zeroes { is_whole: false }, Some(path)) if path.is_file() => {
            fs::remove_file(path).map_err(|error| Failure::system("remove", path.display(), &error))
        }
        _ => Ok(()),
    }
}

/// Refuses anything but zeroes.
fn no_data(medium: &impl ReadAt, path: &Path, bytes: u64) -> Result<(), Failure> {
    refuse_found(path, foreign::find(medium, path, bytes, true))
}

fn refuse_found(path: &Path, found: io::Result<Option<Foreign>>) -> Result<(), Failure> {
    match found.map_err(|error| Failure::system("read", path.display(), &error))? {
        None => Ok(()),
        Some(found) => {
            let message = format!("{} holds {} (byte {})", path.display(), found.what, found.byte);
            Err(refused(message, "is it the right one? empty it by hand if nobody needs what it holds"))
        }
    }
}

#[cfg(test)]
mod tests;
