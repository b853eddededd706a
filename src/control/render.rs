//! A status as text for people: the verdict is the first word, then why, now and next, then the figures.

use super::{
    size::{show_bytes, show_ns},
    status::{Judgement, Severity, permille},
};
use crate::{
    base::BlockSize,
    node::admin::{
        HealthStatus, HostEntry, HostStatus, LaneStatus, NamespaceStatus, NodeStatus, NvmeTcpStatus, OfflineStatus,
        OperationStatus, PairStatus, VolumeStatus, WearStatus,
    },
};
use std::fmt::Write;

/// Characters of a fill bar.
const BAR_CELLS: u64 = 20;

/// Verdict, why, now, next and every finding: all of `status -x`.
#[must_use]
pub fn summary(judgement: &Judgement) -> String {
    let mut text = format!("{}  {}\n", judgement.verdict, judgement.why);
    line(&mut text, "now", &judgement.now);
    line(&mut text, "next", &judgement.next);
    for finding in &judgement.findings {
        let mark = match finding.severity {
            Severity::Warning => "warning",
            Severity::Resync => "resync",
            Severity::Degraded => "degraded",
            Severity::TakenOver => "taken over",
            Severity::Stopped => "stopped",
        };
        line(&mut text, mark, &format!("{}: {}", finding.object, finding.why));
        line(&mut text, "", &format!("-> {}", finding.next));
    }
    text
}

/// The figures. With `before`, an earlier status of the same process, rates belong to the time between the two.
#[must_use]
pub fn figures(status: &NodeStatus, before: Option<&NodeStatus>) -> String {
    let before = before.filter(|before| before.uptime_ns < status.uptime_ns);
    let mut text = String::new();
    if status.pool.cp > 0 {
        pool_figures(&mut text, status);
    }
    // The register of the own pool says whether its log is mirrored.
    let own = status.pair.as_ref().and_then(|pair| pair.pools.first());
    let is_mirrored = own.is_some_and(|own| own.mirror == "in sync");
    for one in &status.lanes {
        lane(&mut text, one, is_mirrored);
    }
    resources(&mut text, status, before);
    if let Some(pair) = &status.pair {
        self::pair(&mut text, pair);
    }
    if let Some(front) = &status.nvme_tcp {
        nvme_tcp(&mut text, front);
    }
    for host in &status.hosts {
        self::host(&mut text, host);
    }
    for volume in &status.volumes {
        let earlier = before.and_then(|before| before.volumes.iter().find(|earlier| earlier.id == volume.id));
        let seconds = before.map_or(0.0, |before| rate_seconds(status.uptime_ns - before.uptime_ns));
        self::volume(&mut text, volume, earlier, seconds);
    }
    text
}

/// Where hosts connect, and how this node's path leads to each namespace.
fn nvme_tcp(text: &mut String, front: &NvmeTcpStatus) {
    let NvmeTcpStatus { listen, partner, subsystem, namespaces } = front;
    let partner = if partner.is_empty() { String::new() } else { format!(", partner at {partner}") };
    line(text, "NVMe/TCP", &format!("at {listen}{partner}; {subsystem}"));
    for NamespaceStatus { id, volume, access } in namespaces {
        line(text, "", &format!("namespace {id} is {volume}, {access}"));
    }
}

/// A host that speaks NVMe/TCP.
fn host(text: &mut String, host: &HostStatus) {
    let what = if host.is_discovery { "discovery".to_owned() } else { format!("{} I/O queue(s)", host.queues) };
    line(text, "host", &format!("{}, controller {}, {what}", host.host, host.controller));
}

