//! A node's thread at the mailbox: it may wait for the disk, but for nobody else.
//!
//! # Invariants
//!
//! 1. The thread waits for no lock: a change of a register whose lock another process has is tried again between other calls, for
//!    [`SWAP_WAIT_MAX`] at most. So a partner that stands still in the middle of a change stops neither reads nor beats nor looks at locks.
//! 2. This node's beat block is locked for as long as the process lives: who gets that lock knows that the process has ended. The devices'
//!    own locks, which a pool's opener waits for, make it certain that nothing of it is still on its way to them.
//! 3. A change whose outcome is not known is reported as such, never as done or as failed.
//!
//! # Failure cases
//!
//! A damaged block, an I/O error or a foreign file makes every call that meets it fail with the reason; nothing is mended by guessing.

use super::{
    mailbox_file::MailboxFile,
    partner_beats::{self, Beats},
    registers::{ArbiterFence, Call, Reply, Worker, fenced, now},
};
use std::{
    collections::VecDeque,
    io,
    path::Path,
    time::{Duration, Instant},
};
use twinlog::{
    base::{Epoch, Incarnation, PairId, PoolId},
    format::register::{Beat, NodeIndex, Register},
    pair::{
        arbiter::{Answer, SwapOutcome},
        decide::Fence,
        witness::{BeatRequest, PartnerBeat},
    },
};
use twinlog_fence::Holder;

/// How long a change of a register is tried while another process has its lock. That holds it for two flushes of a disk.
const SWAP_WAIT_MAX: Duration = Duration::from_secs(1);
/// Time between two tries.
const SWAP_POLL: Duration = Duration::from_millis(2);
/// How long a process that was killed may take to end: the kernel takes it apart, and waits for disks where it has to.
const KILL_WAIT_MAX: Duration = Duration::from_secs(10);
/// Time between two looks at it.
const TRIAL_POLL: Duration = Duration::from_millis(5);

/// A change of a register that waits for its lock.
struct WaitingSwap {
    old: Option<Register>,
    new: Register,
    since: Instant,
    /// When it was last tried.
    tried: Option<Instant>,
}

/// Processes that were killed for a pool, until they have ended.
struct Killing {
    pool: PoolId,
    epoch: Epoch,
    killed: Vec<Holder>,
    since: Instant,
}

/// The thread's work at a mailbox.
pub(super) struct MailboxWorker {
    file: MailboxFile,
    me: NodeIndex,
    incarnation: Incarnation,
    beats: Beats,
    /// At most one for each pool: a controller waits for the answer.
    waiting: VecDeque<WaitingSwap>,
    /// One: fences are tried one after the other.
    killing: Option<Killing>,
}

impl MailboxWorker {
    /// Opens the mailbox of the pair of `nodes`, of which this one is the first. `lease` is how long a node may serve after a beat.
    pub(super) fn open(path: &Path, nodes: [&str; 2], incarnation: Incarnation, lease: Duration) -> io::Result<Self> {
        let file = MailboxFile::open(path)?;
        let mut sorted = nodes;
        sorted.sort_unstable();
        if file.nodes() != &sorted {
            let [first, second] = file.nodes();
            return Err(io::Error::other(format!("it belongs to the pair of {first} and {second}")));
        }
        let me = if sorted[0] == nodes[0] { NodeIndex::First } else { NodeIndex::Second };
        if !file.lock_life(me)? {
            return Err(io::Error::other(format!("another process runs as node {}", nodes[0])));
        }
        let (beats, waiting) = (Beats::new(incarnation, lease), VecDeque::new());
        Ok(Self { file, me, incarnation, beats, waiting, killing: None })
    }

    pub(super) fn pair(&self) -> PairId {
        self.file.pair()
    }

    fn beats(&mut self) -> &mut Beats {
        &mut self.beats
    }

