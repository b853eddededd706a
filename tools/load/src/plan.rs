//! From wishes and a target's geometry to a plan that can be carried out, or a reason why not. Everything is checked here, so that the
//! load itself meets no impossible request.

use crate::{
    cli::Cli,
    engine::{Buffers, Geometry, MEMORY_LIMIT},
    journal::Header,
    load::Pace,
    model::{CELLS_LIMIT, Region},
    readback::ReadBack,
    stamp::STAMP_BYTES,
    units::{BlockRange, index, show_bytes},
    workload::Shape,
};

/// Reads and writes of fills and read-backs are at most this long.
const BULK_BYTES: u64 = 256 << 10;
/// What fills and read-backs may add to the memory of the slots.
const BULK_MEMORY: u64 = 64 << 20;

/// What will be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) header: Header,
    /// Determines this call's requests; a continued journal keeps the seed of its first call.
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    pub(crate) pace: Pace,
    pub(crate) read_back: ReadBack,
    /// Bytes per request of a fill.
    pub(crate) fill_bytes: u64,
    /// What is read and written is stamped and checked.
    pub(crate) prove: bool,
    slot_bytes: u64,
}

impl Plan {
    /// The plan for `cli` on a target with this geometry. `known` is the header of a journal that is proved or continued; `fresh` is the
    /// seed, and the identity of a run that begins.
    pub(crate) fn new(
        cli: &Cli,
        geometry: &Geometry,
        known: Option<Header>,
        fresh: (u64, u64),
    ) -> Result<Self, String> {
        let prove = cli.verify || cli.journal.is_some() || cli.prove.is_some();
        let region = match known {
            Some(header) if cli.prove.is_some() => header.region,
            _ => region(cli, geometry)?,
        };
        check_region(region, geometry, prove)?;
        if let Some(header) = known.filter(|header| header.region != region) {
            return Err(format!(
                "the journal is about {}, this load about {}",
                show_region(header.region),
                show_region(region)
            ));
        }
        if cli.prove.is_none() {
            check_abilities(cli, geometry)?;
            check_blocks(cli.bs, region, geometry)?;
        }
        let depth = u64::from(cli.qd);
        let bulk = BULK_BYTES.min(BULK_MEMORY / depth).min(geometry.request_limit_bytes).min(region.size_bytes);
        let bulk = (bulk / region.cell_bytes).max(1) * region.cell_bytes;
        let block = if cli.prove.is_some() { 0 } else { cli.bs.max };
        let slot_bytes = block.max(if prove || cli.fill { bulk } else { 0 });
        if slot_bytes * depth > MEMORY_LIMIT {
            return Err(format!(
                "{depth} requests of {} in flight need more than 1 GiB: lower --qd or --bs",
                show_bytes(slot_bytes as f64)
            ));
        }
        let header = known.unwrap_or(Header { run: fresh.1, seed: fresh.0, region, blank: cli.blank });
        Ok(Self {
            header,
            seed: fresh.0,
            shape: shape(cli, region),
            pace: pace(cli, geometry),
            read_back: ReadBack { depth: usize::from(cli.qd), block_bytes: bulk, level: cli.level, stall: cli.timeout },
            fill_bytes: bulk,
            prove,
            slot_bytes,
        })
    }

    /// The memory of all slots.
    pub(crate) fn buffers(&self) -> Buffers {
        Buffers::new(self.pace.depth, index(self.slot_bytes))
    }
}

fn region(cli: &Cli, geometry: &Geometry) -> Result<Region, String> {
    let cell_bytes = cli.align.unwrap_or_else(|| divisor(cli.bs.min, cli.bs.max));
    if cell_bytes == 0 {
        return Err("--align must be at least 1".to_owned());
    }
    let left = geometry.size_bytes.checked_sub(cli.offset).ok_or("--offset lies beyond the target's end")?;
    let size = cli.size.unwrap_or(left);
    if size > left {
        return Err(format!(
            "the target has only {} from --offset, not --size {}",
            show_bytes(left as f64),
            show_bytes(size as f64)
        ));
    }
    Ok(Region { offset: cli.offset, size_bytes: size / cell_bytes * cell_bytes, cell_bytes })
}