/// The interconnect, and for each pool who serves it, whether its log is mirrored, and what would become of it if each node died now.
fn pair(text: &mut String, pair: &PairStatus) {
    let paths = format!("{} of {} path(s)", pair.paths_up, pair.paths);
    line(
        text,
        "partner",
        &format!("{} {}, {paths}, round trip {}", pair.partner, pair.link, show_ns(pair.round_trip_ns)),
    );
    if !pair.placement.is_empty() {
        line(text, "", &format!("interconnect on {}", pair.placement));
    }
    let [refusal, mending] = &pair.refusal;
    if !refusal.is_empty() {
        line(text, "", &format!("no pair: {refusal}; {mending}"));
    }
    for pool in &pair.pools {
        let owner = if pool.owner.is_empty() { "nobody known" } else { &pool.owner };
        let log = if pool.mirror.is_empty() { "unknown" } else { &pool.mirror };
        let head = format!("pool {}", pool.name);
        line(text, &head, &format!("served by {owner}, epoch {}, mirrored log {log}; {}", pool.epoch, pool.row));
        if !pool.command.is_empty() {
            line(text, "", &format!("waits to be carried out: {}", pool.command));
        }
        for (node, outcome) in ["this node", pair.partner.as_str()].iter().zip(&pool.if_dies) {
            if !outcome.is_empty() {
                line(text, "", &format!("if {node} died now: {outcome}"));
            }
        }
    }
    for volume in pair.taken_over.iter().flat_map(|status| &status.volumes) {
        self::volume(text, volume, None, 0.0);
    }
}

/// A table of the node's pools, of which there is one.
#[must_use]
pub fn pools(status: &NodeStatus) -> String {
    let pool = &status.pool;
    let width = pool.name.len().max(4);
    let used = pool.size_bytes.saturating_sub(pool.free_bytes);
    let (size, used, provisioned) = (show_bytes(pool.size_bytes), show_bytes(used), show_bytes(pool.provisioned_bytes));
    let (devices, volumes) = (pool.devices.len(), status.volumes.len());
    format!(
        "{:width$}  {:>10}  {:>10}  {:>11}  DEVICES  VOLUMES  STATE\n{:width$}  {size:>10}  {used:>10}  {provisioned:>11}  {devices:>7}  {volumes:>7}  {}\n",
        "NAME", "SIZE", "USED", "PROVISIONED", pool.name, status.state
    )
}

/// The pool alone.
#[must_use]
pub fn pool(status: &NodeStatus) -> String {
    let mut text = format!("pool {}  {}, epoch {}\n", status.pool.name, status.pool.id, status.pool.epoch);
    pool_figures(&mut text, status);
    for device in &status.pool.devices {
        line(&mut text, "device", &format!("{}  {}", device.name, show_bytes(device.size_bytes)));
    }
    text
}

/// The figures of the status's volumes alone, since the node started.
#[must_use]
pub fn volume_figures(status: &NodeStatus) -> String {
    let mut text = String::new();
    for one in &status.volumes {
        volume(&mut text, one, None, 0.0);
    }
    text
}

