//! The conformance suite is tested: drivers with one defect each, every one of which the suite must find.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};
use twinlog_device::{
    Accepted, BlockBuf, BlockCompletion, BlockDevice, BlockPool, BlockRange, ConnectionFailure, ConnectionId,
    ConnectionState, DeviceErrorKind, DeviceInfo, NetAddress, Network, Persistence, Prng, SharedBlock, Token, Wait,
    conformance::{self, BlockHarness, ConnectHarness, NetworkHarness},
};
use twinlog_sim::{
    Agenda, MediumConfig, PathPlan, SimClient, SimDisk, SimListener, SimMedium, SimNet, SimPath, SimWorld,
};

fn turn(agenda: &Agenda) {
    agenda.turn(Wait::UpTo(Duration::from_millis(1)));
}

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskDefect {
    None,
    DropsCompletion,
    RepeatsCompletion,
    ChangesToken,
    ReversesBuffers,
    KeepsWrittenBlock,
    LosesLastBlockOfWrite,
    WritesOneBlockFurther,
    LosesOneBlockInHundred,
    SucceedsBeyond,
    WritesPartBeforeBeyond,
    NamesWrongError,
    HasTooMuchRoom,
    NeverFlushes,
    FlushesItsOwnQueueOnly,
    DurableIsVolatile,
    DiscardsTooFar,
    RefusesLastBlock,
}

impl DiskDefect {
    const ALL: [Self; 17] = [
        Self::DropsCompletion,
        Self::RepeatsCompletion,
        Self::ChangesToken,
        Self::ReversesBuffers,
        Self::KeepsWrittenBlock,
        Self::LosesLastBlockOfWrite,
        Self::WritesOneBlockFurther,
        Self::LosesOneBlockInHundred,
        Self::SucceedsBeyond,
        Self::WritesPartBeforeBeyond,
        Self::NamesWrongError,
        Self::HasTooMuchRoom,
        Self::NeverFlushes,
        Self::FlushesItsOwnQueueOnly,
        Self::DurableIsVolatile,
        Self::DiscardsTooFar,
        Self::RefusesLastBlock,
    ];
}

struct BrokenDisk {
    disk: SimDisk,
    defect: DiskDefect,
    index: usize,
    completed_count: u64,
    written_count: u64,
    kept: Option<SharedBlock>,
}

impl BrokenDisk {
    fn complete(&mut self, mut completion: BlockCompletion, completions: &mut Vec<BlockCompletion>) {
        self.completed_count += 1;
        let every_fifth = self.completed_count.is_multiple_of(5);
        match self.defect {
            DiskDefect::DropsCompletion if every_fifth => return,
            DiskDefect::RepeatsCompletion if every_fifth => {
                let (token, result) = (completion.token, completion.result.clone());
                completions.push(BlockCompletion { token, result, blocks: Vec::new() });
            }
            DiskDefect::ChangesToken => completion.token.0 &= u64::MAX >> 1,
            DiskDefect::ReversesBuffers => completion.blocks.reverse(),
            DiskDefect::SucceedsBeyond => completion.result = Ok(()),
            DiskDefect::NamesWrongError => {
                completion.result = completion.result.map_err(|mut error| {
                    error.kind = DeviceErrorKind::Os(5);
                    error
                });
            }
            _ => {}
        }
        completions.push(completion);
    }
}

impl BlockDevice for BrokenDisk {
    fn info(&self) -> &DeviceInfo {
        self.disk.info()
    }

    fn room(&self) -> usize {
        if self.defect == DiskDefect::HasTooMuchRoom { self.disk.room() + 1 } else { self.disk.room() }
    }

    fn read(&mut self, token: Token, first: u64, blocks: Vec<BlockBuf>) {
        let is_last = first == self.info().block_count - 1;
        let refused = self.defect == DiskDefect::RefusesLastBlock && is_last;
        self.disk.read(token, if refused { u64::MAX } else { first }, blocks);
    }

