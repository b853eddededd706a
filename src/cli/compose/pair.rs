//! The pair's part of a node: registers, fences, the way to the partner, and the portions that move between engine and mirror.

use super::{
    Held, Shared,
    fence::Fences,
    interconnect,
    mailbox_worker::MailboxWorker,
    no_ring,
    offline::random_id,
    registers::{self, ArbiterFences, Registers},
    storage::listen,
    witness_client::{WitnessConfig, WitnessWorker},
};
use crate::cli::output::{Exit, Failure};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::Duration,
};
use twinlog::{
    base::{Incarnation, LaneIndex, PairId, Prng, ReactorIndex, checksum, limits::BLOCK_BYTES},
    changelog::Ring as LaneRing,
    control::config::{FenceKind, NodeConfig, PairConfig},
    node::{
        forward::{ForwardPort, MESSAGES_MAX, ToHub, ToPort},
        pools::PoolSlot,
        sweep::Sweeps,
    },
    pair::{
        auth::PairKey,
        controller::{Controller, ControllerParts, LocalPortion, OpenLanes, PairPool, Timing},
        forward::{self, Forwarder, ForwarderParts},
        interconnect::Interconnect,
        link::{self, Link, LinkConfig},
        seam::Near,
        way::LinkWay,
        wire::PoolFacts,
    },
    reactor::{self, MailboxSender, Waker, mailbox},
    serve::reactor::PairParts,
};
use twinlog_device::{LogMemory, NetAddress, Platform};
use twinlog_tls::TlsNetwork;
use twinlog_uring::{AnyLog, ListenAddress, Listener, Ring, UringNetwork, UringPlatform};

/// Who may connect to the interconnect's socket: the node's own user.
const SOCKET_MODE: u32 = 0o600;
/// A node may serve for so many detection times after it has renewed its lease.
const LEASE_FACTOR: u32 = 4;
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_millis(500);

/// What the main thread has opened for reactor 0.
pub(super) struct PairStart {
    registers: Registers,
    fences: ArbiterFences,
    hub: Hub,
    sweeps: Arc<Sweeps>,
    waker: Arc<dyn Waker>,
    pub(super) way: WayStart,
}

/// The way to the partner before it has begun.
pub(super) enum WayStart {
    /// It runs on reactor 0.
    Here(Box<LinkStart>),
    /// It runs on a thread of its own, and this is the half that reactor 0 uses.
    Beside(Box<Near>),
}

/// What the main thread has opened for sessions with the partner.
pub(super) struct LinkStart {
    pair: PairId,
    incarnation: Incarnation,
    key: PairKey,
    listeners: Vec<Listener>,
}

/// The forwarder's ends of the ways to the reactors' ports.
pub(super) struct Hub {
    mailbox: reactor::Mailbox<ToHub>,
    ports: Vec<MailboxSender<ToPort>>,
}

/// The ways between the forwarder and every reactor.
pub(super) fn ports(shared: &Shared, wakers: &[Arc<dyn Waker>]) -> (Hub, Vec<ForwardPort>) {
    let (to_hub, hub) = mailbox(MESSAGES_MAX, Arc::clone(&wakers[0]));
    let (to_ports, from_hub): (Vec<_>, Vec<_>) =
        wakers.iter().map(|waker| mailbox(MESSAGES_MAX, Arc::clone(waker))).unzip();
    let ports = (0..).map(ReactorIndex).zip(from_hub);
    let port = |(reactor, mailbox)| {
        ForwardPort::new((reactor, shared.reactor_count()), to_hub.clone(), mailbox, &shared.blocks)
    };
    (Hub { mailbox: hub, ports: to_ports }, ports.map(port).collect())
}

/// Opens what a pair's node needs beyond its pools.
pub(super) fn start(
    config: &NodeConfig,
    pair: &PairConfig,
    (hub, sweeps): (Hub, Arc<Sweeps>),
    waker: Arc<dyn Waker>,
) -> Result<PairStart, Failure> {
    let incarnation = Incarnation(random_id()?);
    let nodes = [config.name.as_str(), pair.partner.as_str()];
    let key = key(&pair.key)?;
    let ((registers, fences), id) = arbiter(pair, nodes, &key, incarnation, Arc::clone(&waker))?;
    let unix = pair.unix.iter().map(|path| ListenAddress::Unix { path: path.clone(), mode: SOCKET_MODE });
    let tcp = pair.tcp.iter().copied().map(ListenAddress::Tcp);
    // The node with the lesser name connects, the other one listens.
    let listens = config.name > pair.partner;
    let listeners = unix.chain(tcp).filter(|_| listens).map(|address| listen(&address));
    let listeners = listeners.collect::<Result<_, _>>()?;
    let way = WayStart::Here(Box::new(LinkStart { pair: id, incarnation, key, listeners }));
    Ok(PairStart { registers, fences, hub, sweeps, waker, way })
}

