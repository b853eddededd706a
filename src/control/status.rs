//! What a status means: the verdict, and what is wrong with which consequence and remedy.
//!
//! # Invariants
//!
//! 1. The verdict is [`Verdict::Ok`] only when requests are served, every log and device keeps what it holds through a power cut, no block was
//!    found damaged, and there is space. A node that is single by configuration is OK only with the words "single node, log
//!    not mirrored" beside it (`docs/decisions/0004-single-node-verdict.md`).
//! 2. Every finding names its object, why it matters, and the next command or step.

use super::size::{show_bytes, show_ns};
use crate::node::admin::{HealthStatus, NodeStatus, OfflineStatus, OfflineThere, PairStatus};
use serde::Serialize;
use std::fmt;

/// Less free space than this, in per mille of the pool, is degraded: the next burst of writes may be refused.
const FREE_DEGRADED_PERMILLE: u64 = 50;
/// Less free space than this, in per mille of the pool, is worth a warning.
const FREE_WARNING_PERMILLE: u64 = 150;
/// Changes that are delayed by this much each, or more, wait for disks that are much slower than the clients: 4 MiB/s in small ones.
const THROTTLE_WARNING_NS: u64 = 1_000_000;
/// A consistency point older than this, with changes waiting in the log, is late: they begin seconds after the oldest change.
const CP_AGE_WARNING_NS: u64 = 60 * 1_000_000_000;

/// A disk that is well answers within milliseconds, one that others load too within a second.
const OLDEST_WARNING_NS: u64 = 1_000_000_000;
/// Half of what an NVMe controller has until its command is aborted.
const OLDEST_DEGRADED_NS: u64 = 5_000_000_000;
/// A device that has used so much of its endurance should be replaced.
const WORN_PERCENT: u8 = 100;

/// The first word of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum Verdict {
    /// Everything is as configured.
    Ok,
    /// It serves, but with less protection or space than it should have.
    Degraded,
    /// It serves while a copy is brought back in step.
    Resync,
    /// The partner serves.
    TakenOver,
    /// Nothing is served.
    Stopped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ok => "OK",
            Self::Degraded => "DEGRADED",
            Self::Resync => "RESYNC",
            Self::TakenOver => "TAKEN-OVER",
            Self::Stopped => "STOPPED",
        })
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// It will matter unless somebody acts.
    Warning,
    /// A copy is being brought back in step.
    Resync,
    /// Protection or space is missing now.
    Degraded,
    /// A pool is not served by its home node.
    TakenOver,
    /// Nothing is served.
    Stopped,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The object.
    pub object: String,
    /// What is wrong with it, and what that means.
    pub why: String,
    /// What to do.
    pub next: String,
}

/// The meaning of a status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// In a word.
    pub verdict: Verdict,
    /// Why it is that.
    pub why: String,
    /// What the node is doing.
    pub now: String,
    /// What happens next, or what to do.
    pub next: String,
    /// Everything that is wrong, worst first.
    pub findings: Vec<Finding>,
}

/// Judges a status.
#[must_use]
pub fn judge(status: &NodeStatus) -> Judgement {
    let mut findings = findings(status);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let worst = findings.first().filter(|finding| finding.severity > Severity::Warning);
    let verdict = match worst.map(|finding| finding.severity) {
        Some(Severity::Stopped) => Verdict::Stopped,
        Some(Severity::TakenOver) => Verdict::TakenOver,
        Some(Severity::Resync) => Verdict::Resync,
        Some(Severity::Degraded | Severity::Warning) => Verdict::Degraded,
        None => Verdict::Ok,
    };
    let (why, next) = match worst {
        Some(finding) => (format!("{}: {}", finding.object, finding.why), finding.next.clone()),
        None => (all_is_well(status), first_warning(&findings)),
    };
    Judgement { verdict, why, now: now(status), next, findings }
}

fn all_is_well(status: &NodeStatus) -> String {
    match &status.pair {
        None => "single node, log not mirrored (so configured); answered changes survive a power cut".to_owned(),
        Some(pair) => {
            format!("both pools are served by their home nodes, and {} has every answered change too", pair.partner)
        }
    }
}

