//! Two machines, the disks that both reach, their logs and everything between them; and the processes that run there.

use super::{
    arbiter::{Desk, SimArbiter},
    fence::{Fences, SimFencer},
    lease::Trials,
    namespaces::Namespaces,
    opener::{Hindrances, Openings, SimOpener},
    setup::{FenceKind, PairSetup, REACTORS_MAX, SeamSetup, Sessions},
};
use crate::{
    clients::{Front, Port, nvme},
    cluster::{MailWaker, Node, SimInterconnect, format_logs, keep_memory, make_pool, memory},
    setup::BLOCK,
};
use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use twinlog::{
    base::{Epoch, Incarnation, LaneIndex, PairId, PoolId, PortionId, ReactorIndex},
    changelog::{LaneIdentity, PortionRole, ReadHeader},
    format::lane_header::LaneHeader,
    node::{
        forward::ForwardPort,
        pools::{PoolSlot, Pools},
        sweep::{ReactorSweeps, Sweeps},
    },
    pair::{
        auth::PairKey,
        controller::{Controller, ControllerParts, LocalPortion, OpenLanes, PairPool, Timing},
        forward::{self, Forwarder, ForwarderParts},
        interconnect::Interconnect,
        link::{self, Link, LinkConfig},
        seam::{Far, FarEnd, Limits, Near, seam},
        way::LinkWay,
        wire::PoolFacts,
    },
    reactor::{Idle, IdlePolicy, Waker, mailbox},
    serve::{
        InterconnectLoop, InterconnectParts, NvmeTcp, Reactor, ReactorParts, Server,
        nvme_tcp::{Target, TargetParts},
        reactor::{NodeEnd, PairParts},
    },
};
use twinlog_device::{BlockPool, Nanos, NetAddress, Platform, Prng, Wait};
use twinlog_sim::{Agenda, LogMedium, SimListener, SimLog, SimMedium, SimNet, SimPath, SimPlatform, SimWorld};

/// The nodes, and the pools that are at home there.
pub(super) const NAMES: [&str; 2] = ["a", "b"];
/// Clients of one reactor: with those that have been given up and are not gone yet.
const CONNECTIONS_MAX: usize = 256;
/// Orders that wait for a node.
const CALLS_MAX: usize = 8;
/// A node may serve for so many detection times after it has renewed its lease.
pub(super) const LEASE_FACTOR: u32 = 4;

/// The id of a pool.
#[must_use]
pub(super) fn pool_id(pool: usize) -> PoolId {
    PoolId(7 + pool as u128)
}

/// As what a node has a pool.
#[must_use]
pub(super) fn slot_of(node: usize, pool: usize) -> PoolSlot {
    if node == pool { PoolSlot::Home } else { PoolSlot::Partner }
}

/// Hardware: it outlives processes.
pub(super) struct Site {
    /// The world.
    pub(super) world: SimWorld,
    setup: PairSetup,
    /// The disk of each pool.
    pub(super) media: [SimMedium; 2],
    /// By node, by pool, by lane.
    pub(super) logs: [[Vec<LogMedium>; 2]; 2],
    /// Memory of each node, used by one process after the other.
    pub(super) blocks: [BlockPool; 2],
    /// The registers.
    pub(super) desk: Rc<RefCell<Desk>>,
    /// The fences.
    pub(super) fences: Rc<RefCell<Fences>>,
    /// The fences in the disks, where they are used.
    pub(super) namespaces: Option<Rc<RefCell<Namespaces>>>,
    /// What cannot be opened.
    pub(super) hindrances: Rc<RefCell<Hindrances>>,
    /// The interconnect: the first node connects, the second one listens.
    pub(super) paths: Vec<SimPath>,
    prng: Prng,
}

/// A process.
pub(super) struct Process {
    /// Its reactors, and an interconnect beside them.
    pub(super) node: Node,
    /// Of each, in this order.
    agendas: Vec<Agenda>,
    /// Which of the reactors get no turns.
    is_starved: [Cell<bool>; REACTORS_MAX],
    end: Arc<NodeEnd>,
    net: SimListener,
}

impl Process {
    /// It gets no turns, or gets them again.
    pub(super) fn stand_still(&self, is_still: bool) {
        self.agendas.iter().for_each(|agenda| agenda.stand_still(is_still));
    }

    /// One of its reactors gets no turns, or gets them again.
    pub(super) fn starve(&self, reactor: usize, is_still: bool) {
        self.is_starved[reactor].set(is_still);
        self.agendas[reactor].stand_still(is_still);
    }

