//! How often what went wrong, and what came of it: the lines of the failure table in `docs/pair.md`, as they are seen from outside.

use super::{
    History,
    ambush::{Change, Moment},
    arbiter::Reach,
    forced::Lost,
    site::NAMES,
};
use crate::history::Violation;
use twinlog::format::register::{MirrorState, Register, Side};
use twinlog_device::Nanos;
use twinlog_sim::{Direction, Fault, LogMedium};

/// Everything that is counted.
pub(super) const ALL: [&str; 63] = [
    ARBITER_LATE,
    ARBITER_LOST,
    ARBITER_POSTHUMOUS,
    ARBITER_UNHEARD,
    BLACKOUT,
    BROKEN,
    BROUGHT_BACK,
    CARRIED,
    CUT,
    DIES_OPENING,
    DISK_ABORTED,
    DISK_ANEW,
    DISK_DARK,
    DISK_DIED,
    DISK_GONE,
    DISK_LATER,
    DISK_LOST,
    DISK_READ,
    DISK_REFUSED,
    DISK_SLOW,
    DISK_TAKEN,
    DISK_UNHEARD,
    DISK_UNPROVEN,
    DISK_WRITE,
    FENCED,
    FORCED_LOG,
    FORCED_MACHINE,
    FORWARDED,
    FORWARDED_OUTLIVED,
    FORWARDED_UNSERVED,
    GIVEN_UP,
    HELD_BY_OWNER,
    HELD_BY_PARTNER,
    KILL,
    LOG_READ,
    LOG_SLOW,
    LOG_WRITE,
    MIRROR_LOST,
    OFFLINE,
    ONLINE_INTERRUPTED,
    ONLINE_REFUSED,
    OPENING,
    OVERDUE,
    OWN_LOG_LOST,
    PACKET_LOST,
    PAUSE,
    POWER,
    REFUSED_OFFLINE,
    UNPERFORMABLE,
    LINE_PROCESS_DIES,
    LINE_HOST_DIES,
    LINE_RESTARTS,
    LINE_PARTNER_PROCESS_DIES,
    LINE_PARTNER_HOST_DIES,
    LINE_CUT,
    LINE_CUT_AND_ARBITER,
    LINE_BOTH_DIE,
    LINE_PARTNER_RETURNS,
    LINE_PAUSED,
    LINE_INTERRUPTED,
    LINE_GIVEN_BACK,
    LINE_NOT_OPENED,
    LINE_MIRROR_FAILS,
];