/// The meaning of a node that does not answer.
#[must_use]
pub fn unreachable(why: &str, next: &str) -> Judgement {
    let found = finding(Severity::Stopped, "node", why.to_owned(), next);
    Judgement {
        verdict: Verdict::Stopped,
        why: why.to_owned(),
        now: "not running, or not answering".to_owned(),
        next: next.to_owned(),
        findings: vec![found],
    }
}

fn first_warning(findings: &[Finding]) -> String {
    findings
        .first()
        .map_or("nothing to do".to_owned(), |finding| format!("{} ({}: {})", finding.next, finding.object, finding.why))
}

fn now(status: &NodeStatus) -> String {
    match status.state.as_str() {
        "serving" => {
            let connections: u64 = status.reactors.iter().map(|reactor| reactor.connections).sum();
            let offline = status.volumes.iter().filter(|volume| volume.offline.is_some()).count();
            let (volumes, uptime) = (status.volumes.len() - offline, show_ns(status.uptime_ns));
            let offline = if offline > 0 { format!(", {offline} offline,") } else { String::new() };
            format!(
                "serving {volumes} volume(s){offline} to {connections} connection(s), up {uptime}, CP {} {}",
                status.pool.cp, status.pool.cp_phase
            )
        }
        state if status.reason.is_empty() => state.to_owned(),
        state => format!("{state}: {}", status.reason),
    }
}

fn finding(severity: Severity, object: &str, why: String, next: &str) -> Finding {
    Finding { severity, object: object.to_owned(), why, next: next.to_owned() }
}

fn findings(status: &NodeStatus) -> Vec<Finding> {
    let mut found = Vec::new();
    match status.state.as_str() {
        // What a node of a pair does with its pool is judged below.
        "serving" | "standby" => {}
        "opening" if status.pair.is_some() => {}
        "opening" => found.push(finding(
            Severity::Stopped,
            "node",
            "it is opening the pool".to_owned(),
            "wait: `twinlog status --watch`",
        )),
        "stopping" => found.push(finding(
            Severity::Stopped,
            "node",
            "it is stopping".to_owned(),
            "start it again: `twinlog up` or systemctl start",
        )),
        state => {
            let why = if status.reason.is_empty() { format!("its state is `{state}`") } else { status.reason.clone() };
            found.push(finding(
                Severity::Stopped,
                "node",
                why,
                "`twinlog log verify`, then `twinlog pool check`; the node's own messages say more",
            ));
        }
    }
    // First of its severity: a block that cannot be read is its cause.
    let taken_over = status.pair.as_ref().and_then(|pair| pair.taken_over.as_deref());
    [status].into_iter().chain(taken_over).for_each(|status| volume_findings(status, &mut found));
    status.pair.iter().for_each(|pair| offline_there(pair, &mut found));
    lane_findings(status, &mut found);
    device_findings(status, &mut found);
    pool_findings(status, &mut found);
    if let Some(pair) = &status.pair {
        pair_findings(pair, &mut found);
        if let Some(taken_over) = &pair.taken_over {
            lane_findings(taken_over, &mut found);
            device_findings(taken_over, &mut found);
            pool_findings(taken_over, &mut found);
        }
    }
    found
}

/// Why the nodes do not come together, and what the decision table says of each pool.
fn pair_findings(pair: &PairStatus, found: &mut Vec<Finding>) {
    let [refusal, mending] = &pair.refusal;
    if !refusal.is_empty() {
        found.push(finding(Severity::Degraded, "interconnect", refusal.clone(), mending));
    }
    for (index, pool) in pair.pools.iter().enumerate() {
        let is_home = index == 0;
        let is_served_here = ["serving", "draining"].contains(&pool.open.as_str());
        let is_served_there = pool.owner == pair.partner && pool.row.starts_with("standby, ");
        let severity = if !is_served_here && !is_served_there {
            Severity::Stopped
        } else if is_served_here != is_home {
            Severity::TakenOver
        } else if pool.is_resync || pool.row == "standby, catching up" {
            Severity::Resync
        } else if pool.is_final {
            continue;
        } else {
            Severity::Degraded
        };
        let why = if pool.trouble.is_empty() { pool.why.clone() } else { format!("{} ({})", pool.why, pool.trouble) };
        let is_fencing = pool.row.contains("fence");
        let why = if is_fencing && !pool.fence.is_empty() {
            format!("{why}: {}", pool.fence.replace('\n', " / "))
        } else {
            why
        };
        found.push(finding(severity, &format!("pool {}", pool.name), why, &pool.next));
    }
}