    /// Gives each reactor whose wait is over a turn, in an order drawn from `prng`. Returns the time that reactor 0 knows of in it; `None` if all wait.
    pub(super) fn poll(&mut self, prng: &mut Prng) -> Option<Nanos> {
        let mut is_due = [false; REACTORS_MAX + 1];
        for (index, (is_due, agenda)) in is_due.iter_mut().zip(&self.agendas).enumerate() {
            let is_starved = self.is_starved.get(index).is_some_and(Cell::get);
            *is_due = !is_starved && agenda.is_due();
            if *is_due {
                agenda.rouse();
            }
        }
        let clock = self.agendas[0].clock();
        self.node.poll_some(prng, |reactor| is_due[reactor]);
        is_due.contains(&true).then_some(clock)
    }

    /// The time from which reactor 0, which keeps time limits, counts what it is given now.
    pub(super) fn clock(&self) -> Nanos {
        self.agendas[0].next_clock()
    }

    /// Ends the wait of reactor 0, which was given something by no way of its own.
    pub(super) fn wake(&self) {
        self.agendas[0].wake();
    }

    /// Whether it stood still over the end of its lease at `now`, with a pool open: it looks at the clock right before it gives anything to the machine, and ends.
    pub(super) fn is_overdue(&self, now: Nanos) -> bool {
        !self.end.may_serve(|| now)
    }

    /// Ends with its machine: nobody hears of it.
    pub(super) fn go_dark(&self) {
        self.net.go_dark();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.blocks.iter().for_each(keep_memory);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What its partner still sends holds up no time.
        self.stand_still(true);
    }
}

/// What hosts of NVMe/TCP find at a node.
#[must_use]
pub(super) fn target(node: usize) -> Target {
    let address = SocketAddr::from(([127, 0, 0, 1], 4420));
    let (home, partner) = (pool_id(node), Some(pool_id(1 - node)));
    Target::new(TargetParts { home, partner, address, partner_address: None, hosts: Vec::new() })
}

fn address(path: usize) -> NetAddress {
    let port = 7000 + u16::try_from(path).expect("few");
    NetAddress::Tcp(([10, 0, 0, 2], port).into())
}