/// A table of volumes.
#[must_use]
pub fn volumes(volumes: &[VolumeStatus]) -> String {
    let width = volumes.iter().map(|volume| volume.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {:>10}  {:>10}  REACTOR  STATE\n", "NAME", "SIZE", "ALLOCATED");
    for volume in volumes {
        let (size, allocated) = (show_bytes(volume.size_bytes), show_bytes(volume.allocated_bytes));
        let state = if volume.offline.is_some() { "offline" } else { "online" };
        let (name, reactor) = (&volume.name, volume.reactor);
        put(&mut text, format_args!("{name:width$}  {size:>10}  {allocated:>10}  {reactor:<7}  {state}\n"));
    }
    text
}

/// A table of the hosts that may connect.
#[must_use]
pub fn hosts(hosts: &[HostEntry]) -> String {
    let width = hosts.iter().map(|host| host.nqn.len()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  SECRET    CONTROLLER'S  {:36}  FROM\n", "HOST", "IDENTIFIER");
    for host in hosts {
        let from = if host.is_configured { "node.toml" } else { "twinlog host" };
        let [own, controller] = [&host.secret, &host.controller_secret].map(|sum| sum.as_deref().unwrap_or("-"));
        let id = host.id.as_deref().unwrap_or("-");
        put(&mut text, format_args!("{:width$}  {own:<8}  {controller:<12}  {id:36}  {from}\n", host.nqn));
    }
    text
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes everything");
}

fn line(text: &mut String, head: &str, tail: &str) {
    put(text, format_args!("  {head:<9} {tail}\n"));
}

fn pool_figures(text: &mut String, status: &NodeStatus) {
    let pool = &status.pool;
    let used = pool.size_bytes.saturating_sub(pool.free_bytes);
    let space = format!(
        "{} {} of {} used, {} provisioned, {} freed soon",
        bar(used, pool.size_bytes),
        show_bytes(used),
        show_bytes(pool.size_bytes),
        show_bytes(pool.provisioned_bytes),
        show_bytes(pool.deferred_bytes)
    );
    line(text, "space", &space);
    // The clock knows nothing of what was before this process.
    let age = if pool.cp_age_ns > status.uptime_ns {
        "from before the start".to_owned()
    } else {
        format!("{} old, took {}", show_ns(pool.cp_age_ns), show_ns(pool.cp_duration_ns))
    };
    let cp = format!("{} is {age}, now {}", pool.cp, pool.cp_phase);
    line(text, "cp", &cp);
    for device in &pool.devices {
        let Some(health) = &device.health else { continue };
        let words: Vec<String> =
            health.wear.iter().map(wear).chain(flushes(health)).chain(confinement(health)).collect();
        if !words.is_empty() {
            line(text, "device", &format!("{}  {}", device.name, words.join("; ")));
        }
    }
}

fn wear(wear: &WearStatus) -> String {
    let WearStatus { temperature_celsius, spare_percent, used_percent, media_errors, .. } = wear;
    format!(
        "{temperature_celsius} C, spare {spare_percent} %, endurance used {used_percent} %, media errors {media_errors}"
    )
}

fn flushes(health: &HealthStatus) -> Option<String> {
    health.flushes_writes.then(|| "durable writes by flush".to_owned())
}

fn confinement(health: &HealthStatus) -> Option<String> {
    let confined_by = &health.confined_by;
    (!confined_by.is_empty()).then(|| format!("confined by {confined_by}"))
}

fn lane(text: &mut String, lane: &LaneStatus, is_mirrored: bool) {
    let mirrored = if is_mirrored { "mirrored" } else { "not mirrored" };
    let throttle =
        if lane.throttle_ns > 0 { format!(", throttled by {}", show_ns(lane.throttle_ns)) } else { String::new() };
    let fill = format!(
        "{} {} of {} used, {} on {}, {mirrored}{throttle}",
        bar(lane.used_bytes, lane.size_bytes),
        show_bytes(lane.used_bytes),
        show_bytes(lane.size_bytes),
        lane.durability,
        lane.backend
    );
    line(text, &format!("log {}", lane.lane), &fill);
}

fn resources(text: &mut String, status: &NodeStatus, before: Option<&NodeStatus>) {
    if status.memory_limit_bytes > 0 {
        let memory = format!(
            "{} {} used, {} cache, of {}; process {}",
            bar(status.memory_used_bytes, status.memory_limit_bytes),
            show_bytes(status.memory_used_bytes),
            show_bytes(status.memory_cached_bytes),
            show_bytes(status.memory_limit_bytes),
            show_bytes(status.memory_resident_bytes)
        );
        line(text, "memory", &memory);
    }
    let shares: Vec<String> = status
        .reactors
        .iter()
        .map(|reactor| {
            let earlier =
                before.and_then(|before| before.reactors.iter().find(|earlier| earlier.reactor == reactor.reactor));
            let busy = reactor.busy_ns.saturating_sub(earlier.map_or(0, |earlier| earlier.busy_ns));
            let time = status.uptime_ns - before.map_or(0, |before| before.uptime_ns);
            let share = permille(busy, time).min(1000);
            let place = reactor.cpu.map(|cpu| format!(" on CPU {cpu}")).unwrap_or_default();
            format!("reactor {}{place} {}.{} %", reactor.reactor, share / 10, share % 10)
        })
        .collect();
    line(text, "cpu", &shares.join(", "));
}

fn volume(text: &mut String, volume: &VolumeStatus, before: Option<&VolumeStatus>, seconds: f64) {
    let blocks = if volume.block_bytes == BlockSize::Bytes512.bytes() { " in blocks of 512 bytes" } else { "" };
    let head = format!(
        "{}  {}{blocks}, {} allocated, reactor {}",
        volume.name,
        show_bytes(volume.size_bytes),
        show_bytes(volume.allocated_bytes),
        volume.reactor
    );
    line(text, "volume", &head);
    if let Some(OfflineStatus { lane, lsn, why, held_records, held_bytes }) = &volume.offline {
        let record = format!("the record of log lane {lane} at position {lsn} could not be performed: {why}");
        line(text, "offline", &record);
        line(text, "held", &format!("{held_records} record(s), {}", show_bytes(*held_bytes)));
    }
    if let Some(reservation) = &volume.reservation {
        let held = match (reservation.kind.as_str(), reservation.holder.as_str()) {
            ("", _) => "not held".to_owned(),
            (kind, "") => kind.to_owned(),
            (kind, holder) => format!("{kind}, held by {holder}"),
        };
        line(text, "reserved", &format!("{held}; {} registrant(s)", reservation.registrants.len()));
    }
    operations(text, "reads", &volume.reads, before.map(|before| &before.reads), seconds);
    operations(text, "writes", &volume.writes, before.map(|before| &before.writes), seconds);
}

fn operations(text: &mut String, kind: &str, now: &OperationStatus, before: Option<&OperationStatus>, seconds: f64) {
    let latencies = format!(
        "p50 {}, p99 {}, p99.9 {}, p99.99 {}, max {}",
        show_ns(now.p50_ns),
        show_ns(now.p99_ns),
        show_ns(now.p999_ns),
        show_ns(now.p9999_ns),
        show_ns(now.max_ns)
    );
    let rates = match before {
        Some(before) if seconds > 0.0 => {
            let per_second = |now: u64, before: u64| rate(now.saturating_sub(before), seconds);
            format!(
                "{} IOPS, {}/s; ",
                per_second(now.count, before.count),
                show_bytes(per_second(now.bytes, before.bytes))
            )
        }
        _ => format!("{} in all, {}; ", now.count, show_bytes(now.bytes)),
    };
    line(text, "", &format!("{kind:<6} {rates}{latencies}"));
}

#[expect(clippy::cast_precision_loss, reason = "a figure for the eye")]
fn rate_seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a figure for the eye; not negative"
)]
fn rate(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds).round() as u64
}