fn device_findings(status: &NodeStatus, found: &mut Vec<Finding>) {
    for device in status.pool.devices.iter().filter(|device| device.durability != "durable") {
        found.push(finding(
            Severity::Degraded,
            &format!("device {}", device.name),
            format!("it is `{}`: everything on it is lost when power fails, whatever the log holds", device.durability),
            "move the pool to a disk: [pool] devices in node.toml",
        ));
    }
    for device in &status.pool.devices {
        let Some(health) = &device.health else { continue };
        let object = format!("device {}", device.name);
        health_findings(health, |severity, why, next| found.push(finding(severity, &object, why, next)));
    }
}

/// What a device says of itself, and what it failed.
fn health_findings(health: &HealthStatus, mut found: impl FnMut(Severity, String, &str)) {
    let replace = "move its data while it can be read, and replace it";
    if !health.trouble.is_empty() {
        let next = "the kernel's messages say more: dmesg; once the device is mended or back, start the node again";
        found(Severity::Degraded, health.trouble.clone(), next);
    }
    if !health.warnings.is_empty() {
        found(Severity::Degraded, format!("it warns: {}", health.warnings.join("; ")), replace);
    }
    if health.oldest_ns >= OLDEST_WARNING_NS {
        let why = format!("it has not answered an operation for {}: it is slow, or hangs", show_ns(health.oldest_ns));
        let severity = if health.oldest_ns >= OLDEST_DEGRADED_NS { Severity::Degraded } else { Severity::Warning };
        found(severity, why, "wait: what hangs is aborted, and the device reset; the kernel's messages: dmesg");
    }
    if health.errors > 0 {
        let why =
            format!("{} operation(s) failed since it was opened, the newest: {}", health.errors, health.newest_error);
        found(Severity::Degraded, why, "`twinlog pool scrub` names every damaged block");
    }
    if health.timeouts + health.resets > 0 {
        let why = format!(
            "{} operation(s) were not answered in time, and it was reset {} time(s), since it was opened",
            health.timeouts, health.resets
        );
        found(Severity::Warning, why, "look for a device that hangs, or that others load: its firmware, `dmesg`");
    }
    if health.changes > 0 {
        let why =
            format!("its namespaces were changed {} time(s) since it was opened, by somebody else", health.changes);
        found(Severity::Warning, why, "start the node again, which reads them anew");
    }
    let Some(wear) = &health.wear else { return };
    if wear.media_errors > 0 {
        let why = format!(
            "it has counted {} error(s) of its media that it could not recover, over its life",
            wear.media_errors
        );
        found(Severity::Warning, why, "watch whether they become more; `twinlog pool scrub` reads everything");
    }
    if wear.used_percent >= WORN_PERCENT {
        found(Severity::Warning, format!("{} % of its endurance is used", wear.used_percent), replace);
    }
}

fn lane_findings(status: &NodeStatus, found: &mut Vec<Finding>) {
    for lane in &status.lanes {
        let object = format!("log lane {}", lane.lane);
        let loses = match lane.durability.as_str() {
            "durable" => None,
            "process" => Some("power fails"),
            _ => Some("the process ends or power fails"),
        };
        if let Some(when) = loses {
            let why = format!(
                "durability is `{}` ({}): answered changes are lost when {when}",
                lane.durability, lane.backend
            );
            found.push(finding(
                Severity::Degraded,
                &object,
                why,
                "put the log on a file or persistent memory: [log] backend in node.toml",
            ));
        }
        if lane.throttle_ns >= THROTTLE_WARNING_NS {
            let why = format!(
                "{} of {} in use: each change of 4 KiB is delayed by {}",
                show_bytes(lane.used_bytes),
                show_bytes(lane.size_bytes),
                show_ns(lane.throttle_ns)
            );
            found.push(finding(
                Severity::Warning,
                &object,
                why,
                "the disks are slower than the clients: a larger log only helps with bursts",
            ));
        }
    }
}

