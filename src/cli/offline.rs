//! Commands that read the files of a stopped node: `log`, `inspect`, and `pool check --config`. They write nothing.

use super::{
    args::{InspectArgs, LogCommand, OfflineArgs},
    client::{progress_bar, show_report},
    compose::{self, Devices},
    layout,
    output::{Exit, Failure, Output},
    superblocks::{self, Copy},
};
use serde::Serialize;
use std::{
    collections::VecDeque,
    fmt::Write as _,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    rc::Rc,
};
use twinlog::{
    base::limits::BLOCK_BYTES,
    changelog::inspect::{Inspector, LaneRow, Row, Verdict},
    control::{
        config::{self, NodeConfig},
        size::show_bytes,
    },
    format::superblock::Superblock,
};

#[derive(Serialize)]
struct Lane<T: Serialize> {
    #[serde(flatten)]
    lane: LaneRow,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
struct Lanes<T: Serialize> {
    lanes: Vec<Lane<T>>,
}

#[derive(Serialize)]
struct Rows {
    rows: VecDeque<Row>,
}

/// `twinlog pool check --config`
pub(crate) fn check(config: &Path, output: &Output) -> Result<Exit, Failure> {
    let config = config::load(config)?;
    let devices = Devices::offline(config.nvme);
    let found = superblocks::assemble(&devices, &config.pool.devices)?;
    let bar = progress_bar(output, "verifying");
    let report = compose::check(&devices, &found.devices, found.superblock, |done, total| {
        bar.set_length(total.max(done) * BLOCK_BYTES);
        bar.set_position(done * BLOCK_BYTES);
    })?;
    bar.finish_and_clear();
    show_report(&report, output)
}

/// `twinlog log show|verify`
pub(crate) fn log(command: LogCommand, output: &Output) -> Result<Exit, Failure> {
    match command {
        LogCommand::Show { node, last, mirror } => {
            let (config, superblock) = open_log(&node, mirror)?;
            let show = |inspector: &mut Inspector<_>, _: usize| {
                let mut rows = VecDeque::new();
                inspector.rows(|row| {
                    if rows.len() == last {
                        rows.pop_front();
                    }
                    rows.push_back(row);
                    last > 0
                })?;
                Ok(Rows { rows })
            };
            let lanes = lanes(&config, &superblock, show)?;
            output.show(&lanes, || text_of_rows(&lanes))?;
            Ok(Exit::Done)
        }
        LogCommand::Verify { node, mirror } => {
            let (config, superblock) = open_log(&node, mirror)?;
            let verify = |inspector: &mut Inspector<_>, lane: usize| {
                inspector.verify(Some((superblock.applied[lane], superblock.epoch)))
            };
            let lanes = lanes(&config, &superblock, verify)?;
            output.show(&lanes, || text_of_verdicts(&lanes))?;
            let whole = lanes.lanes.iter().all(|lane| lane.content.hole.is_none());
            Ok(if whole { Exit::Done } else { Exit::Degraded })
        }
    }
}

fn configuration(node: &OfflineArgs) -> Result<NodeConfig, Failure> {
    let file = layout::config_of(node);
    if node.config.is_none() && !file.exists() {
        let message = format!("there is no node in {}", node.dir.join(&node.node).display());
        return Err(Failure::new(Exit::Error, message, "name it: --dir DIR or --config FILE"));
    }
    Ok(config::load(&file)?)
}

/// The node's own log with its pool; or the mirror of its partner's, with the partner's pool.
fn open_log(node: &OfflineArgs, mirror: bool) -> Result<(NodeConfig, Superblock), Failure> {
    let mut config = configuration(node)?;
    if mirror {
        let (Some(pool), Some(log)) = (config.partner_pool.take(), config.mirror.take()) else {
            let message = format!("node {} has no partner, and no mirror of its log", config.name);
            return Err(Failure::new(Exit::Usage, message, "leave --mirror out"));
        };
        (config.pool, config.log) = (pool, log);
    }
    let found = superblocks::assemble(&Devices::offline(config.nvme), &config.pool.devices)?;
    config.pool.devices = found.devices;
    Ok((config, found.superblock))
}

type ReadAt = Box<dyn FnMut(u64, &mut [u8]) -> std::io::Result<()>>;

/// Applies `inspect` to every lane of the log.
fn lanes<T: Serialize>(
    config: &NodeConfig,
    superblock: &Superblock,
    inspect: impl Fn(&mut Inspector<ReadAt>, usize) -> Result<T, twinlog::changelog::scan::ScanError>,
) -> Result<Lanes<T>, Failure> {
    let Some(path) = &config.log.path else {
        return Err(Failure::new(Exit::Error, "the log is in memory: a stopped node has none", "twinlog status"));
    };
    let bytes = config.log.lane_bytes(superblock.lane_count());
    let node = compose::DaxNode::open(path)?.map(Rc::new);
    let mut lanes = Vec::new();
    for index in 0..superblock.applied.len() {
        let start = bytes * index as u64;
        let read: ReadAt = match &node {
            Some(node) => {
                let node = node.clone();
                Box::new(move |offset, buffer| node.read_exact_at(buffer, start + offset))
            }
            None => {
                let file = File::open(path).map_err(|error| Failure::system("open", path.display(), &error))?;
                Box::new(move |offset, buffer| file.read_exact_at(buffer, start + offset))
            }
        };
        let failed = |error| {
            Failure::new(
                Exit::Error,
                format!("lane {index} of {}: {error}", path.display()),
                "is `size` in [log] what it was when the pool was made?",
            )
        };
        let mut inspector = Inspector::open(read, bytes).map_err(failed)?;
        let content = inspect(&mut inspector, index).map_err(failed)?;
        lanes.push(Lane { lane: inspector.lane(), content });
    }
    Ok(Lanes { lanes })
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
}

fn text_of_rows(lanes: &Lanes<Rows>) -> String {
    let mut text = String::new();
    for lane in &lanes.lanes {
        let LaneRow { lane: index, pool, role, portion, ring_bytes, newest_lsn, .. } = &lane.lane;
        let ring = show_bytes(*ring_bytes);
        put(
            &mut text,
            format_args!("lane {index} of pool {pool}, {role} portion {portion}: {ring}, newest LSN {newest_lsn}\n"),
        );
        for row in &lane.content.rows {
            match row {
                Row::Gap { lsn, end_lsn } => {
                    put(&mut text, format_args!("  {lsn:>14}  gap of {} bytes\n", end_lsn - lsn))
                }
                Row::Record(record) => {
                    let damage = if record.whole { "" } else { "  PAYLOAD DAMAGED" };
                    put(
                        &mut text,
                        format_args!(
                            "  {:>14}  epoch {}  {:<12} object {} offset {} argument {} payload {}{damage}\n",
                            record.lsn,
                            record.epoch,
                            record.kind,
                            record.object,
                            record.offset_bytes,
                            record.argument,
                            record.payload_bytes
                        ),
                    );
                }
            }
        }
    }
    text
}

fn text_of_verdicts(lanes: &Lanes<Verdict>) -> String {
    let mut text = String::new();
    for lane in &lanes.lanes {
        let verdict = &lane.content;
        let head = if verdict.hole.is_some() { "HOLE" } else { "WHOLE" };
        put(
            &mut text,
            format_args!(
                "lane {}  {head}  {} change(s) with {} from LSN {} to {}, then {}\n",
                lane.lane.lane,
                verdict.changes,
                show_bytes(verdict.payload_bytes),
                verdict.from_lsn,
                verdict.end_lsn,
                verdict.end
            ),
        );
        for detail in
            [Some(&verdict.detail).filter(|detail| !detail.is_empty()), verdict.hole.as_ref()].into_iter().flatten()
        {
            put(&mut text, format_args!("  {detail}\n"));
        }
    }
    text
}

#[derive(Serialize)]
struct Inspection {
    copies: Vec<Copy>,
    /// The newest whole one; none when the devices do not make a pool, which `problem` then explains.
    newest: Option<Newest>,
    problem: Option<String>,
}

#[derive(Serialize)]
struct Newest {
    pool: String,
    name: String,
    cp: u64,
    epoch: u64,
    time_ns: u64,
    free_blocks: u64,
    deferred_blocks: u64,
    applied_lsn: Vec<u64>,
    device_blocks: Vec<u64>,
}

impl From<Superblock> for Newest {
    fn from(superblock: Superblock) -> Self {
        Self {
            pool: superblock.pool.to_string(),
            name: superblock.name,
            cp: superblock.cp.0,
            epoch: superblock.epoch.0,
            time_ns: superblock.time_ns,
            free_blocks: superblock.free_blocks,
            deferred_blocks: superblock.deferred_blocks,
            applied_lsn: superblock.applied.iter().map(|lsn| lsn.0).collect(),
            device_blocks: superblock.devices.iter().map(|device| device.block_count).collect(),
        }
    }
}

/// `twinlog inspect`
pub(crate) fn inspect(args: &InspectArgs, output: &Output) -> Result<Exit, Failure> {
    let config = configuration(&args.node)?;
    let (devices, names) = (Devices::offline(config.nvme), config.pool.devices);
    if let Some(place) = &args.block {
        return show_block(&devices, &names, place, output);
    }
    let copies = superblocks::copies(&devices, &names)?;
    let (newest, problem) = match superblocks::assemble(&devices, &names) {
        Ok(found) => (Some(Newest::from(found.superblock)), None),
        Err(failure) => (None, Some(failure.message)),
    };
    let exit = if problem.is_none() { Exit::Done } else { Exit::Error };
    let inspection = Inspection { copies, newest, problem };
    output.show(&inspection, || text_of_inspection(&inspection))?;
    Ok(exit)
}

fn text_of_inspection(found: &Inspection) -> String {
    let mut text = String::new();
    if let Some(newest) = &found.newest {
        put(
            &mut text,
            format_args!("pool {} ({}), CP {}, epoch {}\n", newest.name, newest.pool, newest.cp, newest.epoch),
        );
        put(&mut text, format_args!("  free {} blocks, freed soon {}\n", newest.free_blocks, newest.deferred_blocks));
        for (lane, lsn) in newest.applied_lsn.iter().enumerate() {
            put(&mut text, format_args!("  lane {lane} applied up to LSN {lsn}\n"));
        }
        for (index, blocks) in newest.device_blocks.iter().enumerate() {
            put(&mut text, format_args!("  device {index} has {}\n", show_bytes(blocks * BLOCK_BYTES)));
        }
    }
    if let Some(problem) = &found.problem {
        put(&mut text, format_args!("{problem}\n"));
    }
    for copy in &found.copies {
        let Copy { device, block, state, cp, epoch, .. } = copy;
        put(&mut text, format_args!("  {device} block {block}: {state}, CP {cp}, epoch {epoch}\n"));
    }
    text
}

fn show_block(devices: &Devices, names: &[PathBuf], place: &str, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Block<'a> {
        device: String,
        block: u64,
        hex: &'a [String],
    }
    let usage =
        || Failure::new(Exit::Usage, format!("`{place}` names no block"), "DEVICE:BLOCK, for example --block 0:17");
    let (device, block) = place.split_once(':').ok_or_else(usage)?;
    let (index, block): (usize, u64) = (device.parse().map_err(|_| usage())?, block.parse().map_err(|_| usage())?);
    let path = names.get(index).ok_or_else(usage)?;
    let (medium, block_count) = devices.read(path)?;
    if block >= block_count {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} has {block_count} blocks, no block {block}", path.display()),
            "",
        ));
    }
    let bytes = superblocks::read_block(&medium, path, block)?;
    let hex: Vec<String> = bytes.chunks(32).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    output.show(&Block { device: path.display().to_string(), block, hex: &hex }, || {
        let mut text = String::new();
        for (row, digits) in hex.iter().enumerate() {
            put(&mut text, format_args!("{:04x}  {digits}\n", row * 32));
        }
        text
    })?;
    Ok(Exit::Done)
}
