//! Prometheus metrics: a node's status in Prometheus' text format, over a very small HTTP/1.1 responder.
//!
//! # Invariants
//!
//! 1. Only `GET /metrics` is answered with content; the request head has at most `HEAD_BYTES_MAX` bytes and must be complete within
//!    `CLIENT_WAIT_MAX`; every connection is closed after one answer. At most `CLIENTS_MAX` are served at a time, further ones wait, so
//!    clients that stall cost others at most that time for every `CLIENTS_MAX` of them.
//! 2. Metrics are read from one [`NodeStatus`], so the figures of one answer belong together.

use super::admin::NodeHandle;
use crate::node::admin::{
    AdminReply, AdminRequest, HealthStatus, HostStatus, LaneStatus, NodeStatus, NvmeTcpStatus, OperationStatus,
    PairPoolStatus, PairStatus, ReactorStatus, VolumeStatus, WearStatus,
};
use crossbeam_channel::{Receiver, bounded};
use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Clients served at the same time: a few collectors, and some that stall.
const CLIENTS_MAX: usize = 8;
/// How long a client may take to send its request, and again to take the answer.
const CLIENT_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long the node may take to tell its status.
const NODE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The running responder.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Serves the metrics of `node`, called `name`, at `address`.
    ///
    /// # Errors
    /// The kernel's, when it refuses the address or the thread.
    pub fn start(address: SocketAddr, name: &str, node: NodeHandle) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (name, node) = (Arc::<str>::from(name), node);
        let serve = move || {
            // A place is taken by sending and given back by receiving.
            let (take, give_back) = bounded(CLIENTS_MAX);
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                take.send(()).expect("this thread holds the other end");
                if let Err(error) = stream.and_then(|stream| spawn(stream, (&name, &node), &give_back)) {
                    give_back.recv().expect("taken above");
                    tracing::warn!(%error, "metrics client not served");
                    // No file descriptor or thread left: the same would come back at once.
                    std::thread::park_timeout(Duration::from_millis(10));
                }
            }
        };
        let thread = Builder::new().name("metrics".to_owned()).spawn(serve)?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The connection ends the wait for one.
        let woken = TcpStream::connect_timeout(&self.address, CLIENT_WAIT_MAX).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _panicked = thread.join();
        }
    }
}

/// Serves a client on a thread of its own, which gives its place back.
fn spawn(stream: TcpStream, (name, node): (&Arc<str>, &NodeHandle), give_back: &Receiver<()>) -> io::Result<()> {
    let (name, node, give_back) = (Arc::clone(name), node.clone(), give_back.clone());
    let serve = move || {
        if let Err(error) = answer(stream, &name, &node) {
            tracing::debug!(%error, "metrics client not served");
        }
        give_back.recv().expect("the place was taken before");
    };
    Builder::new().name("metrics client".to_owned()).spawn(serve).map(drop)
}