/// The thread at the arbiter that is configured, and the pair's id: what the mailbox says, or, as a witness need not be reached now, that of the key.
fn arbiter(
    pair: &PairConfig,
    nodes: [&str; 2],
    key: &PairKey,
    incarnation: Incarnation,
    waker: Arc<dyn Waker>,
) -> Result<((Registers, ArbiterFences), PairId), Failure> {
    let lease = detection(pair) * LEASE_FACTOR;
    match (&pair.mailbox, &pair.witness) {
        (Some(path), _) => {
            let failed = |error: &io::Error| Failure::system("use the mailbox", path.display(), error);
            let worker = MailboxWorker::open(path, nodes, incarnation, lease).map_err(|error| failed(&error))?;
            let id = worker.pair();
            Ok((registers::start(worker, waker).map_err(|error| failed(&error))?, id))
        }
        (None, Some(address)) => {
            let worker = WitnessWorker::new(WitnessConfig {
                address: address.clone(),
                key: key.clone(),
                nodes: nodes.map(str::to_owned),
                incarnation,
                limit: detection(pair),
                lease,
            });
            let started = registers::start(worker, waker);
            Ok((started.map_err(|error| Failure::system("ask the witness at", address, &error))?, key.id()))
        }
        (None, None) => unreachable!("the configuration was checked"),
    }
}

/// The secret in a file: 64 hexadecimal digits, which nobody but the file's owner may read.
pub(crate) fn key(path: &Path) -> Result<PairKey, Failure> {
    let failed = |error: &io::Error| Failure::system("read", path.display(), error);
    let mut file = File::open(path).map_err(|error| failed(&error))?;
    let mode = file.metadata().map_err(|error| failed(&error))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let message = format!(
            "{} can be read or changed by others (mode {mode:o}), and whoever has it can be a node",
            path.display()
        );
        return Err(Failure::new(Exit::Usage, message, format_args!("chmod 600 {}", path.display())));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| failed(&error))?;
    let digits = text.trim();
    let mut bits = [0; 32];
    let is_key = digits.len() == 64 && digits.is_ascii();
    for (index, byte) in bits.iter_mut().enumerate().filter(|_| is_key) {
        let parsed = digits.get(2 * index..2 * index + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        *byte = parsed.ok_or_else(|| no_key(path))?;
    }
    if is_key { Ok(PairKey::new(bits)) } else { Err(no_key(path)) }
}

fn no_key(path: &Path) -> Failure {
    let message = format!("{} is no key: it should hold 64 hexadecimal digits", path.display());
    Failure::new(Exit::Usage, message, "openssl rand -hex 32 > FILE; both nodes need the same")
}

/// What reactor 0 has beyond the others.
pub(super) fn parts(shared: &Arc<Shared>, ring: &Ring, start: PairStart) -> Result<PairParts<AnyLog>, Failure> {
    let (config, Some(pair)) = (&shared.config, &shared.config.pair) else {
        unreachable!("only a node of a pair has the parts of one")
    };
    let slots = PoolSlot::ALL;
    let mut controller = Controller::new(ControllerParts {
        name: config.name.clone(),
        partner: pair.partner.clone(),
        pools: slots.map(|slot| pool(shared, slot, ring)),
        arbiter: Box::new(start.registers),
        fencer: Box::new(Fences::new(pair, shared, start.fences, start.waker)),
        timing: Timing {
            detection: detection(pair),
            lease: detection(pair) * LEASE_FACTOR,
            retry: RETRY,
            giveback: pair.giveback(),
        },
        prng: Prng::new(u64::try_from(random_id()? >> 64).expect("the upper half")),
    });
    if pair.fence.contains(&FenceKind::Lease) || pair.reserves() {
        controller.guard_lease();
    }
    let forwarder = Forwarder::new(ForwarderParts {
        pools: slots.map(|slot| (shared.held(slot).portion.pool(), shared.held(slot).portion.lane_count())),
        mailbox: start.hub.mailbox,
        ports: start.hub.ports,
        timing: forward::Timing::with_deadline(Duration::from_secs(pair.request_wait_s)),
        first_number: u64::try_from(random_id()? >> 64).expect("the upper half"),
        sweeps: start.sweeps,
    });
    let (way, placement) = match start.way {
        WayStart::Here(link) => (way(carrier(shared, ring, *link)?), "reactor 0".to_owned()),
        WayStart::Beside(near) => (near as Box<dyn Interconnect>, interconnect::words(pair)),
    };
    Ok(PairParts { controller, forwarder: Some(forwarder), way, placement })
}

