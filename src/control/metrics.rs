//! Prometheus metrics: a node's status in the OpenMetrics text format, over a very small HTTP/1.1 responder.
//!
//! # Invariants
//!
//! 1. Only `GET /metrics` is answered with content; the request head has at most `HEAD_BYTES_MAX` bytes and must be complete within
//!    `CLIENT_WAIT_MAX`; every connection is closed after one answer. One thread serves one client after the other, so a client that
//!    stalls costs others at most that time.
//! 2. Metrics are read from one [`NodeStatus`], so the figures of one answer belong together.

use super::admin::NodeHandle;
use crate::node::admin::{AdminReply, AdminRequest, NodeStatus, OperationStatus};
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 8 << 10;
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
        let (stopped, name) = (Arc::clone(&stop), name.to_owned());
        let serve = move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                match stream.and_then(|stream| answer(stream, &name, &node)) {
                    Ok(()) => {}
                    Err(error) => {
                        tracing::debug!(%error, "metrics client not served");
                        // An error of `accept` itself (no file descriptor left) would come back at once.
                        std::thread::park_timeout(Duration::from_millis(10));
                    }
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

fn answer(mut stream: TcpStream, name: &str, node: &NodeHandle) -> io::Result<()> {
    stream.set_write_timeout(Some(CLIENT_WAIT_MAX))?;
    let head = read_head(&mut stream)?;
    let (status, kind, body) = match request_of(&head) {
        Request::Metrics => match node.ask(AdminRequest::Status, Some(NODE_WAIT_MAX)) {
            AdminReply::Status(status) => {
                ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text(name, &status))
            }
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

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter<f64, AtomicU64>>;

/// The metrics of one status.
#[must_use]
pub fn text(name: &str, status: &NodeStatus) -> String {
    let labels = [("node".into(), name.to_owned().into())];
    let mut registry = Registry::with_prefix_and_labels("twinlog", labels.into_iter());
    let about = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program", about);
    register_node(&mut registry, status);
    register_pool(&mut registry, status);
    register_lanes(&mut registry, status);
    register_volumes(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
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

fn gauge(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl IntoIterator<Item = (Labels, f64)>,
) {
    let family = Gauges::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

fn counter(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    values: impl IntoIterator<Item = (Labels, f64)>,
) {
    let family = Counters::default();
    for (labels, value) in values {
        family.get_or_create(&labels).inc_by(value);
    }
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

fn one(value: f64) -> [(Labels, f64); 1] {
    [(Labels::new(), value)]
}

fn register_node(registry: &mut Registry, status: &NodeStatus) {
    let serving = if status.state == "serving" { 1.0 } else { 0.0 };
    gauge(registry, "serving", "1 while requests are served", None, one(serving));
    gauge(registry, "uptime", "Time since the node started", Some(Unit::Seconds), one(seconds(status.uptime_ns)));
    gauge(registry, "memory_used", "Block memory in use", Some(Unit::Bytes), one(figure(status.memory_used_bytes)));
    gauge(registry, "memory_limit", "Bound of block memory", Some(Unit::Bytes), one(figure(status.memory_limit_bytes)));
    gauge(
        registry,
        "replayed_records",
        "Log records replayed when the pool was opened",
        None,
        one(figure(status.replayed_records)),
    );
    let reactor = |value: fn(&crate::node::admin::ReactorStatus) -> f64| {
        status.reactors.iter().map(move |reactor| (vec![("reactor", reactor.reactor.to_string())], value(reactor)))
    };
    counter(
        registry,
        "reactor_busy",
        "Time not spent sleeping",
        Some(Unit::Seconds),
        reactor(|reactor| seconds(reactor.busy_ns)),
    );
    counter(registry, "reactor_turns", "Turns of the polling loop", None, reactor(|reactor| figure(reactor.turns)));
    gauge(
        registry,
        "reactor_connections",
        "Open client connections",
        None,
        reactor(|reactor| figure(reactor.connections)),
    );
}

fn register_pool(registry: &mut Registry, status: &NodeStatus) {
    let pool = &status.pool;
    gauge(registry, "pool_size", "Bytes that can hold blocks", Some(Unit::Bytes), one(figure(pool.size_bytes)));
    gauge(registry, "pool_free", "Bytes free for new data", Some(Unit::Bytes), one(figure(pool.free_bytes)));
    gauge(
        registry,
        "pool_deferred",
        "Bytes that become free with coming consistency points",
        Some(Unit::Bytes),
        one(figure(pool.deferred_bytes)),
    );
    gauge(
        registry,
        "pool_provisioned",
        "Sum of the volumes' sizes",
        Some(Unit::Bytes),
        one(figure(pool.provisioned_bytes)),
    );
    counter(
        registry,
        "pool_checksum_errors",
        "Blocks whose checksum did not match",
        None,
        one(figure(pool.checksum_errors)),
    );
    gauge(registry, "pool_epoch", "Ownership generation", None, one(figure(pool.epoch)));
    gauge(registry, "cp_number", "Newest durable consistency point", None, one(figure(pool.cp)));
    gauge(
        registry,
        "cp_age",
        "Age of the newest durable consistency point",
        Some(Unit::Seconds),
        one(seconds(pool.cp_age_ns)),
    );
    gauge(
        registry,
        "cp_duration",
        "How long the last consistency point took",
        Some(Unit::Seconds),
        one(seconds(pool.cp_duration_ns)),
    );
}

fn register_lanes(registry: &mut Registry, status: &NodeStatus) {
    let lanes = |value: fn(&crate::node::admin::LaneStatus) -> f64| {
        status.lanes.iter().map(move |lane| {
            let labels = vec![
                ("lane", lane.lane.to_string()),
                ("backend", lane.backend.clone()),
                ("durability", lane.durability.clone()),
            ];
            (labels, value(lane))
        })
    };
    gauge(registry, "log_size", "Bytes of the lane", Some(Unit::Bytes), lanes(|lane| figure(lane.size_bytes)));
    gauge(registry, "log_used", "Bytes not yet trimmed", Some(Unit::Bytes), lanes(|lane| figure(lane.used_bytes)));
    gauge(
        registry,
        "log_throttle",
        "Delay of new changes in force",
        Some(Unit::Seconds),
        lanes(|lane| seconds(lane.throttle_ns)),
    );
    counter(
        registry,
        "log_appended",
        "Bytes ever appended to the lane",
        Some(Unit::Bytes),
        lanes(|lane| figure(lane.head_lsn)),
    );
}

fn register_volumes(registry: &mut Registry, status: &NodeStatus) {
    let name = |volume: &str| ("volume", volume.to_owned());
    let volumes = || status.volumes.iter();
    let sizes = volumes().map(|volume| (vec![name(&volume.name)], figure(volume.size_bytes)));
    gauge(registry, "volume_size", "Size of the volume", Some(Unit::Bytes), sizes);
    let allocated = volumes().map(|volume| (vec![name(&volume.name)], figure(volume.allocated_bytes)));
    gauge(registry, "volume_allocated", "Bytes allocated to the volume", Some(Unit::Bytes), allocated);
    let operations = |value: fn(&OperationStatus) -> f64| {
        volumes().flat_map(move |volume| {
            [("read", &volume.reads), ("write", &volume.writes)]
                .map(|(kind, operations)| (vec![name(&volume.name), ("operation", kind.to_owned())], value(operations)))
        })
    };
    counter(registry, "volume_operations", "Operations since start", None, operations(|kind| figure(kind.count)));
    counter(
        registry,
        "volume_transferred",
        "Bytes since start",
        Some(Unit::Bytes),
        operations(|kind| figure(kind.bytes)),
    );
    let latencies = volumes().flat_map(|volume| {
        [("read", &volume.reads), ("write", &volume.writes)].into_iter().flat_map(move |(kind, operations)| {
            let quantiles = [
                ("0.5", operations.p50_ns),
                ("0.99", operations.p99_ns),
                ("0.999", operations.p999_ns),
                ("1", operations.max_ns),
            ];
            quantiles.map(|(quantile, nanos)| {
                let labels =
                    vec![name(&volume.name), ("operation", kind.to_owned()), ("quantile", quantile.to_owned())];
                (labels, seconds(nanos))
            })
        })
    });
    gauge(registry, "volume_latency", "Latency since start, submission to reply", Some(Unit::Seconds), latencies);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::status::tests::healthy,
        node::admin::AdminCall,
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
            "twinlog_serving{node=\"a\"} 1.0",
            "twinlog_pool_free_bytes{node=\"a\"} 3221225472.0",
            "twinlog_log_used_bytes{node=\"a\",lane=\"0\",backend=\"file\",durability=\"durable\"} 67108864.0",
            "twinlog_volume_operations_total{node=\"a\",volume=\"vol-a\",operation=\"write\"} 1000.0",
            "twinlog_volume_latency_seconds{node=\"a\",volume=\"vol-a\",operation=\"read\",quantile=\"0.999\"} 0.0009",
            "twinlog_reactor_busy_seconds_total{node=\"a\",reactor=\"0\"} 2.0",
        ] {
            assert!(text.lines().any(|written| written == line), "{line} is missing in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
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