fn check_region(region: Region, geometry: &Geometry, prove: bool) -> Result<(), String> {
    let Region { offset, size_bytes, cell_bytes } = region;
    if offset.checked_add(size_bytes).is_none_or(|end| end > geometry.size_bytes) {
        return Err(format!("the target has {} bytes, fewer than {}", geometry.size_bytes, show_region(region)));
    }
    if !offset.is_multiple_of(geometry.block_bytes) || !cell_bytes.is_multiple_of(geometry.block_bytes) {
        return Err(format!(
            "the target takes only multiples of {} bytes: see --bs, --align, --offset",
            geometry.block_bytes
        ));
    }
    if cell_bytes > geometry.request_limit_bytes {
        return Err(format!("the target takes requests of at most {} bytes", geometry.request_limit_bytes));
    }
    if prove && region.cells() > CELLS_LIMIT {
        return Err(format!(
            "{} are more than {CELLS_LIMIT} units to keep track of: lower --size or raise --align",
            show_region(region)
        ));
    }
    if prove && cell_bytes < STAMP_BYTES as u64 {
        return Err(format!(
            "a stamp takes {STAMP_BYTES} bytes: with --verify or --journal, --align must be at least that"
        ));
    }
    Ok(())
}

fn check_blocks(blocks: BlockRange, region: Region, geometry: &Geometry) -> Result<(), String> {
    let BlockRange { min, max } = blocks;
    if !min.is_multiple_of(region.cell_bytes) || !max.is_multiple_of(region.cell_bytes) {
        return Err(format!("the sizes of --bs must be multiples of --align {}", region.cell_bytes));
    }
    if max > geometry.request_limit_bytes {
        return Err(format!(
            "the target takes requests of at most {} bytes, fewer than --bs",
            geometry.request_limit_bytes
        ));
    }
    if max > region.size_bytes {
        return Err(format!("a request of {max} bytes does not fit into {}", show_region(region)));
    }
    Ok(())
}

fn check_abilities(cli: &Cli, geometry: &Geometry) -> Result<(), String> {
    let wants = [
        (cli.writes() && geometry.read_only, "is read-only: use --rw randread or read"),
        (cli.fua > 0 && !geometry.can_fua, "does not offer FUA"),
        (cli.flush_every > 0 && !geometry.can_flush, "does not offer flush"),
        (cli.zero > 0 && !geometry.can_zero, "does not offer write-zeroes"),
        (cli.trim > 0 && !geometry.can_trim, "does not offer trim"),
    ];
    match wants.iter().find(|(missing, _)| *missing) {
        Some((_, what)) => Err(format!("the target {what}")),
        None => Ok(()),
    }
}

fn shape(cli: &Cli, region: Region) -> Shape {
    Shape {
        region,
        blocks: cli.bs,
        random: cli.rw.random(),
        read_percent: cli.rw.read_percent(cli.mix),
        zero_percent: cli.zero,
        trim_percent: cli.trim,
        fua_percent: cli.fua,
        flush_every: cli.flush_every,
    }
}

fn pace(cli: &Cli, geometry: &Geometry) -> Pace {
    Pace {
        depth: usize::from(cli.qd),
        warmup: cli.warmup,
        time: cli.time,
        count: cli.ops,
        rate: cli.rate,
        busy: cli.busy,
        errors: cli.max_errors,
        stall: cli.timeout,
        reconnect: cli.reconnect,
        final_flush: geometry.can_flush && !cli.no_flush,
        in_order: !cli.rw.random(),
    }
}

