//! NVMe/TCP: any bytes as a unit, and any bytes as a host's, through the real server, on a volume in memory.

use crate::support::{byte_net::ByteNet, memory_service::MemoryService};
use std::sync::Arc;
use twinlog::{
    base::{PoolId, limits::CONNECTION_BYTES_MAX},
    node::request::VolumeService as _,
    serve::{
        NvmeTcp, Server,
        nvme_tcp::{
            Host, Target, TargetParts,
            auth::{Calculator, Job, Means, Secret},
            wire::{
                auth::{self, HostMessage},
                command::{Command, ranges},
                pdu::{self, Agreement, Body},
            },
        },
    },
};
use twinlog_device::{ConnectionId, Nanos};

/// Blocks of memory: few enough to run short.
const POOL_BLOCKS: u32 = 80;
const VOLUME_BYTES: u64 = 64 << 12;
/// What may wait for a host beyond the limit: the answer during which it is reached.
const SLACK_BYTES: u64 = (1 << 20) + 4096;
const HOST: &[u8] = b"nqn.2014-08.org.nvmexpress:uuid:1";

/// Bytes: what was agreed on, then a unit.
pub(crate) fn unit(data: &[u8]) -> bool {
    let ([agreed], bytes) = super::take::<1>(data);
    let agreement = Agreement { header_digest: agreed & 1 != 0, data_digest: agreed & 2 != 0, alignment: 0 };
    let agreement = (agreed & 4 != 0).then_some(agreement);
    let Ok(Some(unit)) = pdu::parse(bytes, agreement) else { return false };
    assert!(unit.head_bytes <= bytes.len() && unit.head_bytes >= 24 && unit.data_bytes <= pdu::HOST_DATA_BYTES_MAX);
    assert_eq!(
        agreement.is_none(),
        matches!(unit.body, Body::IcRequest(_))
            || (agreement.is_none() && matches!(unit.body, Body::HostTerminates(_)))
    );
    if let Body::Command(entry) = unit.body {
        let command = Command::parse(&entry);
        let data = &bytes[unit.head_bytes..];
        let _ = command.connect(&data[..data.len().min(1024)]);
        let (_, count) = command.blocks();
        assert!((1..=1 << 16).contains(&count));
        assert!(ranges(data).count() <= data.len() / 16);
    }
    true
}

/// Bytes: size of pieces, lateness of the engine, queue (even: admin, odd: I/O), then what the host sends after its queue is connected.
pub(crate) fn session(data: &[u8]) -> bool {
    let ([pieces, idle, queue], bytes) = super::take::<3>(data);
    let address = "127.0.0.1:4420".parse().expect("an address");
    let (home, hosts) = (PoolId(1), Vec::new());
    let target = Arc::new(Target::new(TargetParts { home, partner: None, address, partner_address: None, hosts }));
    let mut bench = Bench {
        net: ByteNet::default(),
        service: MemoryService::new(1, POOL_BLOCKS, &[("unseen", 4096), ("vol", VOLUME_BYTES)]),
        server: Server::new(8).with_nvme_tcp(Some(NvmeTcp { target: Arc::clone(&target), first_listener: 0 })),
    };
    bench.service.idle_of_eight = u64::from(idle % 7);
    let admin = bench.connect(target.subsystem(), 0, 0xffff);
    let controller = target.hosts()[0].controller;
    let client = if queue % 2 == 0 { admin } else { bench.connect(target.subsystem(), 1, controller) };
    let piece_bytes = if pieces == 0 { usize::MAX } else { usize::from(pieces) };
    let mut received = 0;
    for piece in bytes.chunks(piece_bytes) {
        bench.net.client_send(client, piece);
        received += bench.settle(client);
        if bench.net.closed(client).is_some() {
            break;
        }
    }
    received += bench.settle(client);
    // Whatever this host did, another one is served, and once the first has gone, nothing of it is left.
    let other = bench.connect(target.subsystem(), 0, 0xffff);
    for connection in [client, admin, other] {
        if bench.net.closed(connection).is_none() {
            bench.net.client_drop(connection);
        }
    }
    bench.settle(other);
    assert_eq!((bench.server.connection_count(), target.hosts().len()), (0, 0));
    assert_eq!(bench.service.blocks().free_count(), POOL_BLOCKS as usize, "every block is back");
    received > 0
}

/// Has no time: what has a group fails.
#[derive(Debug)]
struct Nobody;

impl Calculator for Nobody {
    fn start(&self, _: Job) -> bool {
        false
    }
}