impl Site {
    /// Machines whose disks hold a new pool each, and logs for both.
    #[must_use]
    pub(super) fn new(seed: u64, setup: &PairSetup) -> Self {
        let world = SimWorld::new(seed);
        let media = NAMES.map(|name| SimMedium::new(&world, setup.medium(&format!("disk-{name}"))));
        let log = |node: usize| (0..setup.lanes).map(|_| LogMedium::new(&world, "log", setup.log(node))).collect();
        let logs = [0, 1].map(|node| [log(node), log(node)]);
        let blocks = NAMES.map(|_| memory(setup.memory_blocks));
        let mut prng = Prng::new(seed ^ 0x517E);
        let desk = Desk::new(&world, prng.fork(), setup.detection * 2);
        let fences = Fences::new(&world, prng.fork(), setup.fence);
        let hindrances = Rc::default();
        let namespaces = (setup.fence == FenceKind::Reservation).then(|| {
            let trials = Trials::new(&world, &desk, setup.detection * LEASE_FACTOR);
            Namespaces::new(&world, prng.fork(), &media, (&hindrances, trials))
        });
        let paths = (0..setup.paths).map(|path| SimPath::new(&world, &address(path), setup.path())).collect();
        let mut site = Self {
            world,
            setup: setup.clone(),
            media,
            logs,
            blocks,
            desk,
            fences,
            namespaces,
            hindrances,
            paths,
            prng,
        };
        for (pool, name) in NAMES.into_iter().enumerate() {
            let disks = std::slice::from_ref(&site.media[pool]);
            make_pool(&site.world, disks, &site.blocks[pool], (pool_id(pool), name), setup.lanes);
        }
        for (node, pool) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            site.renew_portion(node, pool);
        }
        site
    }

    /// Makes a portion anew, as when its medium was replaced.
    pub(super) fn renew_portion(&mut self, node: usize, pool: usize) {
        let id = PortionId(u128::from(self.prng.next_u64()) | 1);
        self.logs[node][pool].iter().for_each(LogMedium::repair);
        format_logs(&self.world, &self.logs[node][pool], self.identity(node, pool), id);
    }

    fn identity(&self, node: usize, pool: usize) -> LaneIdentity {
        let role = if node == pool { PortionRole::Own } else { PortionRole::Mirror };
        LaneIdentity { pool: pool_id(pool), role, lane: LaneIndex(0), lane_count: self.setup.lanes }
    }

    /// The id of a portion, as its headers say; `None`: they cannot be read.
    fn portion_id(&self, node: usize, pool: usize) -> Option<PortionId> {
        let agenda = Agenda::new(&self.world);
        let mut found = None;
        for (lane, log) in (0..).map(LaneIndex).zip(&self.logs[node][pool]) {
            let mut reading = ReadHeader::new(log.open(&agenda));
            let header = loop {
                match reading.poll() {
                    Ok(Some(header)) => break header,
                    Ok(None) => agenda.turn(Wait::UpTo(Duration::from_millis(1))),
                    Err(_) => return None,
                };
            };
            let is_ours = header.identity == LaneIdentity { lane, ..self.identity(node, pool) };
            if !is_ours || found.is_some_and(|id| id != header.portion) {
                return None;
            }
            found = Some(header.portion);
        }
        found
    }

    /// The id of a portion that may be in use.
    pub(super) fn portion_at_rest(&self, node: usize, pool: usize) -> Option<PortionId> {
        let log = &self.logs[node][pool][0];
        LaneHeader::read(&log.head(BLOCK), log.shape().size_bytes).ok().map(|header| header.portion)
    }

    /// Starts a process at `node`.
    ///
    /// # Panics
    /// When a former process still holds memory.
    #[must_use]
    pub(super) fn start(&mut self, node: usize) -> Process {
        let blocks = &self.blocks[node];
        assert_eq!(blocks.free_count(), blocks.block_count(), "a process that ended holds no memory");
        let count = self.setup.reactors[node];
        let agendas: Vec<_> = (0..count).map(|_| Agenda::new(&self.world)).collect();
        let wakers: Vec<Arc<dyn Waker>> =
            agendas.iter().map(|agenda| Arc::new(MailWaker(agenda.waker())) as Arc<dyn Waker>).collect();
        let (calls, called) = mailbox(CALLS_MAX, wakers[0].clone());
        self.hindrances.borrow_mut().failed[node] = [0; 2];
        let ways = (&self.hindrances, self.namespaces.as_ref());
        let openings = Openings::new(node, ways, (&agendas, &wakers), self.setup.messages_max, self.prng.fork());
        let sweeps = Arc::new(Sweeps::new(&wakers));
        let (forwarder, forward_ports) = self.forwarder(node, &wakers, sweeps.clone());
        let end = Arc::new(NodeEnd::default());
        let target = (self.setup.sessions == Sessions::Hosts).then(|| Arc::new(target(node)));
        let carrier = self.setup.seam.map(|_| Agenda::new(&self.world));
        let (parts, interconnect, net) = self.pair_parts(node, (&agendas[0], carrier.as_ref(), &end), forwarder);
        let (mut called, mut pair) = (Some(called), Some(Box::new(parts)));
        let (mut reactors, mut ports, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
        for ((number, agenda), forward_port) in (0..).zip(&agendas).zip(forward_ports) {
            let blocks = self.blocks[node].clone();
            let (client_net, listener) = SimNet::open(agenda);
            let port = Port::new(agenda.waker());
            let front = match self.setup.sessions != Sessions::None {
                true => {
                    let sweeps = ReactorSweeps::new(sweeps.clone(), usize::from(number));
                    let hosts = target.clone().map(|target| NvmeTcp { target, first_listener: nvme::LISTENER });
                    let server = Server::new(CONNECTIONS_MAX).with_nvme_tcp(hosts);
                    Front::Nbd(Box::new(server.with_sweeps(sweeps)))
                }
                false => Front::Direct(port.clone()),
            };
            let beside = carrier.iter().map(|agenda| Arc::new(MailWaker(agenda.waker())) as Arc<dyn Waker>);
            let peers = (0..).zip(&wakers).filter(|(other, _)| *other != number).map(|(_, waker)| waker.clone());
            let mut pools = Pools::new(blocks.clone(), None);
            pools.set_port(forward_port);
            reactors.push(Reactor::new(ReactorParts {
                platform: SimPlatform::new(agenda.clone(), blocks.clone()).giving_way(!self.setup.spins),
                pools,
                net: client_net,
                front,
                idle: Idle::new(IdlePolicy::Adaptive),
                calls: called.take(),
                open_device: Box::new(|name| Some(Err(format!("no device called {name}")))),
                opener: Box::new(SimOpener {
                    openings: openings.clone(),
                    number,
                    reactor_count: count,
                    agenda: agenda.clone(),
                    blocks,
                    media: [&self.media[node], &self.media[1 - node]].map(SimMedium::clone),
                    logs: [&self.logs[node][node], &self.logs[node][1 - node]].map(Vec::clone),
                    lanes: self.setup.lanes,
                }),
                pair: pair.take(),
                end: end.clone(),
                peers: peers.chain(beside).collect(),
            }));
            ports.push(port);
            listeners.push(listener);
        }
        self.fences.borrow_mut().begin_life(node);
        self.namespaces.iter().for_each(|namespaces| namespaces.borrow_mut().begin_life(node));
        let mut node = Node::new(reactors, ports, listeners, calls);
        if let (Some(interconnect), Some(seam)) = (interconnect, self.setup.seam) {
            node.set_interconnect(interconnect, seam.laziness);
        }
        let agendas = agendas.into_iter().chain(carrier).collect();
        Process { node, agendas, is_starved: Default::default(), end, net }
    }

    /// What reactor 0 has beyond the others, an interconnect that is polled beside it, and the name of this end of the interconnect.
    fn pair_parts(
        &mut self,
        node: usize,
        (agenda, carrier, end): (&Agenda, Option<&Agenda>, &Arc<NodeEnd>),
        forwarder: Forwarder,
    ) -> (PairParts<SimLog>, Option<SimInterconnect>, SimListener) {
        let incarnation = Incarnation(u128::from(self.prng.next_u64()) | 1);
        let ids = [node, 1 - node].map(|pool| self.portion_id(node, pool));
        let facts = [node, 1 - node].map(|pool| self.facts(node, pool, ids[usize::from(pool != node)]));
        let detection = self.setup.detection;
        let link = Link::new(
            LinkConfig {
                name: NAMES[node].to_owned(),
                partner: NAMES[1 - node].to_owned(),
                pair: PairId(1),
                key: PairKey::new([7; 32]),
                configuration: 1,
                incarnation,
                pools: facts.to_vec(),
                addresses: (0..self.paths.len()).map(address).collect(),
                timing: link::Timing {
                    heartbeat: detection / 8,
                    silence: detection,
                    connect: detection,
                    handshake: detection * 2,
                    retry: [detection / 8, detection],
                },
            },
            self.prng.fork(),
            self.world.now(),
        );
        let (net, listener) = SimNet::open(carrier.unwrap_or(agenda));
        if node == 1 {
            self.paths.iter().enumerate().for_each(|(index, path)| path.listen(&listener, index));
        }
        self.desk.borrow_mut().begin_life(node);
        let pools = [node, 1 - node].map(|pool| self.pair_pool(node, pool, ids[usize::from(pool != node)], agenda));
        let mut controller = Controller::new(ControllerParts {
            name: NAMES[node].to_owned(),
            partner: NAMES[1 - node].to_owned(),
            pools,
            arbiter: Box::new(SimArbiter::new(&self.desk, agenda, node)),
            fencer: Box::new(SimFencer::new(&self.fences, self.namespaces.as_ref(), agenda, node)),
            timing: Timing {
                detection,
                lease: detection * LEASE_FACTOR,
                retry: detection / 2,
                giveback: self.setup.gives_back.then_some(detection * 2),
            },
            prng: self.prng.fork(),
        });
        if self.namespaces.is_some() {
            controller.guard_lease();
        }
        let way = LinkWay::new(net, link);
        let (way, interconnect) = match carrier {
            None => (Box::new(way) as Box<dyn Interconnect>, None),
            Some(carrier) => {
                let (near, far) = self.seam(agenda, carrier);
                let platform = SimPlatform::new(carrier.clone(), self.blocks[node].clone());
                let parts = InterconnectParts {
                    far: Far::new(far, way, platform.now()),
                    platform: platform.giving_way(!self.setup.spins),
                    idle: Idle::new(IdlePolicy::Adaptive),
                    end: end.clone(),
                };
                (Box::new(near) as Box<dyn Interconnect>, Some(InterconnectLoop::new(parts)))
            }
        };
        let parts = PairParts { controller, forwarder: Some(forwarder), way, placement: String::new() };
        (parts, interconnect, listener)
    }

    /// The seam between a reactor and an interconnect beside it.
    fn seam(&self, near: &Agenda, far: &Agenda) -> (Near, FarEnd) {
        let SeamSetup { count_max, bytes_max, .. } = self.setup.seam.expect("the interconnect is beside the reactor");
        let waker = |agenda: &Agenda| Arc::new(MailWaker(agenda.waker())) as Arc<dyn Waker>;
        let limits = Limits { count_max, bytes_max, ..Limits::with_detection(self.setup.detection) };
        seam(limits, waker(near), waker(far))
    }

    /// The way of requests to the other node, and each reactor's end of it.
    fn forwarder(
        &mut self,
        node: usize,
        wakers: &[Arc<dyn Waker>],
        sweeps: Arc<Sweeps>,
    ) -> (Forwarder, Vec<ForwardPort>) {
        let messages_max = self.setup.messages_max;
        let (to_hub, hub) = mailbox(messages_max, wakers[0].clone());
        let (to_ports, from_hub): (Vec<_>, Vec<_>) =
            wakers.iter().map(|waker| mailbox(messages_max, waker.clone())).unzip();
        let count = self.setup.reactors[node];
        let port = |(reactor, mailbox)| ForwardPort::new((reactor, count), to_hub.clone(), mailbox, &self.blocks[node]);
        let ports = (0..).map(ReactorIndex).zip(from_hub).map(port).collect();
        let detection = self.setup.detection;
        let forwarder = Forwarder::new(ForwarderParts {
            pools: [node, 1 - node].map(|pool| (pool_id(pool), self.setup.lanes)),
            mailbox: hub,
            ports: to_ports,
            timing: forward::Timing {
                deadline: self.deadline(),
                list_wait: detection * 10,
                refused_pause: detection / 20,
                starved_pause: detection / 100,
            },
            first_number: self.prng.next_u64(),
            sweeps,
        });
        (forwarder, ports)
    }

    /// How long a request waits for a pool that nobody serves.
    pub(super) fn deadline(&self) -> Duration {
        self.setup.detection * self.setup.deadline
    }

    fn facts(&self, node: usize, pool: usize, portion: Option<PortionId>) -> PoolFacts {
        PoolFacts {
            pool: pool_id(pool),
            role: self.identity(node, pool).role,
            portion: portion.unwrap_or_default(),
            ring_bytes: self.setup.ring_blocks * BLOCK,
            unit_bytes: self.logs[node][pool][0].shape().unit_bytes,
            lane_count: self.setup.lanes,
        }
    }

    fn pair_pool(&self, node: usize, pool: usize, id: Option<PortionId>, agenda: &Agenda) -> PairPool<SimLog> {
        let (logs, agenda, identity) = (self.logs[node][pool].clone(), agenda.clone(), self.identity(node, pool));
        let open: OpenLanes<SimLog> = Box::new(move || {
            let lane = |(lane, log): (LaneIndex, &LogMedium)| (LaneIdentity { lane, ..identity }, log.open(&agenda));
            Ok((0..).map(LaneIndex).zip(&logs).map(lane).collect())
        });
        PairPool {
            pool: pool_id(pool),
            name: NAMES[pool].to_owned(),
            lane_count: self.setup.lanes,
            epoch_min: Epoch(1),
            portion: LocalPortion::new(id, open),
        }
    }

    /// What runs at `node` has ended, with its machine if `is_dark`: what it left unfinished lands or not. `has_open` are the pools that no other node has open.
    pub(super) fn end_process(&mut self, (node, is_dark): (usize, bool), has_open: [bool; 2], prng: &mut Prng) {
        if let Some(namespaces) = &self.namespaces {
            namespaces.borrow_mut().end_life(node);
            self.media.iter().for_each(|medium| medium.process_kill_of(node, prng));
        } else {
            for (medium, _) in self.media.iter().zip(has_open).filter(|(_, has_open)| *has_open) {
                medium.process_kill(prng);
            }
        }
        self.logs[node].iter().flatten().for_each(|log| log.power_cut(prng));
        self.desk.borrow_mut().end_life(node);
        self.fences.borrow_mut().end_life(node, is_dark);
    }

    /// A number that differs when any durable byte differs.
    #[must_use]
    pub(super) fn digest(&self) -> u64 {
        let disks = self.media.iter().map(SimMedium::digest);
        let logs = self.logs.iter().flatten().flatten().map(|log| twinlog::base::checksum(0, &log.image()));
        disks.chain(logs).fold(0, |sum, part| sum.rotate_left(9) ^ part)
    }
}