pub(super) const ARBITER_LATE: &str = "arbiter: change made late";
pub(super) const ARBITER_LOST: &str = "arbiter: request lost";
pub(super) const ARBITER_POSTHUMOUS: &str = "arbiter: change of the dead";
pub(super) const ARBITER_UNHEARD: &str = "arbiter: answer lost";
pub(super) const BLACKOUT: &str = "site dark";
pub(super) const BROKEN: &str = "connection broken";
pub(super) const BROUGHT_BACK: &str = "held: brought back";
pub(super) const CARRIED: &str = "held: carried to another node";
pub(super) const CUT: &str = "interconnect cut";
const DIES_OPENING: &str = "died while opening";
pub(super) const DISK_ABORTED: &str = "reserved: ended in flight";
pub(super) const DISK_ANEW: &str = "reserved: registered anew";
pub(super) const DISK_DARK: &str = "reserved: disk not reached";
pub(super) const DISK_DIED: &str = "reserved: died in between";
pub(super) const DISK_LATER: &str = "reserved: other came later";
pub(super) const DISK_LOST: &str = "reserved: command lost";
pub(super) const DISK_REFUSED: &str = "reserved: change refused";
pub(super) const DISK_TAKEN: &str = "reserved: partner fenced";
pub(super) const DISK_UNHEARD: &str = "reserved: answer lost";
pub(super) const DISK_UNPROVEN: &str = "reserved: not proven";
const DISK_GONE: &str = "disk: gone";
const DISK_READ: &str = "disk: read error";
const DISK_SLOW: &str = "disk: slow";
const DISK_WRITE: &str = "disk: write error";
pub(super) const FENCED: &str = "fenced";
pub(super) const FORCED_LOG: &str = "forced: own log lost";
pub(super) const FORCED_MACHINE: &str = "forced: owner lost";
pub(super) const FORWARDED: &str = "forwarded";
pub(super) const FORWARDED_OUTLIVED: &str = "forwarded: owner outlived";
pub(super) const FORWARDED_UNSERVED: &str = "forwarded: not served in time";
pub(super) const GIVEN_UP: &str = "held: given up";
pub(super) const HELD_BY_OWNER: &str = "held: by who restarted";
pub(super) const HELD_BY_PARTNER: &str = "held: by who took over";
pub(super) const KILL: &str = "process killed";
const LOG_READ: &str = "log: read error";
pub(super) const LOG_SLOW: &str = "log: stands still";
const LOG_WRITE: &str = "log: write error";
pub(super) const MIRROR_LOST: &str = "log: mirror lost";
pub(super) const OFFLINE: &str = "volume offline";
pub(super) const ONLINE_INTERRUPTED: &str = "held: online interrupted";
pub(super) const ONLINE_REFUSED: &str = "held: online too early";
const OPENING: &str = "opening: hindered";
pub(super) const OVERDUE: &str = "stood still over its lease";
pub(super) const OWN_LOG_LOST: &str = "line: own log lost";
pub(super) const PACKET_LOST: &str = "packet lost";
pub(super) const PAUSE: &str = "node paused";
pub(super) const POWER: &str = "machine dark";
pub(super) const REFUSED_OFFLINE: &str = "held: request refused";
pub(super) const UNPERFORMABLE: &str = "line: record not performed";
const LINE_PROCESS_DIES: &str = "line: owner's process dies";
const LINE_HOST_DIES: &str = "line: owner's host dies";
const LINE_RESTARTS: &str = "line: owner restarts";
const LINE_PARTNER_PROCESS_DIES: &str = "line: partner's process dies";
const LINE_PARTNER_HOST_DIES: &str = "line: partner's host dies";
const LINE_CUT: &str = "line: cut, both live";
const LINE_CUT_AND_ARBITER: &str = "line: cut, arbiter lost";
const LINE_BOTH_DIE: &str = "line: both die, one is back";
const LINE_PARTNER_RETURNS: &str = "line: partner returns";
const LINE_PAUSED: &str = "line: paused, taken over";
const LINE_INTERRUPTED: &str = "line: takeover interrupted";
const LINE_GIVEN_BACK: &str = "given back";
const LINE_NOT_OPENED: &str = "line: devices not opened";
const LINE_MIRROR_FAILS: &str = "line: mirror's log fails";

/// A node gives a pool up after so many openings.
const GIVEN_UP_AFTER: u32 = 5;

/// What has happened to a pool and is not over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Story {
    register: Option<Register>,
    /// Who served it and died, and whether with its machine.
    lost: Option<(usize, bool)>,
    /// Its mirror died while it was in step: when, and whether with its machine.
    mirror_died: Option<(Nanos, bool)>,
    /// Both nodes have died since it was served.
    both_died: bool,
    /// The register names another owner, who does not serve it yet.
    is_moving: bool,
    /// That owner died.
    is_interrupted: bool,
    /// Its server is paused.
    is_paused: bool,
    /// Since it was in step the node that mirrored it has not died, and has not begun anew.
    has_kept_mirror: bool,
}

impl Story {
    /// The node that the register names.
    pub(super) fn owner(&self, pool: usize) -> Option<usize> {
        self.register.map(|register| owner(pool, &register))
    }

    /// Whether the other node's log is as it was when it was in step last.
    pub(super) fn has_kept_mirror(&self) -> bool {
        self.has_kept_mirror
    }

    pub(super) fn forget_mirror(&mut self) {
        self.has_kept_mirror = false;
    }
}

impl History {
    pub(super) fn is_cut(&self) -> bool {
        let is_cut = |direction| self.site.paths.iter().all(|path| path.is_cut(direction));
        Direction::BOTH.into_iter().any(is_cut)
    }

    fn is_in_sync(&self, pool: usize) -> bool {
        self.stories[pool].register.is_some_and(|register| register.mirror != MirrorState::Stale)
    }

    pub(super) fn tell(&mut self, line: &'static str, mattered: bool) {
        self.tally.count_named(line, (1, u64::from(mattered)));
    }

    /// A process has ended; the pools' watches still say who served.
    pub(super) fn tell_death(&mut self, node: usize, is_dark: bool) {
        let other_lives = self.processes[1 - node].is_some();
        for pool in 0..2 {
            let server = self.pools[pool].server;
            let is_in_sync = self.is_in_sync(pool);
            if self.pools[pool].open_at[node] && server.is_none() {
                self.tell(DIES_OPENING, self.stories[pool].is_moving);
            }
            let story = &mut self.stories[pool];
            let owner = story.register.map(|register| owner(pool, &register));
            story.both_died |= !other_lives;
            story.has_kept_mirror = false;
            story.is_interrupted |= story.is_moving && owner == Some(node) && server.is_none();
            if server == Some(node) {
                story.lost = Some((node, is_dark));
                self.tell(if is_dark { LINE_HOST_DIES } else { LINE_PROCESS_DIES }, false);
            } else if server == Some(1 - node) && is_in_sync {
                story.mirror_died = Some((self.site.world.now(), is_dark));
                self.tell(if is_dark { LINE_PARTNER_HOST_DIES } else { LINE_PARTNER_PROCESS_DIES }, false);
            }
        }
    }