/// Bytes: whether the host negotiates first and fetches its challenge (odd), then what it sends next; its queue needs authentication.
pub(crate) fn authentication(data: &[u8]) -> bool {
    let ([first], message) = super::take::<1>(data);
    let message = &message[..message.len().min(auth::MESSAGE_BYTES_MAX as usize)];
    let parsed = auth::parse(message);
    if let Ok(HostMessage::Reply(reply)) = &parsed {
        assert!(reply.response.len() + reply.element.len() < message.len());
        assert!(
            reply.challenge.is_none_or(|(challenge, number)| challenge.len() == reply.response.len() && number > 0)
        );
    }
    let address = "127.0.0.1:4420".parse().expect("an address");
    let parts = TargetParts { home: PoolId(1), partner: None, address, partner_address: None, hosts: Vec::new() };
    let name = String::from_utf8_lossy(HOST).into_owned();
    let [secret, controller_secret] = [7, 8].map(|byte| Some(Secret::new([byte; 32])));
    let hosts = vec![Host { secret, controller_secret, ..Host::named(name) }];
    let target = Arc::new(Target::new(parts).with_hosts(hosts, Means::new([1; 32], Box::new(Nobody))));
    let mut bench = Bench {
        net: ByteNet::default(),
        service: MemoryService::new(1, POOL_BLOCKS, &[("unseen", 4096), ("vol", VOLUME_BYTES)]),
        server: Server::new(8).with_nvme_tcp(Some(NvmeTcp { target: Arc::clone(&target), first_listener: 0 })),
    };
    let client = bench.connect(target.subsystem(), 0, 0xffff);
    if first % 2 == 1 {
        bench.authenticate(client, &NEGOTIATE);
    }
    bench.authenticate(client, message);
    if bench.net.closed(client).is_none() {
        let mut property = [0; 64];
        (property[0], property[4], property[44]) = (0x7f, 4, 8);
        bench.net.client_send(client, &capsule(&property, &[]));
        let reply = bench.settle_for(client);
        assert_eq!(reply[reply.len() - 2..], 0x8322_u16.to_le_bytes(), "nobody guesses a secret");
    }
    parsed.is_ok()
}

/// SHA-256 and no group.
const NEGOTIATE: [u8; 72] = {
    let mut message = [0; 72];
    (message[4], message[7], message[8], message[10], message[11], message[12]) = (9, 1, 1, 1, 1, 1);
    message
};

struct Bench {
    net: ByteNet,
    service: MemoryService,
    server: Server,
}

impl Bench {
    /// Turns until nothing moves, and takes what comes for `client`. Returns how many bytes that were.
    fn settle(&mut self, client: ConnectionId) -> usize {
        let mut taken = 0;
        for _ in 0..100_000 {
            let moved = self.server.poll(&mut self.net, &mut self.service, Nanos(0));
            if self.net.closed(client).is_none() {
                assert!(self.net.waiting_bytes(client) as u64 <= CONNECTION_BYTES_MAX + SLACK_BYTES);
            }
            let bytes = self.net.client_take(client, usize::MAX).len();
            taken += bytes;
            if !moved && bytes == 0 && self.service.pending_count() == 0 {
                return taken;
            }
        }
        panic!("the server does not come to rest");
    }

    /// The same; returns what came.
    fn settle_for(&mut self, client: ConnectionId) -> Vec<u8> {
        let mut taken = Vec::new();
        for _ in 0..1000 {
            let moved = self.server.poll(&mut self.net, &mut self.service, Nanos(0));
            let bytes = self.net.client_take(client, usize::MAX);
            if !moved && bytes.is_empty() {
                return taken;
            }
            taken.extend(bytes);
        }
        panic!("the server does not come to rest");
    }

    /// Sends `message`, and fetches what there is.
    fn authenticate(&mut self, client: ConnectionId, message: &[u8]) {
        let mut entry = [0; 64];
        (entry[0], entry[4], entry[39], entry[41], entry[42], entry[43]) = (0x7f, 5, 1, 1, 1, 0xe9);
        let length = u32::try_from(message.len()).expect("bounded").to_le_bytes();
        entry[32..36].copy_from_slice(&length);
        entry[44..48].copy_from_slice(&length);
        self.net.client_send(client, &capsule(&entry, message));
        (entry[4], entry[39]) = (6, 0x5a);
        for place in [32, 44] {
            entry[place..place + 4].copy_from_slice(&auth::MESSAGE_BYTES_MAX.to_le_bytes());
        }
        self.net.client_send(client, &capsule(&entry, &[]));
        self.settle(client);
    }

    /// A connected queue; an admin queue's controller is enabled.
    fn connect(&mut self, subsystem: &str, queue: u8, controller: u16) -> ConnectionId {
        let client = self.net.new_client();
        let mut bytes = vec![0; 128];
        (bytes[2], bytes[4]) = (128, 128);
        let mut entry = [0; 64];
        (entry[0], entry[4], entry[32 + 1], entry[39], entry[42], entry[44]) = (0x7f, 1, 4, 1, queue, 31);
        let mut data = vec![0; 1024];
        data[16..18].copy_from_slice(&controller.to_le_bytes());
        data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
        data[512..512 + HOST.len()].copy_from_slice(HOST);
        bytes.extend(capsule(&entry, &data));
        if queue == 0 {
            let mut enable = [0; 64];
            (enable[0], enable[44], enable[48], enable[50]) = (0x7f, 0x14, 1, 0x46);
            bytes.extend(capsule(&enable, &[]));
        }
        self.net.client_send(client, &bytes);
        let answered = self.settle(client);
        assert_eq!(answered, 128 + if queue == 0 { 48 } else { 24 });
        client
    }
}

/// A capsule without digests.
pub(crate) fn capsule(entry: &[u8; 64], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![4, 0, 72, if data.is_empty() { 0 } else { 72 }];
    bytes.extend(u32::try_from(72 + data.len()).expect("short").to_le_bytes());
    bytes.extend(entry);
    bytes.extend(data);
    bytes
}