    fn write(&mut self, token: Token, mut first: u64, mut blocks: Vec<SharedBlock>, mut persistence: Persistence) {
        self.written_count += 1;
        let end = self.info().block_count;
        match self.defect {
            DiskDefect::KeepsWrittenBlock => self.kept = blocks.first().cloned(),
            DiskDefect::LosesLastBlockOfWrite if blocks.len() > 1 => drop(blocks.pop()),
            DiskDefect::WritesOneBlockFurther if first < end - 1 => first += 1,
            DiskDefect::LosesOneBlockInHundred if self.written_count.is_multiple_of(100) => {
                return self.disk.discard(token, BlockRange { first, count: 0 });
            }
            DiskDefect::WritesPartBeforeBeyond if first < end && end - first < blocks.len() as u64 => {
                // The part lands under a token of its own, whose completion nobody sees.
                self.disk.write(Token(u64::MAX - 1), first, vec![blocks[0].clone()], persistence);
            }
            DiskDefect::DurableIsVolatile => persistence = Persistence::Volatile,
            _ => {}
        }
        self.disk.write(token, first, blocks, persistence);
    }

    fn flush(&mut self, token: Token) {
        let foreign = self.defect == DiskDefect::FlushesItsOwnQueueOnly && self.index > 0;
        if foreign || self.defect == DiskDefect::NeverFlushes {
            self.disk.discard(token, BlockRange { first: 0, count: 0 });
        } else {
            self.disk.flush(token);
        }
    }

    fn discard(&mut self, token: Token, mut range: BlockRange) {
        if self.defect == DiskDefect::DiscardsTooFar && range.first < 16 && range.count < 16 {
            range.count += 1;
        }
        self.disk.discard(token, range);
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        let mut arrived = Vec::new();
        self.disk.poll(&mut arrived);
        arrived.retain(|completion| completion.token != Token(u64::MAX - 1));
        for completion in arrived {
            self.complete(completion, completions);
        }
    }
}

struct BrokenDisks {
    medium: SimMedium,
    agenda: Agenda,
    queues: Vec<BrokenDisk>,
    blocks: BlockPool,
    prng: Prng,
    defect: DiskDefect,
}

impl BrokenDisks {
    fn new(seed: u64, defect: DiskDefect) -> Self {
        let world = SimWorld::new(seed);
        let medium = SimMedium::new(&world, MediumConfig::new("broken disk", 256));
        let agenda = Agenda::new(&world);
        let blocks = BlockPool::new(512).expect("a small mapping");
        let mut disks = Self { medium, agenda, queues: Vec::new(), blocks, prng: world.fork_prng(), defect };
        disks.open();
        disks
    }

    fn open(&mut self) {
        self.agenda = Agenda::new(self.agenda.world());
        let queue = |index| {
            let disk = self.medium.open(&self.agenda);
            BrokenDisk { disk, defect: self.defect, index, completed_count: 0, written_count: 0, kept: None }
        };
        self.queues = (0..2).map(queue).collect();
    }
}

impl BlockHarness for BrokenDisks {
    type Device = BrokenDisk;

    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn queue_count(&self) -> usize {
        self.queues.len()
    }

    fn device(&mut self, queue: usize) -> &mut BrokenDisk {
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

#[test]
fn every_defect_of_a_disk_is_found() {
    conformance::block_device(|| BrokenDisks::new(1, DiskDefect::None));
    for defect in DiskDefect::ALL {
        let mut seed = 0;
        let found = catch_unwind(AssertUnwindSafe(|| {
            conformance::block_device(|| {
                seed += 1;
                BrokenDisks::new(seed, defect)
            });
        }));
        assert!(found.is_err(), "{defect:?} was not found");
    }
}

/// What is wrong with a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NetDefect {
    None,
    LosesByteOfBlock,
    SwapsOutput,
    RepeatsReady,
    ForgetsReady,
    HidesEnd,
    ClosesTooEarly,
    NeverCloses,
    ReportsNothingUnsent,
    KeepsSentBlock,
    ConsumesTooLittle,
    /// Defects of connecting.
    LosesEarlyBytes,
    FailsTooEarly,
    RefusesWithoutReason,
    NeverRefuses,
    HoldsWhatWasGivenUp,
    KeepsInputNarrow,
    HasNoBoundOnceWide,
    KeepsSharedBytes,
    SharesTooMuch,
}

impl NetDefect {
    const OF_CONNECTING: [Self; 9] = [
        Self::LosesEarlyBytes,
        Self::FailsTooEarly,
        Self::RefusesWithoutReason,
        Self::NeverRefuses,
        Self::HoldsWhatWasGivenUp,
        Self::KeepsInputNarrow,
        Self::HasNoBoundOnceWide,
        Self::KeepsSharedBytes,
        Self::SharesTooMuch,
    ];