/// Sessions with the partner over connections of one ring, encrypted or not.
pub(super) enum PairWay {
    Clear(LinkWay<UringNetwork>),
    Encrypted(LinkWay<TlsNetwork<UringNetwork>>),
}

fn way(way: PairWay) -> Box<dyn Interconnect> {
    match way {
        PairWay::Clear(way) => Box::new(way),
        PairWay::Encrypted(way) => Box::new(way),
    }
}

/// What carries messages to the partner, which takes what comes in the clear only if that is configured.
pub(super) fn carrier(shared: &Arc<Shared>, ring: &Ring, start: LinkStart) -> Result<PairWay, Failure> {
    let (config, Some(pair)) = (&shared.config, &shared.config.pair) else {
        unreachable!("only a node of a pair has a partner")
    };
    let facts = PoolSlot::ALL.map(|slot| facts(shared.held(slot), ring));
    let unix = pair.partner_unix.iter().cloned().map(NetAddress::Unix);
    let silence = detection(pair);
    let timing = link::Timing::default();
    let link = Link::new(
        LinkConfig {
            name: config.name.clone(),
            partner: pair.partner.clone(),
            pair: start.pair,
            key: start.key,
            configuration: agreed(config, pair),
            incarnation: start.incarnation,
            pools: facts.into_iter().collect::<Result<_, _>>()?,
            addresses: unix.chain(pair.partner_tcp.iter().copied().map(NetAddress::Tcp)).collect(),
            timing: link::Timing { silence, heartbeat: timing.heartbeat.min(silence / 4), ..timing },
        },
        Prng::new(u64::try_from(random_id()? >> 64).expect("the upper half")),
        UringPlatform::new(ring.clone()).now(),
    );
    let net = UringNetwork::new(ring, start.listeners, link::CONNECTIONS_MAX).map_err(no_ring)?;
    if !pair.encrypt {
        return Ok(PairWay::Clear(LinkWay::new(net, link)));
    }
    let net = TlsNetwork::new(net);
    let hint = "the kernel's random numbers are needed: getrandom(2)";
    let net = net.map_err(|error| Failure::new(Exit::Error, error.to_string(), hint))?;
    Ok(PairWay::Encrypted(LinkWay::new(net, link)))
}

pub(super) fn detection(pair: &PairConfig) -> Duration {
    Duration::from_millis(pair.deadline_ms)
}

/// A checksum of what both nodes must have configured alike.
fn agreed(config: &NodeConfig, pair: &PairConfig) -> u64 {
    let limit = config.memory.limit.bytes();
    let text = format!("{} {limit} {} {}", pair.deadline_ms, pair.encrypt, pair.reserves());
    checksum(0, text.as_bytes())
}

/// What the partner must know of this node's portion of a pool.
fn facts(held: &Held, ring: &Ring) -> Result<PoolFacts, Failure> {
    let portion = &held.portion;
    let log = portion.lane(ring, LaneIndex(0))?;
    let ring_bytes = LaneRing::of_region(log.info().size_bytes).map_or(0, LaneRing::bytes);
    Ok(PoolFacts {
        pool: portion.pool(),
        role: portion.role(),
        portion: held.portion_id.unwrap_or_default(),
        ring_bytes,
        unit_bytes: log.info().unit_bytes.min(u32::try_from(BLOCK_BYTES).expect("a block is small")),
        lane_count: portion.lane_count(),
    })
}

fn pool(shared: &Arc<Shared>, slot: PoolSlot, ring: &Ring) -> PairPool<AnyLog> {
    let held = shared.held(slot);
    let (all, ring) = (Arc::clone(shared), ring.clone());
    let open: OpenLanes<AnyLog> = Box::new(move || {
        let portion = &all.held(slot).portion;
        let lane = |lane| Ok((portion.identity(lane), portion.lane(&ring, lane)?));
        let lanes = (0..portion.lane_count()).map(LaneIndex).map(lane).collect::<Result<_, Failure>>();
        lanes.map_err(|failure| failure.message)
    });
    PairPool {
        pool: held.portion.pool(),
        name: held.name.clone(),
        lane_count: held.portion.lane_count(),
        epoch_min: held.epoch,
        portion: LocalPortion::new(held.portion_id, open),
    }
}