    /// Tries the change that has waited longest; one whose lock is held goes to the end.
    fn try_swap(&mut self) -> Option<Reply> {
        let mut swap = self.waiting.pop_front()?;
        if swap.tried.is_some_and(|at| at.elapsed() < SWAP_POLL) {
            self.waiting.push_back(swap);
            return None;
        }
        swap.tried = Some(now());
        let outcome = match self.file.try_swap(swap.old, swap.new) {
            Ok(Some(outcome)) => outcome,
            Ok(None) if swap.since.elapsed() < SWAP_WAIT_MAX => {
                self.waiting.push_back(swap);
                return None;
            }
            Ok(None) => SwapOutcome::Unknown(format!(
                "the mailbox: the other node has held the lock of a register for {} ms: does it stand still?",
                SWAP_WAIT_MAX.as_millis()
            )),
            Err(error) => SwapOutcome::Unknown(words(error)),
        };
        Some(Reply::Arbiter(Answer::Swapped(swap.new.pool, outcome)))
    }

    /// Whether the partner's process has ended.
    fn probe(&self, pool: PoolId, epoch: Epoch) -> Reply {
        match self.file.is_dead(self.me.other()) {
            Ok(true) => fenced(pool, epoch, Fence::Confirmed, "its process has ended: its lock is free".to_owned()),
            Ok(false) => fenced(pool, epoch, Fence::Held, "its process holds its lock".to_owned()),
            Err(error) => fenced(pool, epoch, Fence::Held, words(error)),
        }
    }

    /// Kills the process of this machine that has the partner's lock.
    fn kill(&mut self, pool: PoolId, epoch: Epoch) -> Option<Reply> {
        let killed = self.file.holders(self.me.other()).and_then(|holders| {
            for holder in &holders {
                tracing::warn!(
                    holder = holder.name(),
                    "killing the partner: it holds its lock and gives no sign of life"
                );
                holder.kill()?;
            }
            Ok(holders)
        });
        match killed {
            Ok(killed) => {
                self.killing = Some(Killing { pool, epoch, killed, since: now() });
                None
            }
            Err(error) => Some(fenced(pool, epoch, Fence::Held, format!("it cannot be killed: {error}"))),
        }
    }

    /// Whether those that were killed have ended. What they had on its way to the pool's devices goes on for a moment; whoever opens the devices waits for
    /// their locks.
    fn follow_killing(&mut self) -> Option<Reply> {
        let Killing { pool, epoch, killed, since } = self.killing.take()?;
        let names = killed.iter().map(Holder::name).collect::<Vec<_>>().join(", ");
        let end = |result, said| Some(fenced(pool, epoch, result, said));
        match self.file.is_dead(self.me.other()) {
            Ok(true) if killed.is_empty() => return end(Fence::Confirmed, "its process has ended".to_owned()),
            Ok(true) => return end(Fence::Confirmed, format!("{names} was killed and has ended")),
            Ok(false) if killed.is_empty() => {
                return end(Fence::Held, "no process that can be seen here holds its lock".to_owned());
            }
            Ok(false) => {}
            Err(error) => return end(Fence::Held, words(error)),
        }
        // Somebody has started it again: who holds the lock after they have ended is another process, and has claimed nothing at this epoch.
        let has_ended = killed.iter().all(Holder::has_ended);
        if has_ended && self.file.holders(self.me.other()).is_ok_and(|holders| !holders.is_empty()) {
            return end(Fence::Confirmed, format!("{names} was killed and has ended; another one has been started"));
        }
        if since.elapsed() >= KILL_WAIT_MAX {
            let limit = KILL_WAIT_MAX.as_secs();
            return end(Fence::Held, format!("{names} was killed and has not ended within {limit} s"));
        }
        self.killing = Some(Killing { pool, epoch, killed, since });
        None
    }

