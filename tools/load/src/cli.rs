//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum};

use crate::{
    readback::Level,
    target::{Target, parse_target},
    units::{BlockRange, parse_blocks, parse_duration, parse_size},
};

/// Puts load on a block target, measures it, and proves that no acknowledged write was lost.
///
/// Exit codes: 0 done (or proven), 1 a request failed or a proof found a loss, 2 usage, 3 the target was lost or could not be reached.
#[derive(Clone, Debug, Parser)]
#[command(name = "twinlog-load", version)]
pub(crate) struct Cli {
    /// nbd+unix:///EXPORT?socket=PATH, nbd://HOST:PORT/EXPORT, nvme-tcp://HOST:PORT[,HOST:PORT]/[NQN]?nsid=N, or the path of a file or block device
    #[arg(value_parser = parse_target)]
    pub(crate) target: Target,
    /// What the requests do
    #[arg(long, value_enum, default_value = "randwrite")]
    pub(crate) rw: Pattern,
    /// Request size, or a range of sizes such as 512-64k
    #[arg(long, value_parser = parse_blocks, default_value = "4k")]
    pub(crate) bs: BlockRange,
    /// Requests start and end at multiples of this (default: the largest number that divides the sizes of --bs)
    #[arg(long, value_parser = parse_size)]
    pub(crate) align: Option<u64>,
    /// Requests in flight, over all connections
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) qd: u16,
    /// NVMe/TCP: this host's secret is in FILE (`-`: standard input), as DHHC-1:hh:base64:, for a target that demands one of the host named by hostnqn=
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// NVMe/TCP: the controller has to prove that it knows the secret in FILE
    #[arg(long, value_name = "FILE", requires = "secret_file")]
    pub(crate) controller_secret_file: Option<PathBuf>,
    /// NBD connections, or I/O queues of each NVMe path
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) connections: u16,
    /// How long to measure, in seconds (or 500ms, 2m)
    #[arg(long, value_parser = parse_duration, default_value = "10")]
    pub(crate) time: Duration,
    /// Load before measuring
    #[arg(long, value_parser = parse_duration, default_value = "2")]
    pub(crate) warmup: Duration,
    /// End after this many requests
    #[arg(long, value_name = "N")]
    pub(crate) ops: Option<u64>,
    /// Use only this much of the target; a file is created or made longer to have it
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Start at this byte of the target
    #[arg(long, value_parser = parse_size, default_value = "0")]
    pub(crate) offset: u64,
    /// Reads among the requests of rw and randrw, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 70, value_parser = percent())]
    pub(crate) mix: u8,
    /// Write-zeroes requests among the changes, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = percent())]
    pub(crate) zero: u8,
    /// Trim requests among the changes, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = percent())]
    pub(crate) trim: u8,
    /// Writes with FUA: all, or so many percent of them
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_value = "0", default_missing_value = "100", value_parser = percent())]
    pub(crate) fua: u8,
    /// A flush after every N changes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) flush_every: u64,
    /// No flush at the end (and so no durable rate)
    #[arg(long)]
    pub(crate) no_flush: bool,
    /// Open loop: send N requests per second, whatever the target does; latency counts from the intended time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) rate: Option<u64>,
    /// Poll without sleeping: steadier figures for a whole core
    #[arg(long)]
    pub(crate) busy: bool,
    /// Makes the sequence of requests repeatable (default: drawn from the clock)
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Write everything once before the load
    #[arg(long)]
    pub(crate) fill: bool,
    /// Stamp what is written, check every read, and read everything back at the end
    #[arg(long)]
    pub(crate) verify: bool,
    /// Record every write and acknowledgement in FILE, for a later --prove; an existing journal is continued
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: Option<PathBuf>,
    /// No load: read everything back and prove that no write of the journal FILE was lost
    #[arg(long, value_name = "FILE", conflicts_with_all = ["journal", "verify", "fill", "rate", "report"])]
    pub(crate) prove: Option<PathBuf>,
    /// Which writes --prove demands: all acknowledged ones, or only those with FUA or before an answered flush
    #[arg(long, value_enum, default_value = "acknowledged")]
    pub(crate) level: Level,
    /// The target is new: what was never written must read as zeroes
    #[arg(long)]
    pub(crate) blank: bool,
    /// When the connection is lost, try again for so long and send unanswered requests once more
    #[arg(long, value_name = "SECONDS", value_parser = parse_duration)]
    pub(crate) reconnect: Option<Duration>,
    /// Another way to the same export, tried in turn while there is no connection; may be given several times
    #[arg(long, value_name = "URI", value_parser = parse_target, requires = "reconnect")]
    pub(crate) alternate: Vec<Target>,
    /// The target counts as lost when it answers nothing for so long
    #[arg(long, value_name = "SECONDS", value_parser = parse_duration, default_value = "60")]
    pub(crate) timeout: Duration,
    /// End after more than N failed requests
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) max_errors: u64,
    /// Files: go through the page cache instead of O_DIRECT
    #[arg(long)]
    pub(crate) buffered: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
    /// Write a page with pictures to this file
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Moments to mark in the pictures; per line of FILE, which is read at the end: seconds since 1970, a space, what happened
    #[arg(long, value_name = "FILE", requires = "report")]
    pub(crate) marks: Option<PathBuf>,
    /// The command line's words, for reports.
    #[arg(skip)]
    pub(crate) arguments: Vec<String>,
}

/// The kinds of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Pattern {
    RandWrite,
    RandRead,
    RandRw,
    Write,
    Read,
    Rw,
}

impl Pattern {
    /// Whether the places are random.
    pub(crate) fn random(self) -> bool {
        matches!(self, Self::RandWrite | Self::RandRead | Self::RandRw)
    }

    /// Reads among the requests, in percent, when mixed patterns have `mix`.
    pub(crate) fn read_percent(self, mix: u8) -> u8 {
        match self {
            Self::RandWrite | Self::Write => 0,
            Self::RandRead | Self::Read => 100,
            Self::RandRw | Self::Rw => mix,
        }
    }
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

impl Cli {
    /// Whether the content changes.
    pub(crate) fn writes(&self) -> bool {
        self.prove.is_none() && (self.fill || self.rw.read_percent(self.mix) < 100)
    }
}

fn percent() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["twinlog-load"], arguments].concat())
    }

    #[test]
    fn bounds_are_kept_at_the_bound() {
        for good in [
            ["--qd", "4096"],
            ["--connections", "64"],
            ["--mix", "100"],
            ["--rate", "1"],
            ["--bs", "1-32m"],
            ["--warmup", "0"],
        ] {
            assert!(parse(&[&["x"], good.as_slice()].concat()).is_ok(), "{good:?}");
        }
        for bad in [
            ["--qd", "0"],
            ["--qd", "4097"],
            ["--connections", "65"],
            ["--mix", "101"],
            ["--rate", "0"],
            ["--rw", "trim"],
        ] {
            assert!(parse(&[&["x"], bad.as_slice()].concat()).is_err(), "{bad:?}");
        }
        assert!(parse(&["x", "--prove", "a", "--journal", "b"]).is_err());
        assert!(
            parse(&["x", "--controller-secret-file", "b"]).is_err(),
            "the controller proves itself to a host that does"
        );
    }

    #[test]
    fn fua_stands_alone_or_with_a_percentage() {
        assert_eq!(parse(&["x"]).unwrap().fua, 0);
        assert_eq!(parse(&["x", "--fua"]).unwrap().fua, 100);
        assert_eq!(parse(&["x", "--fua=30"]).unwrap().fua, 30);
        assert_eq!(parse(&["--fua", "x"]).unwrap().fua, 100);
    }
}
