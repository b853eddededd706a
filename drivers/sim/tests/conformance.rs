//! The simulated drivers keep the contracts of every driver.

use std::time::Duration;
use twinlog_device::{
    BlockPool, NetAddress, Prng, Wait,
    conformance::{self, BlockHarness, ConnectHarness, NetworkHarness},
};
use twinlog_sim::{
    Agenda, MediumConfig, PathPlan, SimClient, SimDisk, SimListener, SimMedium, SimNet, SimPath, SimWorld,
};

const QUEUE_COUNT: usize = 2;

/// A turn of a loop that waits.
fn turn(agenda: &Agenda) {
    agenda.turn(Wait::UpTo(Duration::from_millis(1)));
}

struct Disks {
    medium: SimMedium,
    agenda: Agenda,
    queues: Vec<SimDisk>,
    blocks: BlockPool,
    prng: Prng,
}

impl Disks {
    fn new(seed: u64, sector_bytes: u32) -> Self {
        let world = SimWorld::new(seed);
        let mut config = MediumConfig::new("simulated disk", 256);
        config.info.sector_bytes = sector_bytes;
        let medium = SimMedium::new(&world, config);
        let agenda = Agenda::new(&world);
        let queues = (0..QUEUE_COUNT).map(|_| medium.open(&agenda)).collect();
        let blocks = BlockPool::new(512).expect("a small mapping");
        Self { medium, agenda, queues, blocks, prng: world.fork_prng() }
    }

    fn open(&mut self) {
        self.agenda = Agenda::new(self.agenda.world());
        self.queues = (0..QUEUE_COUNT).map(|_| self.medium.open(&self.agenda)).collect();
    }
}

impl BlockHarness for Disks {
    type Device = SimDisk;

    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn queue_count(&self) -> usize {
        QUEUE_COUNT
    }

    fn device(&mut self, queue: usize) -> &mut SimDisk {
        &mut self.queues[queue]
    }

    fn turn(&mut self) {
        turn(&self.agenda);
    }

    fn reopen(&mut self) {
        self.medium.process_kill(&mut self.prng);
        self.open();
    }

    fn power_cut(&mut self) -> bool {
        self.medium.power_cut(&mut self.prng);
        self.open();
        true
    }
}

struct Connections {
    agenda: Agenda,
    net: SimNet,
    listener: SimListener,
    blocks: BlockPool,
}

impl Connections {
    fn new(seed: u64) -> Self {
        let agenda = Agenda::new(&SimWorld::new(seed));
        let (net, listener) = SimNet::open(&agenda);
        Self { agenda, net, listener, blocks: BlockPool::new(16).expect("a small mapping") }
    }
}

impl NetworkHarness for Connections {
    type Network = SimNet;
    type Peer = SimClient;

    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn network(&mut self) -> &mut SimNet {
        &mut self.net
    }

    fn turn(&mut self) {
        turn(&self.agenda);
    }

    fn connect(&mut self) -> SimClient {
        self.listener.connect(0)
    }

    fn peer_send(&mut self, peer: &mut SimClient, bytes: &[u8]) -> usize {
        peer.send(bytes)
    }

    fn peer_receive(&mut self, peer: &mut SimClient, bytes: &mut Vec<u8>) -> bool {
        peer.receive(bytes)
    }

    fn peer_end(&mut self, peer: &mut SimClient) {
        peer.end();
    }

    fn peer_drop(&mut self, peer: SimClient) {
        drop(peer);
    }
}

struct Nodes {
    agendas: [Agenda; 2],
    nets: [SimNet; 2],
    blocks: BlockPool,
    _paths: [SimPath; 2],
}

/// Where the second node listens, and where nobody does.
fn address(index: u16) -> NetAddress {
    NetAddress::Tcp(([10, 0, 0, 2], 7000 + index).into())
}

impl Nodes {
    fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed);
        let plan = PathPlan { lost_one_in: 500, ..PathPlan::default() };
        let paths = [0, 1].map(|index| SimPath::new(&world, &address(index), plan));
        let agendas = [Agenda::new(&world), Agenda::new(&world)];
        let [(first, _), (second, listener)] = [SimNet::open(&agendas[0]), SimNet::open(&agendas[1])];
        paths[0].listen(&listener, 0);
        let blocks = BlockPool::new(16).expect("a small mapping");
        Self { agendas, nets: [first, second], blocks, _paths: paths }
    }
}

impl ConnectHarness for Nodes {
    type Network = SimNet;

    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn network(&mut self, index: usize) -> &mut SimNet {
        &mut self.nets[index]
    }

    fn turn(&mut self) {
        self.agendas.iter().for_each(turn);
    }

    fn address(&self) -> NetAddress {
        address(0)
    }

    fn deserted_address(&self) -> NetAddress {
        address(1)
    }
}

#[test]
fn disks_conform() {
    for seed in 0..8 {
        conformance::block_device(|| Disks::new(seed, 512 << (seed % 4)));
    }
}

#[test]
#[should_panic(expected = "asks for room first")]
fn a_disk_refuses_an_operation_without_room() {
    conformance::block_device_overfilled(&mut Disks::new(0, 512));
}

#[test]
#[should_panic(expected = "a transfer of 65 blocks")]
fn a_disk_refuses_a_transfer_that_is_too_long() {
    conformance::block_device_oversized(&mut Disks::new(0, 512));
}

#[test]
#[should_panic(expected = "a transfer of 0 blocks")]
fn a_disk_refuses_an_empty_transfer() {
    conformance::block_device_without_blocks(&mut Disks::new(0, 512));
}

#[test]
fn connections_conform() {
    for seed in 0..2 {
        conformance::network(|| Connections::new(seed));
    }
}

#[test]
fn unread_input_is_counted() {
    for seed in 0..4 {
        conformance::unread(Connections::new(seed), usize::MAX);
        conformance::unread_beside_landings(Connections::new(seed), usize::MAX);
    }
}

#[test]
fn input_lands_in_blocks() {
    for seed in 0..4 {
        conformance::landing(|| Connections::new(seed));
    }
}

#[test]
fn connected_nodes_conform() {
    for seed in 0..4 {
        conformance::connections(|| Nodes::new(seed));
    }
}