    /// A node serves a pool.
    pub(super) fn tell_service(&mut self, pool: usize, node: usize) {
        let is_alone = self.processes[1 - node].is_none();
        let story = self.stories[pool];
        self.stories[pool] = Story { register: story.register, ..Story::default() };
        match story.lost {
            Some((lost, _)) if lost == node => self.tell(LINE_RESTARTS, true),
            Some((_, true)) => self.tell(LINE_HOST_DIES, true),
            Some((_, false)) => self.tell(LINE_PROCESS_DIES, true),
            None => {}
        }
        if story.both_died && is_alone {
            self.tell(LINE_BOTH_DIE, node != pool);
        }
        if story.is_interrupted {
            self.tell(LINE_INTERRUPTED, true);
        }
        if story.is_paused {
            self.tell(LINE_PAUSED, true);
        }
        let failed = std::mem::take(&mut self.site.hindrances.borrow_mut().failed[1 - node][pool]);
        if failed > 0 {
            self.tell(LINE_NOT_OPENED, failed >= GIVEN_UP_AFTER);
        }
        if story.is_moving && story.lost.is_none() && node == pool {
            self.tell(LINE_GIVEN_BACK, true);
        }
    }

    /// A node has closed a pool and lives.
    pub(super) fn tell_close(&mut self, node: usize) {
        if self.site.desk.borrow().reach[node] == Reach::Lost && self.is_cut() {
            self.tell(LINE_CUT_AND_ARBITER, true);
        }
    }

    /// A node that may serve pools gets no turns.
    pub(super) fn tell_pause(&mut self, node: usize) {
        for pool in 0..2 {
            let is_paused = self.pools[pool].server == Some(node);
            self.stories[pool].is_paused |= is_paused;
        }
    }

    /// Looks at the registers for what has changed.
    pub(super) fn look_at_registers(&mut self) -> Result<(), Violation> {
        if !std::mem::take(&mut self.site.desk.borrow_mut().has_changed) {
            return Ok(());
        }
        for pool in 0..2 {
            let Some(new) = self.site.desk.borrow().registers.get(&super::pool_id(pool)).copied() else { continue };
            let Some(old) = self.stories[pool].register.replace(new).filter(|old| *old != new) else { continue };
            self.note(|_| {
                let mirror = if new.mirror == MirrorState::Stale { "stale" } else { "in sync" };
                format!("register {}: epoch {}, owner {}, {mirror}", NAMES[pool], new.epoch.0, NAMES[owner(pool, &new)])
            });
            self.judge_register(pool, &old, &new)?;
            if let Some(change) = Change::of(&old, &new) {
                self.moment(pool, Moment::Made(change));
            }
            if old.owner != new.owner {
                self.stories[pool].is_moving = true;
                continue;
            }
            match (old.mirror, new.mirror) {
                (MirrorState::InSync(_), MirrorState::Stale) => {
                    self.was_in_step(pool);
                    if let Some(death) = self.stories[pool].mirror_died.take() {
                        self.tell_stale(death);
                    } else if self.is_cut() && self.processes.iter().all(Option::is_some) {
                        self.tell(LINE_CUT, true);
                    } else if self.site.logs[1 - owner(pool, &new)][pool].iter().any(LogMedium::has_failed) {
                        self.tell(LINE_MIRROR_FAILS, true);
                    }
                }
                (MirrorState::Stale, MirrorState::InSync(_)) => self.tell(LINE_PARTNER_RETURNS, true),
                _ => {}
            }
        }
        Ok(())
    }

    /// An owner goes on alone since its mirror has died: the end of a process is seen at once, that of a machine when it has been silent for long enough.
    fn tell_stale(&mut self, (died, is_dark): (Nanos, bool)) {
        let is_late = self.site.world.now().since(died) >= self.setup.detection;
        match (is_dark, is_late) {
            (false, is_late) => self.tell(LINE_PARTNER_PROCESS_DIES, !is_late),
            (true, is_late) => self.tell(LINE_PARTNER_HOST_DIES, is_late),
        }
    }