    const OF_CLIENTS: [Self; 10] = [
        Self::LosesByteOfBlock,
        Self::SwapsOutput,
        Self::RepeatsReady,
        Self::ForgetsReady,
        Self::HidesEnd,
        Self::ClosesTooEarly,
        Self::NeverCloses,
        Self::ReportsNothingUnsent,
        Self::KeepsSentBlock,
        Self::ConsumesTooLittle,
    ];
}

struct BrokenNet {
    net: SimNet,
    defect: NetDefect,
    held: Vec<u8>,
    kept: Option<SharedBlock>,
    kept_shared: Option<Arc<Vec<u8>>>,
    /// The connection whose input was widened, and what was received on it beyond every bound.
    hoard: Option<(ConnectionId, Vec<u8>)>,
}

impl BrokenNet {
    fn new(net: SimNet, defect: NetDefect) -> Self {
        Self { net, defect, held: Vec::new(), kept: None, kept_shared: None, hoard: None }
    }
}

impl Network for BrokenNet {
    fn accept(&mut self) -> Option<Accepted> {
        self.net.accept()
    }

    fn connect(&mut self, address: &NetAddress) -> ConnectionId {
        self.net.connect(address)
    }

    fn failure(&self, connection: ConnectionId) -> Option<ConnectionFailure> {
        self.net.failure(connection).filter(|_| self.defect != NetDefect::RefusesWithoutReason)
    }

    fn widen_input(&mut self, connection: ConnectionId, count_bytes: usize) {
        match self.defect {
            NetDefect::KeepsInputNarrow => {}
            NetDefect::HasNoBoundOnceWide => self.hoard = Some((connection, Vec::new())),
            _ => self.net.widen_input(connection, count_bytes),
        }
    }

    fn send_shared(&mut self, connection: ConnectionId, bytes: &Arc<Vec<u8>>, mut range: Range<usize>) {
        match self.defect {
            NetDefect::KeepsSharedBytes => self.kept_shared = Some(bytes.clone()),
            NetDefect::SharesTooMuch if range.len() == 1 => range.end += 1,
            _ => {}
        }
        self.net.send_shared(connection, bytes, range);
    }

    fn poll(&mut self, ready: &mut Vec<ConnectionId>) {
        self.net.poll(ready);
        if let Some((connection, hoard)) = &mut self.hoard {
            hoard.extend_from_slice(self.net.input(*connection));
            self.net.consume(*connection, self.net.input(*connection).len());
        }
        match self.defect {
            NetDefect::RepeatsReady => ready.extend_from_within(..),
            NetDefect::ForgetsReady => ready.clear(),
            _ => {}
        }
    }

    fn state(&self, connection: ConnectionId) -> ConnectionState {
        match (self.defect, self.net.state(connection)) {
            (NetDefect::HidesEnd, ConnectionState::InputEnded) => ConnectionState::Open,
            (NetDefect::FailsTooEarly, ConnectionState::Connecting) => ConnectionState::Failed,
            (NetDefect::NeverRefuses, ConnectionState::Failed) => ConnectionState::Connecting,
            (_, state) => state,
        }
    }

    fn input(&self, connection: ConnectionId) -> &[u8] {
        match &self.hoard {
            Some((wide, hoard)) if *wide == connection => hoard,
            _ => self.net.input(connection),
        }
    }

    fn consume(&mut self, connection: ConnectionId, count_bytes: usize) {
        if let Some((_, hoard)) = self.hoard.as_mut().filter(|(wide, _)| *wide == connection) {
            hoard.drain(..count_bytes);
            return;
        }
        let lost = usize::from(self.defect == NetDefect::ConsumesTooLittle && count_bytes > 0);
        self.net.consume(connection, count_bytes - lost);
    }