fn show_region(region: Region) -> String {
    let Region { offset, size_bytes, cell_bytes } = region;
    format!("{size_bytes} bytes from byte {offset} in units of {cell_bytes}")
}

fn divisor(first: u64, second: u64) -> u64 {
    if second == 0 { first } else { divisor(second, first % second) }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    const GEOMETRY: Geometry = Geometry {
        size_bytes: 1 << 20,
        block_bytes: 512,
        request_limit_bytes: 65536,
        read_only: false,
        can_flush: true,
        can_fua: true,
        can_trim: false,
        can_zero: true,
        multi_conn: true,
    };

    fn plan_on(geometry: &Geometry, arguments: &str) -> Result<Plan, String> {
        let cli = Cli::try_parse_from(format!("twinlog-load x {arguments}").split_whitespace()).unwrap();
        Plan::new(&cli, geometry, None, (1, 2))
    }

    fn plan(arguments: &str) -> Result<Plan, String> {
        plan_on(&GEOMETRY, arguments)
    }

    #[test]
    fn cells_follow_the_sizes_unless_told_otherwise() {
        assert_eq!(plan("").unwrap().header.region.cell_bytes, 4096);
        assert_eq!(plan("--bs 512-64k").unwrap().header.region.cell_bytes, 512);
        assert_eq!(plan("--bs 6k-9k").unwrap().header.region.cell_bytes, 3072);
        assert_eq!(plan("--bs 8k --align 512 --size 10000").unwrap().header.region.size_bytes, 9728);
    }

    #[test]
    fn the_impossible_is_refused_at_the_bound() {
        for good in ["--bs 64k", "--offset 1044480", "--size 1m", "--size 4k", "--verify --bs 512 --qd 4096"] {
            assert!(plan(good).is_ok(), "{good}: {:?}", plan(good));
        }
        for bad in [
            "--bs 64k-128k",
            "--bs 100",
            "--align 0",
            "--align 3k",
            "--offset 1048577",
            "--offset 100 --size 4k",
            "--size 1048577",
            "--size 4095",
            "--trim 1",
            "--bs 512-1000",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn abilities_memory_and_stamps_are_checked() {
        let wide = Geometry { size_bytes: 1 << 62, block_bytes: 1, request_limit_bytes: 32 << 20, ..GEOMETRY };
        assert!(plan_on(&wide, "--bs 32m --qd 32").is_ok() && plan_on(&wide, "--bs 32m --qd 33").is_err());
        assert!(plan_on(&wide, "--bs 31").is_ok() && plan_on(&wide, "--bs 31 --verify --size 1m").is_err());
        assert!(plan_on(&wide, "--verify").is_err() && plan_on(&wide, "--verify --size 512g").is_ok());
        let frozen = Geometry { read_only: true, can_fua: false, can_flush: false, ..GEOMETRY };
        assert!(plan_on(&frozen, "--rw randread").is_ok() && plan_on(&frozen, "").is_err());
        assert!(plan_on(&frozen, "--rw read --fua").is_err() && plan_on(&frozen, "--rw read --flush-every 1").is_err());
    }

    #[test]
    fn a_journal_must_be_about_the_same_region() {
        let known = plan("").unwrap().header;
        let cli =
            |arguments: &str| Cli::try_parse_from(format!("twinlog-load x {arguments}").split_whitespace()).unwrap();
        assert_eq!(Plan::new(&cli("--journal j"), &GEOMETRY, Some(known), (7, 8)).unwrap().header, known);
        assert!(Plan::new(&cli("--journal j --bs 8k"), &GEOMETRY, Some(known), (7, 8)).is_err());
        assert!(Plan::new(&cli("--prove j --bs 8k"), &GEOMETRY, Some(known), (7, 8)).is_ok());
        let smaller = Geometry { size_bytes: (1 << 20) - 512, ..GEOMETRY };
        assert!(Plan::new(&cli("--prove j"), &smaller, Some(known), (7, 8)).is_err());
    }
}