/// `[#####...............]  25 %`
fn bar(part: u64, whole: u64) -> String {
    let share = permille(part, whole).min(1000);
    // Anything in use shows.
    let cells = (share * BAR_CELLS).div_ceil(1000);
    let filled = |count: u64, cell: &str| cell.repeat(usize::try_from(count).expect("at most the bar's length"));
    format!("[{}{}] {:>3} %", filled(cells, "#"), filled(BAR_CELLS - cells, "."), share / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::status::{judge, tests::healthy},
        node::admin::{RegistrantStatus, ReservationStatus},
    };

    #[test]
    fn a_healthy_node_reads_like_this() {
        let status = healthy();
        let text = summary(&judge(&status)) + &figures(&status, None);
        let expected = "\
OK  single node, log not mirrored (so configured); answered changes survive a power cut
  now       serving 1 volume(s) to 1 connection(s), up 60.0 s, CP 42 idle
  next      nothing to do
  space     [#####...............]  25 % 1.00 GiB of 4.00 GiB used, 4.00 GiB provisioned, 0 B freed soon
  cp        42 is 1.50 s old, took 30.0 ms, now idle
  log 0     [#####...............]  25 % 64.0 MiB of 256 MiB used, durable on file, not mirrored
  memory    [######..............]  26 % 100 MiB used, 200 MiB cache, of 384 MiB; process 320 MiB
  cpu       reactor 0 3.3 %
  volume    vol-a  4.00 GiB, 1.00 GiB allocated, reactor 0
            reads  1000 in all, 3.90 MiB; p50 80.0 us, p99 400 us, p99.9 900 us, p99.99 1.00 ms, max 2.00 ms
            writes 1000 in all, 3.90 MiB; p50 80.0 us, p99 400 us, p99.9 900 us, p99.99 1.00 ms, max 2.00 ms
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_device_is_shown_with_what_is_known_of_it() {
        let shown = |health: Option<HealthStatus>| {
            let mut status = healthy();
            status.pool.devices[0].health = health;
            let text = figures(&status, None);
            text.lines().find_map(|line| Some(line.strip_prefix("  device    ")?.to_owned()))
        };
        let wear = WearStatus { temperature_celsius: 38, spare_percent: 100, ..WearStatus::default() };
        let confined_by = "IOMMUFD".to_owned();
        let health = HealthStatus { confined_by, wear: Some(wear), ..HealthStatus::default() };
        assert_eq!(
            shown(Some(health.clone())).as_deref(),
            Some("disks/pool-a.img  38 C, spare 100 %, endurance used 0 %, media errors 0; confined by IOMMUFD")
        );
        let flushes = HealthStatus { flushes_writes: true, ..health.clone() };
        assert!(shown(Some(flushes)).is_some_and(|text| text.contains("; durable writes by flush; confined")));
        let starting = HealthStatus { wear: None, ..health };
        assert_eq!(shown(Some(starting)).as_deref(), Some("disks/pool-a.img  confined by IOMMUFD"));
        assert_eq!(shown(Some(HealthStatus::default())), None);
        assert_eq!(shown(None), None);
    }

    #[test]
    fn rates_belong_to_the_time_between_two_samples() {
        let before = healthy();
        let mut status = healthy();
        status.uptime_ns += 500_000_000;
        status.reactors[0].busy_ns += 250_000_000;
        status.reactors[0].cpu = Some(3);
        status.volumes[0].writes.count += 10_000;
        status.volumes[0].writes.bytes += 4096 * 10_000;
        let text = figures(&status, Some(&before));
        assert!(text.contains("writes 20000 IOPS, 78.1 MiB/s;"), "{text}");
        assert!(text.contains("reads  0 IOPS, 0 B/s;"), "{text}");
        assert!(text.contains("reactor 0 on CPU 3 50.0 %"), "{text}");
        assert!(
            figures(&before, Some(&status)).contains("1000 in all"),
            "an earlier sample of another process is not used"
        );
    }

    #[test]
    fn a_volume_that_is_reserved_says_by_whom() {
        let mut status = healthy();
        let host = "0123456789abcdef0123456789abcdef".to_owned();
        let key = "00000000000000a1".to_owned();
        let registrants = vec![RegistrantStatus { host: host.clone(), key }];
        let kind = "write-exclusive".to_owned();
        let mut reservation = ReservationStatus { kind, holder: host, persists: true, generation: 2, registrants };
        status.volumes[0].reservation = Some(reservation.clone());
        let text = volume_figures(&status);
        let line = "  reserved  write-exclusive, held by 0123456789abcdef0123456789abcdef; 1 registrant(s)\n";
        assert!(text.contains(line), "{text}");
        (reservation.kind, reservation.holder) = (String::new(), String::new());
        status.volumes[0].reservation = Some(reservation);
        assert!(volume_figures(&status).contains("  reserved  not held; 1 registrant(s)\n"));
    }

    #[test]
    fn what_is_wrong_comes_with_its_remedy() {
        let mut status = healthy();
        status.lanes[0].durability = "volatile".to_owned();
        status.lanes[0].backend = "memory".to_owned();
        let text = summary(&judge(&status));
        assert!(text.starts_with("DEGRADED  log lane 0: durability is `volatile` (memory)"), "{text}");
        assert!(text.contains("  degraded  log lane 0"), "{text}");
        assert!(text.contains("-> put the log on a file"), "{text}");
    }

    #[test]
    fn a_node_that_is_opening_has_few_figures_and_no_division_by_zero() {
        let status = NodeStatus { state: "opening".to_owned(), ..NodeStatus::default() };
        assert!(summary(&judge(&status)).starts_with("STOPPED"));
        assert_eq!(figures(&status, None), "  cpu       \n");
        assert_eq!(bar(0, 0), "[....................]   0 %");
        assert_eq!(bar(1, u64::MAX), "[....................]   0 %");
        assert_eq!(bar(7, 7), "[####################] 100 %");
    }

    #[test]
    fn pools_and_volumes_line_up() {
        assert_eq!(
            pools(&healthy()),
            "NAME        SIZE        USED  PROVISIONED  DEVICES  VOLUMES  STATE\na       4.00 GiB    1.00 GiB     4.00 GiB        1        1  serving\n"
        );
        assert_eq!(
            volumes(&healthy().volumes),
            "NAME         SIZE   ALLOCATED  REACTOR  STATE\nvol-a    4.00 GiB    1.00 GiB  0        online\n"
        );
    }
}