    fn send(&mut self, connection: ConnectionId, bytes: &[u8]) {
        if self.defect == NetDefect::SwapsOutput && self.held.is_empty() {
            self.held = bytes.to_vec();
            return;
        }
        let is_early = self.net.state(connection) == ConnectionState::Connecting;
        if self.defect == NetDefect::LosesEarlyBytes && is_early {
            return;
        }
        self.net.send(connection, bytes);
        self.net.send(connection, &std::mem::take(&mut self.held));
    }

    fn send_block(&mut self, connection: ConnectionId, block: &SharedBlock, mut range: Range<usize>) {
        match self.defect {
            NetDefect::LosesByteOfBlock if range.len() == 1 => range.end = range.start,
            NetDefect::KeepsSentBlock => self.kept = Some(block.clone()),
            _ => {}
        }
        self.net.send_block(connection, block, range);
    }

    fn unsent_bytes(&self, connection: ConnectionId) -> usize {
        if self.defect == NetDefect::ReportsNothingUnsent { 0 } else { self.net.unsent_bytes(connection) }
    }

    fn close(&mut self, connection: ConnectionId, abort: bool) {
        let is_connecting = self.net.state(connection) == ConnectionState::Connecting;
        match self.defect {
            NetDefect::NeverCloses => {}
            NetDefect::HoldsWhatWasGivenUp if is_connecting => {}
            NetDefect::ClosesTooEarly => self.net.close(connection, true),
            _ => self.net.close(connection, abort),
        }
    }
}

struct BrokenConnections {
    agenda: Agenda,
    net: BrokenNet,
    listener: SimListener,
    blocks: BlockPool,
}

impl BrokenConnections {
    fn new(defect: NetDefect) -> Self {
        let agenda = Agenda::new(&SimWorld::new(1));
        let (net, listener) = SimNet::open(&agenda);
        let net = BrokenNet::new(net, defect);
        Self { agenda, net, listener, blocks: BlockPool::new(16).expect("a small mapping") }
    }
}

impl NetworkHarness for BrokenConnections {
    type Network = BrokenNet;
    type Peer = SimClient;

    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn network(&mut self) -> &mut BrokenNet {
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

struct BrokenNodes {
    agendas: [Agenda; 2],
    nets: [BrokenNet; 2],
    blocks: BlockPool,
    _path: SimPath,
}

fn address() -> NetAddress {
    NetAddress::Tcp(([10, 0, 0, 2], 7000).into())
}

impl BrokenNodes {
    fn new(defect: NetDefect) -> Self {
        let world = SimWorld::new(1);
        let path = SimPath::new(&world, &address(), PathPlan::default());
        let agendas = [Agenda::new(&world), Agenda::new(&world)];
        let [(first, _), (second, listener)] = [SimNet::open(&agendas[0]), SimNet::open(&agendas[1])];
        path.listen(&listener, 0);
        let nets = [first, second].map(|net| BrokenNet::new(net, defect));
        Self { agendas, nets, blocks: BlockPool::new(16).expect("a small mapping"), _path: path }
    }
}

impl ConnectHarness for BrokenNodes {
    type Network = BrokenNet;

    fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    fn network(&mut self, index: usize) -> &mut BrokenNet {
        &mut self.nets[index]
    }

    fn turn(&mut self) {
        self.agendas.iter().for_each(turn);
    }

    fn address(&self) -> NetAddress {
        address()
    }

    fn deserted_address(&self) -> NetAddress {
        NetAddress::Unix("/nowhere".into())
    }
}

#[test]
fn every_defect_of_connected_nodes_is_found() {
    conformance::connections(|| BrokenNodes::new(NetDefect::None));
    for defect in NetDefect::OF_CONNECTING {
        let found = catch_unwind(AssertUnwindSafe(|| conformance::connections(|| BrokenNodes::new(defect))));
        assert!(found.is_err(), "{defect:?} was not found");
    }
}

#[test]
fn every_defect_of_a_network_is_found() {
    conformance::network(|| BrokenConnections::new(NetDefect::None));
    for defect in NetDefect::OF_CLIENTS {
        let found = catch_unwind(AssertUnwindSafe(|| conformance::network(|| BrokenConnections::new(defect))));
        assert!(found.is_err(), "{defect:?} was not found");
    }
}