    /// What was answered so far is in both logs.
    fn was_in_step(&mut self, pool: usize) {
        let is_lived = self.processes.iter().all(Option::is_some);
        self.stories[pool].has_kept_mirror = is_lived && self.is_cut();
        if self.setup.lost == Lost::Machine {
            let model = &mut self.pools[pool].model;
            let now = model.begin();
            model.flushed(None, now);
            model.end(now);
        }
    }

    /// Adds what the world has counted.
    pub(super) fn count_world(&mut self) {
        let counts = self.site.desk.borrow().counts;
        let hindered = self.site.hindrances.borrow().count;
        let paths: Vec<_> = self.site.paths.iter().map(twinlog_sim::SimPath::counts).collect();
        let sum = |what: fn(&twinlog_sim::PathCounts) -> u64| paths.iter().map(what).sum::<u64>();
        let all = [
            (ARBITER_LATE, (counts.late_swaps + counts.late_refused, counts.late_swaps)),
            (ARBITER_LOST, (counts.lost, counts.lost)),
            (ARBITER_POSTHUMOUS, (counts.posthumous, counts.posthumous)),
            (ARBITER_UNHEARD, (counts.unheard_swaps, counts.unheard_swaps)),
            (BROKEN, (sum(|path| path.broken), sum(|path| path.broken_mattered))),
            (CUT, (sum(|path| path.cut), sum(|path| path.cut_mattered))),
            (DISK_GONE, self.site.world.faults(Fault::DeviceGone)),
            (DISK_READ, self.site.world.faults(Fault::ReadError)),
            (DISK_SLOW, self.site.world.faults(Fault::SlowOperation)),
            (DISK_WRITE, self.site.world.faults(Fault::WriteError)),
            (OPENING, (hindered, hindered)),
            (LOG_READ, self.site.world.faults(Fault::LogReadError)),
            (LOG_WRITE, self.site.world.faults(Fault::LogPersistError)),
            (PACKET_LOST, (sum(|path| path.lost), sum(|path| path.lost))),
        ];
        for (name, count) in all {
            self.tally.count_named(name, count);
        }
        self.count_reservations();
    }
}

/// The node that a register names.
fn owner(pool: usize, register: &Register) -> usize {
    if register.owner == Side::Home { pool } else { 1 - pool }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Each line of the failure table in `docs/pair.md`, by its test's name, and as what it is counted; but the last one, which is no decision about
    /// ownership and has tests of its own: [`UNPERFORMABLE`].
    const TABLE: [(&str, &str); 14] = [
        ("line_owner_process_dies_host_lives", LINE_PROCESS_DIES),
        ("line_owner_host_dies", LINE_HOST_DIES),
        ("line_owner_restarts_before_takeover", LINE_RESTARTS),
        ("line_partner_process_dies_host_lives", LINE_PARTNER_PROCESS_DIES),
        ("line_partner_host_dies", LINE_PARTNER_HOST_DIES),
        ("line_interconnect_cut_both_live", LINE_CUT),
        ("line_interconnect_cut_and_arbiter_lost", LINE_CUT_AND_ARBITER),
        ("line_mirror_cannot_be_read", LINE_MIRROR_FAILS),
        ("line_both_die_one_comes_back", LINE_BOTH_DIE),
        ("line_partner_returns", LINE_PARTNER_RETURNS),
        ("line_owner_paused_and_resumed_after_a_takeover", LINE_PAUSED),
        ("line_own_log_device_lost", OWN_LOG_LOST),
        ("line_devices_cannot_be_opened", LINE_NOT_OPENED),
        ("line_takeover_or_giveback_interrupted_at_any_step", LINE_INTERRUPTED),
    ];

    #[test]
    fn every_line_of_the_failure_table_is_counted() {
        let page = include_str!("../../../../docs/pair.md");
        let table = page.split("### The failure table").nth(1).expect("the page has it");
        let rows = table.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        let tests = rows.filter_map(|row| row.rsplit('`').nth(1)).filter(|test| !test.contains('/'));
        let (written, counted) = (tests.collect::<BTreeSet<_>>(), TABLE.map(|(test, _)| test).into());
        assert_eq!(written, counted);
        let lines = TABLE.iter().map(|(_, line)| line).chain([&UNPERFORMABLE]);
        assert!(lines.clone().all(|line| ALL.contains(line)));
        assert_eq!(lines.count(), ALL.iter().filter(|name| name.starts_with(crate::pair::LINE)).count());
    }
}