fn answer(mut stream: TcpStream, name: &str, node: &NodeHandle) -> io::Result<()> {
    stream.set_write_timeout(Some(CLIENT_WAIT_MAX))?;
    let head = read_head(&mut stream)?;
    let (status, kind, body) = match request_of(&head) {
        Request::Metrics => match node.ask(AdminRequest::Status, Some(NODE_WAIT_MAX)) {
            AdminReply::Status(status) => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text(name, &status)),
            _ => ("503 Service Unavailable", "text/plain", "the node does not answer\n".to_owned()),
        },
        Request::OtherPath => ("404 Not Found", "text/plain", "only /metrics is here\n".to_owned()),
        Request::OtherMethod => ("405 Method Not Allowed", "text/plain", "only GET\n".to_owned()),
        Request::Malformed => ("400 Bad Request", "text/plain", "not an HTTP request\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// Reads until the empty line, the bound, the end of input, or the time is over.
#[expect(clippy::disallowed_methods, reason = "an ordinary thread; the deadline of a client is real time")]
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + CLIENT_WAIT_MAX;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while head.len() < HEAD_BYTES_MAX && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer)? {
            0 => break,
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(head)
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Metrics,
    OtherPath,
    OtherMethod,
    Malformed,
}

fn request_of(head: &[u8]) -> Request {
    let complete = head.windows(4).any(|end| end == b"\r\n\r\n");
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    match words[..] {
        [method, target, version] if complete && version.starts_with(b"HTTP/1.") => {
            let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
            match (method, path) {
                (b"GET", b"/metrics") => Request::Metrics,
                (b"GET", _) => Request::OtherPath,
                _ => Request::OtherMethod,
            }
        }
        _ => Request::Malformed,
    }
}

/// The labels of a sample: name and value.
type Labels = Vec<(&'static str, String)>;

/// A page of metrics in Prometheus' text format, version 0.0.4.
struct Page {
    node: String,
    text: String,
}

impl Page {
    /// One metric with all its samples. A counter's name ends in `_total`, a unit's name stands before that.
    fn metric(&mut self, kind: &str, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        debug_assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
        self.head(kind, name, help);
        for (labels, value) in samples {
            self.sample(name, "", &labels, value);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        self.metric("gauge", name, help, samples);
    }

    fn counter(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        self.metric("counter", name, help, samples);
    }

    fn head(&mut self, kind: &str, name: &str, help: &str) {
        self.put(format_args!("# HELP twinlog_{name} {help}\n# TYPE twinlog_{name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &Labels, value: f64) {
        let node = self.node.clone();
        self.put(format_args!("twinlog_{name}{suffix}{{node=\"{node}\""));
        for (label, text) in labels {
            let text = text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            self.put(format_args!(",{label}=\"{text}\""));
        }
        self.put(format_args!("}} {value}\n"));
    }

    fn put(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.text.write_fmt(arguments).expect("a String takes everything");
    }
}

/// The metrics of one status.
#[must_use]
pub fn text(name: &str, status: &NodeStatus) -> String {
    let mut page = Page { node: name.to_owned(), text: String::new() };
    let about = (vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1.0);
    page.gauge("build_info", "The program", [about]);
    put_node(&mut page, status);
    put_pool(&mut page, status);
    put_devices(&mut page, status);
    put_lanes(&mut page, status);
    put_volumes(&mut page, status);
    if let Some(front) = &status.nvme_tcp {
        put_hosts(&mut page, &status.hosts, front);
    }
    if let Some(pair) = &status.pair {
        put_pair(&mut page, name, pair);
    }
    page.text
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus figures are floating-point; 53 bits are exact to 8 PiB and 104 days in ns"
)]
fn figure(number: u64) -> f64 {
    number as f64
}

fn seconds(nanos: u64) -> f64 {
    figure(nanos) / 1e9
}

fn one(value: f64) -> [(Labels, f64); 1] {
    [(Labels::new(), value)]
}

fn put_node(page: &mut Page, status: &NodeStatus) {
    let serving = if status.state == "serving" { 1.0 } else { 0.0 };
    page.gauge("serving", "1 while requests are served", one(serving));
    page.gauge("uptime_seconds", "Time since the node started", one(seconds(status.uptime_ns)));
    page.gauge("memory_used_bytes", "Block memory in use, the cache apart", one(figure(status.memory_used_bytes)));
    page.gauge("memory_cached_bytes", "Block memory that caches disks", one(figure(status.memory_cached_bytes)));
    page.gauge("memory_limit_bytes", "Bound of block memory", one(figure(status.memory_limit_bytes)));
    page.gauge("memory_resident_bytes", "Memory of the process", one(figure(status.memory_resident_bytes)));
    let replayed = one(figure(status.replayed_records));
    page.gauge("replayed_records", "Log records replayed when the pool was opened", replayed);
    let reactor = |value: fn(&ReactorStatus) -> f64| {
        status.reactors.iter().map(move |reactor| (vec![("reactor", reactor.reactor.to_string())], value(reactor)))
    };
    let busy = reactor(|reactor| seconds(reactor.busy_ns));
    page.counter("reactor_busy_seconds_total", "Time not spent sleeping", busy);
    page.counter("reactor_turns_total", "Turns of the polling loop", reactor(|reactor| figure(reactor.turns)));
    let connections = reactor(|reactor| figure(reactor.connections));
    page.gauge("reactor_connections", "Open client connections", connections);
}

fn put_pool(page: &mut Page, status: &NodeStatus) {
    let pool = &status.pool;
    page.gauge("pool_size_bytes", "Bytes that can hold blocks", one(figure(pool.size_bytes)));
    page.gauge("pool_free_bytes", "Bytes free for new data", one(figure(pool.free_bytes)));
    let deferred = one(figure(pool.deferred_bytes));
    page.gauge("pool_deferred_bytes", "Bytes that become free with coming consistency points", deferred);
    page.gauge("pool_provisioned_bytes", "Sum of the volumes' sizes", one(figure(pool.provisioned_bytes)));
    let errors = one(figure(pool.checksum_errors));
    page.counter("pool_checksum_errors_total", "Reads of a block whose checksum did not match", errors);
    page.gauge("pool_epoch", "Ownership generation", one(figure(pool.epoch)));
    page.gauge("cp_number", "Newest durable consistency point", one(figure(pool.cp)));
    page.gauge("cp_age_seconds", "Age of the newest durable consistency point", one(seconds(pool.cp_age_ns)));
    let duration = one(seconds(pool.cp_duration_ns));
    page.gauge("cp_duration_seconds", "How long the last consistency point took", duration);
}

fn put_devices(page: &mut Page, status: &NodeStatus) {
    let healths = || status.pool.devices.iter().filter_map(|device| Some((&device.name, device.health.as_ref()?)));
    let labels = |name: &String| vec![("device", name.clone())];
    let of = |value: fn(&HealthStatus) -> f64| healths().map(move |(name, health)| (labels(name), value(health)));
    let wear = |value: fn(&WearStatus) -> f64| {
        healths().filter_map(move |(name, health)| Some((labels(name), value(health.wear.as_ref()?))))
    };
    let serves = of(|health| figure(u64::from(health.trouble.is_empty())));
    page.gauge("device_serving", "1 while the device serves", serves);
    let oldest = of(|health| seconds(health.oldest_ns));
    page.gauge("device_oldest_operation_seconds", "For how long it has had its oldest operation", oldest);
    let warnings = of(|health| figure(health.warnings.len() as u64));
    page.gauge("device_critical_warnings", "Conditions that the device calls critical", warnings);
    page.counter("device_errors_total", "Operations that it failed", of(|health| figure(health.errors)));
    page.counter("device_timeouts_total", "Operations not answered in time", of(|health| figure(health.timeouts)));
    page.counter("device_resets_total", "Resets that it needed", of(|health| figure(health.resets)));
    let temperature = wear(|wear| f64::from(wear.temperature_celsius));
    page.gauge("device_temperature_celsius", "Its temperature", temperature);
    page.gauge("device_spare_ratio", "Spare that is left", wear(|wear| f64::from(wear.spare_percent) / 100.0));
    page.gauge("device_used_ratio", "Endurance used", wear(|wear| f64::from(wear.used_percent) / 100.0));
    let media = wear(|wear| figure(wear.media_errors));
    page.counter("device_media_errors_total", "Errors of its media over its life", media);
}

fn put_lanes(page: &mut Page, status: &NodeStatus) {
    let lanes = |value: fn(&LaneStatus) -> f64| {
        status.lanes.iter().map(move |lane| {
            let (backend, durability) = (lane.backend.clone(), lane.durability.clone());
            let labels = vec![("lane", lane.lane.to_string()), ("backend", backend), ("durability", durability)];
            (labels, value(lane))
        })
    };
    page.gauge("log_size_bytes", "Bytes of the lane", lanes(|lane| figure(lane.size_bytes)));
    page.gauge("log_used_bytes", "Bytes not yet trimmed", lanes(|lane| figure(lane.used_bytes)));
    page.gauge("log_throttle_seconds", "Delay of new changes in force", lanes(|lane| seconds(lane.throttle_ns)));
    let appended = lanes(|lane| figure(lane.head_lsn));
    page.counter("log_appended_bytes_total", "Bytes ever appended to the lane", appended);
}

fn put_volumes(page: &mut Page, status: &NodeStatus) {
    let name = |volume: &VolumeStatus| ("volume", volume.name.clone());
    let volumes =
        |value: fn(&VolumeStatus) -> f64| status.volumes.iter().map(move |volume| (vec![name(volume)], value(volume)));
    page.gauge("volume_size_bytes", "Size of the volume", volumes(|volume| figure(volume.size_bytes)));
    let allocated = volumes(|volume| figure(volume.allocated_bytes));
    page.gauge("volume_allocated_bytes", "Bytes allocated to the volume", allocated);
    let offline = volumes(|volume| figure(u64::from(volume.offline.is_some())));
    page.gauge("volume_offline", "1 while the volume is offline", offline);
    let held = volumes(|volume| volume.offline.as_ref().map_or(0.0, |offline| figure(offline.held_records)));
    page.gauge("volume_held_records", "Records of a volume that is offline, to be performed", held);
    let held = volumes(|volume| volume.offline.as_ref().map_or(0.0, |offline| figure(offline.held_bytes)));
    page.gauge("volume_held_bytes", "Their bytes", held);
    let operations = || {
        status.volumes.iter().flat_map(move |volume| {
            [("read", &volume.reads), ("write", &volume.writes)]
                .map(|(kind, figures)| (vec![name(volume), ("operation", kind.to_owned())], figures))
        })
    };
    let counts = operations().map(|(labels, figures)| (labels, figure(figures.count)));
    page.counter("volume_operations_total", "Operations since start", counts);
    let bytes = operations().map(|(labels, figures)| (labels, figure(figures.bytes)));
    page.counter("volume_transferred_bytes_total", "Bytes since start", bytes);
    put_latency(page, "volume_latency_seconds", "Latency since start, submission to reply", operations());
}

fn put_latency<'a>(
    page: &mut Page,
    name: &str,
    help: &str,
    operations: impl Iterator<Item = (Labels, &'a OperationStatus)>,
) {
    page.head("summary", name, help);
    for (labels, figures) in operations {
        for (quantile, nanos) in [
            ("0.5", figures.p50_ns),
            ("0.99", figures.p99_ns),
            ("0.999", figures.p999_ns),
            ("0.9999", figures.p9999_ns),
            ("1", figures.max_ns),
        ] {
            let labels = [labels.clone(), vec![("quantile", quantile.to_owned())]].concat();
            page.sample(name, "", &labels, seconds(nanos));
        }
        page.sample(name, "_sum", &labels, seconds(figures.total_ns));
        page.sample(name, "_count", &labels, figure(figures.count));
    }
}

fn put_hosts(page: &mut Page, hosts: &[HostStatus], front: &NvmeTcpStatus) {
    let queues: u32 = hosts.iter().map(|host| host.queues).sum();
    page.gauge("nvme_tcp_controllers", "Controllers of hosts", one(figure(hosts.len() as u64)));
    page.gauge("nvme_tcp_queues", "I/O queues of hosts", one(f64::from(queues)));
    let optimized = front.namespaces.iter().map(|namespace| {
        let labels = vec![("namespace", namespace.id.to_string()), ("volume", namespace.volume.clone())];
        (labels, if namespace.access == "optimized" { 1.0 } else { 0.0 })
    });
    page.gauge("nvme_tcp_optimized", "1 if the path to this node is the optimized one", optimized);
}

fn put_pair(page: &mut Page, name: &str, pair: &PairStatus) {
    let is = |is: bool| if is { 1.0 } else { 0.0 };
    page.gauge("pair_link_up", "1 while the partner answers", one(is(pair.link == "up")));
    page.gauge("pair_paths_up", "Paths of the interconnect that work", one(figure(pair.paths_up)));
    page.gauge("pair_round_trip_seconds", "Newest round trip of a heartbeat", one(seconds(pair.round_trip_ns)));
    let pools = |value: &dyn Fn(&PairPoolStatus) -> f64| -> Vec<(Labels, f64)> {
        pair.pools.iter().map(|pool| (vec![("pool", pool.name.clone())], value(pool))).collect()
    };
    page.gauge("pair_owner", "1 if this node owns the pool", pools(&|pool| is(pool.owner == name)));
    page.gauge(
        "pair_in_sync",
        "1 if both logs have every answered change",
        pools(&|pool| is(pool.mirror == "in sync")),
    );
    page.gauge("pair_as_it_should_be", "1 if nothing is left to do", pools(&|pool| is(pool.is_final)));
    page.counter("pair_takeovers_total", "Takeovers by this process", pools(&|pool| figure(pool.takeovers)));
    let unmirrored = pools(&|pool| seconds(pool.unmirrored_ns));
    page.counter("pair_unmirrored_seconds_total", "Time in which this process answered without a mirror", unmirrored);
    let lag = pools(&|pool| figure(pool.mirror_lag_bytes));
    page.gauge("pair_mirror_lag_bytes", "Bytes sent to the partner's log and not acknowledged", lag);
    let mirrored = pools(&|pool| figure(pool.mirrored.bytes));
    page.counter("pair_mirrored_bytes_total", "Bytes that the partner's log has acknowledged", mirrored);
    let batches = pair.pools.iter().map(|pool| (vec![("pool", pool.name.clone())], &pool.mirrored));
    put_latency(
        page,
        "pair_mirror_latency_seconds",
        "From sending a batch to the partner's word that it is durable",
        batches,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::status::tests::healthy,
        node::admin::{AdminCall, NamespaceStatus},
        reactor::mailbox::{Waker, mailbox},
    };

    struct Nobody;
    impl Waker for Nobody {
        fn wake(&self) {}
    }

    #[test]
    fn the_request_line_decides() {
        let of = |head: &str| request_of(head.as_bytes());
        assert_eq!(of("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), Request::Metrics);
        assert_eq!(of("GET /metrics?x=1 HTTP/1.0\r\n\r\n"), Request::Metrics);
        assert_eq!(of("GET / HTTP/1.1\r\n\r\n"), Request::OtherPath);
        assert_eq!(of("POST /metrics HTTP/1.1\r\n\r\n"), Request::OtherMethod);
        for bad in ["", "GET /metrics HTTP/1.1\r\n", "GET /metrics\r\n\r\n", "\r\n\r\n", "GET /metrics SSH-2\r\n\r\n"] {
            assert_eq!(of(bad), Request::Malformed, "{bad:?}");
        }
    }

    #[test]
    fn every_figure_of_the_status_is_there_with_its_labels() {
        let text = text("a", &healthy());
        for line in [
            "twinlog_serving{node=\"a\"} 1",
            "twinlog_pool_free_bytes{node=\"a\"} 3221225472",
            "twinlog_log_used_bytes{node=\"a\",lane=\"0\",backend=\"file\",durability=\"durable\"} 67108864",
            "twinlog_volume_operations_total{node=\"a\",volume=\"vol-a\",operation=\"write\"} 1000",
            "twinlog_volume_latency_seconds{node=\"a\",volume=\"vol-a\",operation=\"read\",quantile=\"0.999\"} 0.0009",
            "twinlog_reactor_busy_seconds_total{node=\"a\",reactor=\"0\"} 2",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn hosts_have_figures() {
        let host = HostStatus { queues: 2, ..HostStatus::default() };
        let namespace = NamespaceStatus { id: 3, volume: "v".to_owned(), access: "optimized".to_owned() };
        let front = NvmeTcpStatus { namespaces: vec![namespace], ..NvmeTcpStatus::default() };
        let text = text("a", &NodeStatus { hosts: vec![host.clone(), host], nvme_tcp: Some(front), ..healthy() });
        for line in [
            "twinlog_nvme_tcp_controllers{node=\"a\"} 2",
            "twinlog_nvme_tcp_queues{node=\"a\"} 4",
            "twinlog_nvme_tcp_optimized{node=\"a\",namespace=\"3\",volume=\"v\"} 1",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is missing in:\n{text}");
        }
    }

    fn of_a_pair() -> NodeStatus {
        let pool = PairPoolStatus {
            name: "b".to_owned(),
            owner: "a".to_owned(),
            mirror: "in sync".to_owned(),
            takeovers: 2,
            unmirrored_ns: 1_500_000_000,
            mirrored: OperationStatus { count: 3, p99_ns: 250_000, ..OperationStatus::default() },
            ..PairPoolStatus::default()
        };
        let pair = PairStatus { link: "up".to_owned(), pools: vec![pool], ..PairStatus::default() };
        NodeStatus { pair: Some(pair), ..healthy() }
    }

    #[test]
    fn the_pair_has_figures_of_its_own() {
        let text = text("a", &of_a_pair());
        for line in [
            "twinlog_pair_link_up{node=\"a\"} 1",
            "twinlog_pair_owner{node=\"a\",pool=\"b\"} 1",
            "twinlog_pair_takeovers_total{node=\"a\",pool=\"b\"} 2",
            "twinlog_pair_unmirrored_seconds_total{node=\"a\",pool=\"b\"} 1.5",
            "twinlog_pair_mirror_latency_seconds{node=\"a\",pool=\"b\",quantile=\"0.99\"} 0.00025",
            "twinlog_pair_mirror_latency_seconds_count{node=\"a\",pool=\"b\"} 3",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is missing in:\n{text}");
        }
    }

    /// What `promtool check metrics` asks for, and what a parser of the text format needs.
    #[test]
    fn the_page_keeps_the_rules_of_its_format() {
        let mut status = of_a_pair();
        status.volumes[0].name = "a\"b\\c".to_owned();
        let text = text("a", &status);
        assert!(text.contains(r#"volume="a\"b\\c""#), "{text}");
        let mut known = std::collections::BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a name and a type");
                assert!(["gauge", "counter", "summary"].contains(&kind), "{line}");
                assert!(known.insert(name, kind).is_none(), "described once: {line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(text.contains(&format!("# HELP {name} ")), "{line}");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let name = line.split('{').next().expect("a name");
            let family = name.trim_end_matches("_sum").trim_end_matches("_count");
            let kind = known.get(name).or_else(|| known.get(family)).unwrap_or_else(|| panic!("no type before {line}"));
            assert_eq!(line.contains("quantile="), *kind == "summary" && name == family, "{line}");
            let value: f64 = line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number");
            assert!(value.is_finite());
        }
    }

    #[test]
    fn a_browser_gets_its_answer_and_a_stopped_node_is_503() {
        let (sender, calls) = mailbox::<AdminCall>(1, Arc::new(Nobody));
        drop(calls);
        let server = MetricsServer::start("127.0.0.1:0".parse().expect("an address"), "a", NodeHandle::new(sender))
            .expect("started");
        let ask = |request: &str| {
            let mut stream = TcpStream::connect(server.address()).expect("connected");
            stream.write_all(request.as_bytes()).expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer that ends");
            answer
        };
        assert!(ask("GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503 "));
        assert!(ask("GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        let flood = "x".repeat(HEAD_BYTES_MAX);
        assert!(ask(&flood).starts_with("HTTP/1.1 400 "));
    }
}