fn volume_findings(status: &NodeStatus, found: &mut Vec<Finding>) {
    for volume in &status.volumes {
        let Some(offline) = &volume.offline else { continue };
        let OfflineStatus { lane, lsn, why, held_records, held_bytes } = offline;
        let held = show_bytes(*held_bytes);
        let why = format!(
            "it is offline: the record of log lane {lane} at position {lsn} could not be performed: {why}; \
             {held_records} answered change(s) in {held} are held, none is lost"
        );
        let next = format!(
            "repair what cannot be read, then `twinlog volume online {}`; docs/operating/running.md has the other ways",
            volume.name
        );
        found.push(finding(Severity::Degraded, &format!("volume {}", volume.name), why, &next));
    }
}

/// Volumes that the partner serves and that are offline there.
fn offline_there(pair: &PairStatus, found: &mut Vec<Finding>) {
    for OfflineThere { volume, lane, lsn } in &pair.offline_there {
        let partner = &pair.partner;
        let why = format!(
            "it is offline at {partner}, which serves it: the record of log lane {lane} at position {lsn} could not be performed"
        );
        let next = format!("`twinlog status` at {partner}, then `twinlog volume online {volume}` there");
        found.push(finding(Severity::Degraded, &format!("volume {volume}"), why, &next));
    }
}

fn pool_findings(status: &NodeStatus, found: &mut Vec<Finding>) {
    let pool = &status.pool;
    if pool.checksum_errors > 0 {
        let why =
            format!("{} time(s) since start a block that was read did not match its checksum", pool.checksum_errors);
        found.push(finding(Severity::Degraded, "pool", why, "`twinlog pool scrub` names every damaged block"));
    }
    let usable = pool.free_bytes.saturating_add(pool.deferred_bytes);
    let free = permille(usable, pool.size_bytes);
    if pool.size_bytes > 0 && free < FREE_WARNING_PERMILLE {
        let severity = if free < FREE_DEGRADED_PERMILLE { Severity::Degraded } else { Severity::Warning };
        let why = format!("{} of {} free; full, it refuses writes", show_bytes(usable), show_bytes(pool.size_bytes));
        found.push(finding(
            severity,
            "pool",
            why,
            "`twinlog pool grow DEVICE`, or delete volumes or discard in the file systems on them",
        ));
    }
    let waiting = status.lanes.iter().any(|lane| lane.used_bytes > 0);
    if waiting && pool.cp_age_ns > CP_AGE_WARNING_NS {
        let why = format!(
            "the newest durable consistency point is {} old and changes wait in the log",
            show_ns(pool.cp_age_ns)
        );
        found.push(finding(Severity::Warning, "pool", why, "look for a slow or hanging device: `iostat -x 1`"));
    }
}