    fn beat(&mut self, time_ns: u64) -> Result<bool, String> {
        let BeatRequest { count, fences, time_ns } = self.beats.next(time_ns);
        let (node, incarnation) = (self.me, self.incarnation);
        let written = self.file.write_beat(&Beat { node, incarnation, count, fences, time_ns });
        let theirs = written.and_then(|()| self.file.read_beat(node.other()));
        let theirs = theirs.map_err(|error| {
            self.beats.lose_sight();
            words(error)
        })?;
        self.beats.heard(theirs.as_ref().map(PartnerBeat::from))
    }
}

impl Worker for MailboxWorker {
    fn perform(&mut self, call: Call) -> Option<Reply> {
        match call {
            Call::Read(pool) => Some(Reply::Arbiter(Answer::Read(pool, self.file.read(pool).map_err(words)))),
            Call::Swap(old, new) => {
                self.waiting.push_back(WaitingSwap { old, new, since: now(), tried: None });
                None
            }
            Call::Beat(time_ns) => Some(Reply::Arbiter(Answer::Beat(self.beat(time_ns)))),
            Call::Fence(pool, epoch, ArbiterFence::Lock) => Some(self.probe(pool, epoch)),
            Call::Fence(pool, epoch, ArbiterFence::Process) => self.kill(pool, epoch),
            Call::Fence(pool, epoch, ArbiterFence::Lease) => {
                self.beats.begin(pool, epoch);
                None
            }
        }
    }

    fn go_on(&mut self) -> Option<Reply> {
        let swapped = (0..self.waiting.len()).find_map(|_| self.try_swap());
        let reply = swapped.or_else(|| self.follow_killing());
        reply.or_else(|| partner_beats::follow(self, Self::beats, |worker| worker.beat(0)))
    }

    fn patience(&self) -> Option<Duration> {
        let has_begun = self.killing.is_some() || self.beats.is_trying();
        if self.waiting.is_empty() { has_begun.then_some(TRIAL_POLL) } else { Some(SWAP_POLL) }
    }
}

