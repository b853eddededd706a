//! A pair of real processes with clients at both nodes and a witness, in every kind of trouble at once: what is answered is never lost.
//!
//! A round is: `twinlog-load` writes to both volumes, each through a node that is drawn, with a journal of what was answered; one to three
//! troubles begin one after the other, at random instants: a node gets SIGKILL, or both do; a node gets SIGSTOP, and SIGCONT later; the interconnect is
//! cut; the witness is killed. They are mended in a random order, the pair comes to rest, and `twinlog-load --prove` reads both volumes through both nodes
//! and compares them with the journals.
//!
//! ```text
//! cargo test --release --test process trouble:: -- --ignored --nocapture       200 rounds
//! TWINLOG_TROUBLE_ROUNDS=1000 TWINLOG_SEED=7 cargo test --release ...         more of them, from a given seed
//! ```

use crate::common::{
    self, number,
    pair::{Pair, end_load, load_with, prove},
    pause_ms, signal,
    witness::{Cable, Witness, moved},
};
use std::{
    fmt::{self, Write as _},
    fs,
    path::PathBuf,
    process::Child,
};
use twinlog::base::Prng;

const NODES: [&str; 2] = ["a", "b"];

/// What goes wrong, until it is mended.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    /// A node is killed; its supervisor starts it again.
    Killed(usize),
    BothKilled,
    /// This process of a node gets no turns.
    Stopped(usize, u32),
    /// The nodes do not reach each other.
    Cut,
    /// Nobody reaches the witness.
    NoWitness,
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(node) => write!(formatter, "{} killed", NODES[*node]),
            Self::BothKilled => formatter.write_str("both killed"),
            Self::Stopped(node, _) => write!(formatter, "{} stopped", NODES[*node]),
            Self::Cut => formatter.write_str("nodes cut off from each other"),
            Self::NoWitness => formatter.write_str("witness killed"),
        }
    }
}

struct Site {
    pair: Pair,
    witness: Witness,
    cable: Cable,
}

impl Site {
    fn new() -> Self {
        let quick = [("deadline_ms = 1000", "deadline_ms = 500"), ("giveback_after_s = 5", "giveback_after_s = 1")];
        let (pair, witness, cable) = moved(&[], &quick);
        Self { pair, witness, cable }
    }

    /// The process of a node, while it has one.
    fn process(&self, node: usize) -> Option<u32> {
        let process = self.pair.pid(NODES[node]);
        let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        name.starts_with("twinlog").then_some(process)
    }

    fn kill(&self, node: usize) {
        if let Some(process) = self.process(node) {
            signal(process, "KILL");
        }
    }

    /// Begins a trouble that is drawn, unless it is there already.
    fn begin(&mut self, prng: &mut Prng, there: &[Trouble]) -> Option<Trouble> {
        let node = usize::from(prng.chance(1, 2));
        let trouble = match prng.below(5) {
            0 => Trouble::Killed(node),
            1 => Trouble::BothKilled,
            2 => Trouble::Stopped(node, self.process(node)?),
            3 => Trouble::Cut,
            _ => Trouble::NoWitness,
        };
        // A process that stands still dies of SIGKILL all the same, and could not be told to go on.
        let stands = |there: &Trouble| matches!(there, Trouble::Stopped(..));
        if there.contains(&trouble) || there.iter().any(stands) && !matches!(trouble, Trouble::Cut | Trouble::NoWitness)
        {
            return None;
        }
        match trouble {
            Trouble::Killed(node) => self.kill(node),
            Trouble::BothKilled => (0..NODES.len()).for_each(|node| self.kill(node)),
            Trouble::Stopped(_, process) => signal(process, "STOP"),
            Trouble::Cut => self.cable.cut(true),
            Trouble::NoWitness => self.witness.kill(),
        }
        Some(trouble)
    }

    fn mend(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Killed(_) | Trouble::BothKilled => {}
            Trouble::Stopped(_, process) => signal(process, "CONT"),
            Trouble::Cut => self.cable.cut(false),
            Trouble::NoWitness => self.witness.restart(),
        }
    }

    /// Load on the volume of a node's pool, through node `through` as long as it can be reached there.
    fn load(&self, pool: usize, through: usize, seed: u64) -> Child {
        let volume = volume(pool);
        let other_way = format!("--alternate={}", self.pair.uri(NODES[1 - through], &volume));
        let options = [other_way, "--reconnect=120".to_owned()];
        load_with(&self.pair.uri(NODES[through], &volume), &self.journal(pool), seed, &options)
    }

    fn journal(&self, pool: usize) -> PathBuf {
        self.pair.folder.path().join(format!("journal-{}", NODES[pool]))
    }
}

fn volume(pool: usize) -> String {
    format!("vol-{}", NODES[pool])
}

fn rounds(count: u64) {
    let seed = common::seed();
    println!("seed {seed}, {count} rounds");
    let mut prng = Prng::new(seed);
    let mut site = Site::new();
    for round in 0..count {
        let through = [0, 1].map(|_| usize::from(prng.chance(1, 2)));
        let mut loads = [0, 1].map(|pool| site.load(pool, through[pool], prng.below(1 << 60)));
        pause_ms(prng.between(100, 1000));
        let (mut there, mut story) = (Vec::new(), String::new());
        for _ in 0..prng.between(1, 3) {
            if let Some(trouble) = site.begin(&mut prng, &there) {
                there.push(trouble);
                write!(story, "{trouble}, ").expect("memory");
            }
            pause_ms(prng.between(0, 4000));
        }
        while !there.is_empty() {
            let next = usize::try_from(prng.below(there.len() as u64)).expect("few");
            site.mend(there.swap_remove(next));
            pause_ms(prng.between(0, 1000));
        }
        site.pair.until_ok();
        for (load, pool) in loads.iter_mut().zip(NODES) {
            let is_over = load.try_wait().expect("a child of ours");
            assert_eq!(
                is_over,
                None,
                "seed {seed} round {round}: {story}a client of pool {pool} heard an error\n{}",
                site.pair.said()
            );
            end_load(load);
        }
        for pool in [0, 1] {
            for node in NODES {
                let said = prove(&site.pair.uri(node, &volume(pool)), &site.journal(pool));
                let said = said
                    .unwrap_or_else(|said| panic!("seed {seed} round {round}: {story}{said}\n{}", site.pair.said()));
                if node == NODES[pool] {
                    story += said.lines().next().unwrap_or_default();
                }
            }
        }
        println!("round {round}: {story}");
    }
}

#[test]
fn no_answered_write_is_lost_whatever_happens() {
    rounds(2);
}

#[test]
#[ignore = "takes an hour and a half"]
fn no_answered_write_is_lost_in_much_trouble() {
    rounds(number("TWINLOG_TROUBLE_ROUNDS").unwrap_or(200));
}