/// `part` of `whole` in per mille; zero of nothing.
pub(super) fn permille(part: u64, whole: u64) -> u64 {
    let permille = (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or(0);
    u64::try_from(permille).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::node::admin::{
        DeviceStatus, LaneStatus, OperationStatus, PoolStatus, ReactorStatus, VolumeStatus, WearStatus,
    };

    /// A node that has nothing wrong with it, for every test of this folder.
    pub(in crate::control) fn healthy() -> NodeStatus {
        let operations = OperationStatus {
            count: 1000,
            bytes: 4096 * 1000,
            p50_ns: 80_000,
            p99_ns: 400_000,
            p999_ns: 900_000,
            p9999_ns: 1_000_000,
            max_ns: 2_000_000,
            total_ns: 100_000_000,
        };
        NodeStatus {
            state: "serving".to_owned(),
            reason: String::new(),
            pool: PoolStatus {
                name: "a".to_owned(),
                id: "0123456789abcdef0123456789abcdef".to_owned(),
                epoch: 1,
                cp: 42,
                cp_age_ns: 1_500_000_000,
                cp_duration_ns: 30_000_000,
                cp_phase: "idle".to_owned(),
                size_bytes: 4 << 30,
                free_bytes: 3 << 30,
                deferred_bytes: 0,
                provisioned_bytes: 4 << 30,
                checksum_errors: 0,
                devices: vec![DeviceStatus {
                    name: "disks/pool-a.img".to_owned(),
                    size_bytes: 4 << 30,
                    durability: "durable".to_owned(),
                    health: None,
                }],
            },
            lanes: vec![LaneStatus {
                lane: 0,
                backend: "file".to_owned(),
                durability: "durable".to_owned(),
                size_bytes: 256 << 20,
                used_bytes: 64 << 20,
                head_lsn: 900 << 20,
                durable_lsn: 900 << 20,
                applied_lsn: 836 << 20,
                throttle_ns: 0,
            }],
            volumes: vec![VolumeStatus {
                id: 7,
                name: "vol-a".to_owned(),
                size_bytes: 4 << 30,
                block_bytes: 4096,
                allocated_bytes: 1 << 30,
                reactor: 0,
                reads: operations.clone(),
                writes: operations,
                ..VolumeStatus::default()
            }],
            memory_used_bytes: 100 << 20,
            memory_cached_bytes: 200 << 20,
            memory_limit_bytes: 384 << 20,
            memory_resident_bytes: 320 << 20,
            reactors: vec![ReactorStatus {
                reactor: 0,
                turns: 5000,
                busy_ns: 2_000_000_000,
                connections: 1,
                cpu: None,
            }],
            uptime_ns: 60_000_000_000,
            replayed_records: 3,
            ..NodeStatus::default()
        }
    }

    fn verdict(change: impl FnOnce(&mut NodeStatus)) -> Judgement {
        let mut status = healthy();
        change(&mut status);
        judge(&status)
    }

    #[test]
    fn ok_on_a_single_node_says_that_the_log_is_not_mirrored() {
        let judgement = verdict(|_| {});
        assert_eq!(judgement.verdict, Verdict::Ok);
        assert!(judgement.why.contains("single node, log not mirrored"));
        assert_eq!(judgement.next, "nothing to do");
        assert!(judgement.findings.is_empty());
    }

    #[test]
    fn a_log_that_forgets_is_never_ok() {
        for class in ["volatile", "process", "something new"] {
            let judgement = verdict(|status| status.lanes[0].durability = class.to_owned());
            assert_eq!(judgement.verdict, Verdict::Degraded, "{class}");
            assert!(judgement.why.contains("answered changes are lost"));
        }
    }

    #[test]
    fn nodes_that_do_not_come_together_say_why_and_what_mends_it() {
        let refusal = ["this node says: the other end encrypts".to_owned(), "make encrypt the same".to_owned()];
        let judgement = verdict(|status| status.pair = Some(PairStatus { refusal, ..PairStatus::default() }));
        assert_eq!(judgement.verdict, Verdict::Degraded);
        assert_eq!(judgement.why, "interconnect: this node says: the other end encrypts");
        assert_eq!(judgement.next, "make encrypt the same");
    }

    #[test]
    fn a_device_that_forgets_is_never_ok() {
        let judgement = verdict(|status| status.pool.devices[0].durability = "volatile".to_owned());
        assert_eq!(judgement.verdict, Verdict::Degraded);
        assert!(judgement.why.starts_with("device disks/pool-a.img"), "{}", judgement.why);
    }

    #[test]
    fn a_device_is_named_with_what_is_wrong_with_it() {
        let sick = |change: fn(&mut HealthStatus)| {
            verdict(|status| {
                let mut health = HealthStatus { wear: Some(WearStatus::default()), ..HealthStatus::default() };
                change(&mut health);
                status.pool.devices[0].name = "nvme:S1".to_owned();
                status.pool.devices[0].health = Some(health);
            })
        };
        assert!(sick(|_| {}).findings.is_empty());
        for (change, words) in [
            ((|health| health.trouble = "the controller is gone".to_owned()) as fn(&mut HealthStatus), "is gone"),
            (
                |health| health.warnings = vec!["it takes no more writes".to_owned()],
                "it warns: it takes no more writes",
            ),
            (|health| health.oldest_ns = 5_000_000_000, "has not answered an operation for 5.00 s"),
            (|health| (health.errors, health.newest_error) = (2, "read of block 7".to_owned()), "read of block 7"),
        ] {
            let judgement = sick(change);
            assert_eq!(judgement.verdict, Verdict::Degraded);
            assert!(
                judgement.why.starts_with("device nvme:S1: ") && judgement.why.contains(words),
                "{}",
                judgement.why
            );
        }
        for (change, words) in [
            ((|health| health.oldest_ns = 1_000_000_000) as fn(&mut HealthStatus), "for 1.00 s: it is slow"),
            ((|health| health.timeouts = 3) as fn(&mut HealthStatus), "3 operation(s) were not answered in time"),
            (|health| health.resets = 1, "was reset 1 time(s)"),
            (|health| health.changes = 1, "namespaces were changed"),
            (|health| health.wear.as_mut().expect("there").media_errors = 5, "5 error(s) of its media"),
            (|health| health.wear.as_mut().expect("there").used_percent = 100, "100 % of its endurance"),
        ] {
            let judgement = sick(change);
            assert_eq!((judgement.verdict, judgement.findings.len()), (Verdict::Ok, 1));
            assert!(judgement.next.contains(words), "{}", judgement.next);
        }
    }

    #[test]
    fn a_node_that_does_not_serve_is_stopped_whatever_else_is_wrong() {
        for state in ["opening", "stopping", "failed", "unheard of"] {
            let judgement = verdict(|status| {
                status.state = state.to_owned();
                status.pool.checksum_errors = 1;
            });
            assert_eq!(judgement.verdict, Verdict::Stopped, "{state}");
            assert_eq!(judgement.findings.len(), 2);
            assert_eq!(judgement.findings[0].severity, Severity::Stopped, "worst first");
        }
        let failed = verdict(|status| {
            status.state = "failed".to_owned();
            status.reason = "device disk0 is gone".to_owned();
        });
        assert!(failed.why.contains("disk0") && failed.now.contains("disk0"));
    }

    #[test]
    fn space_is_judged_at_its_bounds() {
        let free = |permille: u64| {
            verdict(|status| {
                status.pool.size_bytes = 1000 << 20;
                status.pool.free_bytes = permille << 20;
            })
        };
        assert!(free(150).findings.is_empty());
        assert_eq!((free(149).verdict, free(149).findings.len()), (Verdict::Ok, 1));
        assert!(free(149).next.contains("pool grow"));
        assert_eq!(free(50).verdict, Verdict::Ok);
        assert_eq!(free(49).verdict, Verdict::Degraded);
        let deferred = verdict(|status| {
            status.pool.free_bytes = 0;
            status.pool.deferred_bytes = 1 << 30;
        });
        assert_eq!(deferred.verdict, Verdict::Ok, "what comes back with the next consistency points counts");
    }

    #[test]
    fn a_volume_that_is_offline_is_named_with_its_record() {
        let judgement = verdict(|status| {
            status.pool.checksum_errors = 1;
            let why = "block 7 of the volume, or what leads to it, cannot be read".to_owned();
            status.volumes[0].offline =
                Some(OfflineStatus { lane: 3, lsn: 77_056, why, held_records: 12, held_bytes: 4096 });
        });
        assert_eq!(judgement.verdict, Verdict::Degraded);
        let why =
            "volume vol-a: it is offline: the record of log lane 3 at position 77056 could not be performed: block 7";
        assert!(judgement.why.starts_with(why), "{}", judgement.why);
        assert!(judgement.now.contains("serving 0 volume(s), 1 offline"), "{}", judgement.now);
        let there = verdict(|status| {
            let offline = OfflineThere { volume: "vol-b".to_owned(), lane: 1, lsn: 4480 };
            let pair = PairStatus { partner: "b".to_owned(), offline_there: vec![offline], ..PairStatus::default() };
            status.pair = Some(pair);
        });
        let why = "volume vol-b: it is offline at b, which serves it: the record of log lane 1 at position 4480";
        assert!(there.findings.iter().any(|found| format!("{}: {}", found.object, found.why).starts_with(why)));
        assert!(judgement.next.contains("twinlog volume online vol-a"), "{}", judgement.next);
    }

    #[test]
    fn a_late_consistency_point_matters_only_with_changes_in_the_log() {
        let late = |used| {
            verdict(|status| {
                status.pool.cp_age_ns = CP_AGE_WARNING_NS + 1;
                status.lanes[0].used_bytes = used;
            })
        };
        assert_eq!(late(4096).findings.len(), 1);
        assert!(late(0).findings.is_empty());
    }
}