fn words(error: io::Error) -> String {
    format!("the mailbox: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        compose::mailbox_file::DAMAGED_BEATS_MAX,
        compose::registers::{
            self, CALLS_MAX,
            conformance::{self, NoWaker, answer, fenced_by},
        },
        provision,
    };
    use std::{fs::File, sync::Arc};
    use tempfile::TempDir;
    use twinlog::{
        base::{PortionId, limits::BLOCK_BYTES},
        format::register::register_blocks,
        pair::{arbiter::Arbiter, ownership},
    };

    /// Long enough for every other test.
    const LEASE: Duration = Duration::from_secs(60);

    fn opened(
        path: &Path,
        nodes: [&str; 2],
        life: u128,
    ) -> io::Result<(registers::Registers, registers::ArbiterFences, PairId)> {
        let worker = MailboxWorker::open(path, nodes, Incarnation(life), LEASE)?;
        let pair = worker.pair();
        let (registers, fences) = registers::start(worker, Arc::new(NoWaker))?;
        Ok((registers, fences, pair))
    }

    fn made() -> (TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("mailbox");
        provision::make_mailbox(&path, ["b", "a"]).expect("made");
        (directory, path)
    }

    #[test]
    fn a_lock_that_is_never_released_stops_only_changes_of_its_register() {
        let (_directory, path) = made();
        let (mut a, _probe_b, _) = opened(&path, ["a", "b"], 1).expect("a");
        let [first, second] = [7, 8].map(|pool| ownership::create(PoolId(pool), Epoch(2), PortionId(5), 0));
        for register in [first, second] {
            a.compare_and_swap(None, register);
            assert_eq!(answer(&mut a), Answer::Swapped(register.pool, SwapOutcome::Done(register)));
        }
        let stopped = MailboxFile::open(&path).expect("as another process");
        assert!(stopped.lock(register_blocks(0)[0], 2).expect("locked"));
        let next = |register| ownership::claim(register, twinlog::format::register::Side::Home, PortionId(5), 0);
        let (third, fourth) = (next(&first), next(&second));
        a.compare_and_swap(Some(first), third);
        a.compare_and_swap(Some(second), fourth);
        assert_eq!(answer(&mut a), Answer::Swapped(second.pool, SwapOutcome::Done(fourth)));
        a.read(first.pool);
        assert_eq!(answer(&mut a), Answer::Read(first.pool, Ok(Some(first))));
        a.beat(0);
        assert_eq!(answer(&mut a), Answer::Beat(Ok(false)));
        let given_up = answer(&mut a);
        assert!(matches!(&given_up, Answer::Swapped(pool, SwapOutcome::Unknown(_)) if *pool == first.pool));
        a.compare_and_swap(Some(first), third);
        drop(stopped);
        assert_eq!(answer(&mut a), Answer::Swapped(first.pool, SwapOutcome::Done(third)));
    }

    #[test]
    fn more_calls_than_there_is_room_for_are_answered_too() {
        let (_directory, path) = made();
        let (mut a, mut probe_b, _) = opened(&path, ["a", "b"], 1).expect("a");
        for _ in 0..8 * CALLS_MAX {
            a.read(PoolId(7));
            a.beat(0);
            probe_b.fence(PoolId(7), Epoch(1), ArbiterFence::Lock);
        }
        let (mut answered, mut probed) = (0, 0);
        while answered < 16 * CALLS_MAX || probed < 8 * CALLS_MAX {
            answered += a.poll().into_iter().count();
            probed += probe_b.poll().into_iter().count();
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_damaged_beat_of_a_dead_partner_stops_nobody() {
        let (_directory, path) = made();
        let (mut a, _probe_b, _) = opened(&path, ["a", "b"], 1).expect("a");
        let file = File::options().write(true).open(&path).expect("there");
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", NodeIndex::Second.beat_block() * BLOCK_BYTES)
            .expect("written");
        let renewed = (0..2 * DAMAGED_BEATS_MAX).any(|_| {
            a.beat(0);
            answer(&mut a) == Answer::Beat(Ok(false))
        });
        assert!(renewed, "a node that lives would have written another beat");
    }

    #[test]
    fn who_is_not_another_process_of_this_machine_is_not_killed() {
        let (_directory, path) = made();
        let (_a, mut fence_b, _) = opened(&path, ["a", "b"], 1).expect("a");
        let mut result = || {
            fence_b.fence(PoolId(7), Epoch(1), ArbiterFence::Process);
            fenced_by(&mut fence_b).result
        };
        assert_eq!(result(), Fence::Confirmed, "b does not run");
        let _b = opened(&path, ["b", "a"], 2).expect("in this very process");
        assert_eq!(result(), Fence::Held);
    }

    #[test]
    fn two_nodes_meet_in_a_mailbox() {
        let (_directory, path) = made();
        let (_a, mut fence_b, pair) = opened(&path, ["a", "b"], 1).expect("a");
        assert!(opened(&path, ["a", "b"], 3).is_err(), "a node runs once");
        assert!(opened(&path, ["a", "c"], 3).is_err(), "another pair's mailbox");
        let mut result = || {
            fence_b.fence(PoolId(7), Epoch(2), ArbiterFence::Lock);
            fenced_by(&mut fence_b).result
        };
        assert_eq!(result(), Fence::Confirmed, "b does not run");
        let (_b, _, same) = opened(&path, ["b", "a"], 2).expect("b");
        assert_eq!(pair, same);
        assert_eq!(result(), Fence::Held);
    }

    #[test]
    fn it_does_what_every_arbiter_does() {
        let (_directory, path) = made();
        conformance::all(&|nodes, life, lease| {
            // The thread of an earlier life may not have ended yet.
            let worker = loop {
                match MailboxWorker::open(&path, nodes, Incarnation(life), lease) {
                    Ok(worker) => break worker,
                    Err(_) => std::thread::yield_now(),
                }
            };
            registers::start(worker, Arc::new(NoWaker)).expect("a thread")
        });
    }
}
