//! A host written by hand: the bytes that it sends, and what it makes of those that come back. Not the server's codec.

use crate::support::{
    byte_net::{ByteNet, Closed},
    memory_service::MemoryService,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use twinlog::{
    base::PoolId,
    serve::{
        NvmeTcp, Server,
        nvme_tcp::{Host, Target, TargetParts, auth::Means},
    },
};
use twinlog_device::{ConnectionId, Nanos, Prng};

pub(crate) const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
pub(crate) const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Bytes of the volume `vol`, which is namespace 1.
pub(crate) const SIZE: u64 = 8 << 20;
pub(crate) const BLOCK: u64 = 4096;

pub(crate) mod op {
    pub(crate) const FLUSH: u8 = 0;
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const READ: u8 = 2;
    pub(crate) const COMPARE: u8 = 5;
    pub(crate) const WRITE_ZEROES: u8 = 8;
    pub(crate) const DEALLOCATE: u8 = 9;
    pub(crate) const VERIFY: u8 = 0x0c;
    pub(crate) const REGISTER: u8 = 0x0d;
    pub(crate) const REPORT: u8 = 0x0e;
    pub(crate) const ACQUIRE: u8 = 0x11;
    pub(crate) const RELEASE: u8 = 0x15;
    pub(crate) const LOG: u8 = 2;
    pub(crate) const IDENTIFY: u8 = 6;
    pub(crate) const ABORT: u8 = 8;
    pub(crate) const SET: u8 = 9;
    pub(crate) const GET: u8 = 0x0a;
    pub(crate) const EVENT: u8 = 0x0c;
    pub(crate) const ALIVE: u8 = 0x18;
    pub(crate) const FABRICS: u8 = 0x7f;
}

/// A server on a network and a service in memory.
pub(crate) struct Bench {
    pub(crate) net: ByteNet,
    pub(crate) service: MemoryService,
    pub(crate) server: Server,
    pub(crate) target: Arc<Target>,
    pub(crate) now: Nanos,
    /// Of which the identifier of the host consists that connects.
    pub(crate) host_id: u8,
}

/// An answer: status without the bit that forbids to try again, result, data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) result: u64,
    pub(crate) data: Vec<u8>,
}

/// One connection of the host.
pub(crate) struct Queue {
    pub(crate) connection: ConnectionId,
    /// Header and data digests.
    pub(crate) digests: bool,
    next_id: u16,
    /// Of the namespace that is asked.
    pub(crate) block_bytes: u64,
    /// Data of writes that the target will ask for.
    pub(crate) to_send: BTreeMap<u16, Vec<u8>>,
    read: BTreeMap<u16, Vec<u8>>,
    pub(crate) answers: BTreeMap<u16, Answer>,
    received: Vec<u8>,
    /// Bytes of an H2CData unit.
    pub(crate) piece_bytes: usize,
    /// The code of a C2HTermReq.
    pub(crate) terminated: Option<u16>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(MemoryService::new(1, 4096, &[("unseen", BLOCK), ("vol", SIZE), ("other", 3 * BLOCK)]), Vec::new())
    }

    pub(crate) fn with(service: MemoryService, hosts: Vec<String>) -> Self {
        let address = "127.0.0.1:4420".parse().expect("an address");
        let partner_address = Some("127.0.0.1:4421".parse().expect("an address"));
        let parts = TargetParts { home: PoolId(7), partner: Some(PoolId(9)), address, partner_address, hosts };
        Self::of(service, Target::new(parts))
    }

    /// With hosts that have something to prove.
    pub(crate) fn with_hosts(service: MemoryService, hosts: Vec<Host>, means: Means) -> Self {
        let address = "127.0.0.1:4420".parse().expect("an address");
        let (home, partner) = (PoolId(7), Some(PoolId(9)));
        let parts = TargetParts { home, partner, address, partner_address: None, hosts: Vec::new() };
        Self::of(service, Target::new(parts).with_hosts(hosts, means))
    }

    fn of(service: MemoryService, target: Target) -> Self {
        let target = Arc::new(target);
        let hosts = NvmeTcp { target: Arc::clone(&target), first_listener: 0 };
        let server = Server::new(16).with_nvme_tcp(Some(hosts));
        Self { net: ByteNet::default(), service, server, target, now: Nanos(0), host_id: 1 }
    }

    /// Another reactor of the same node, with a network of its own.
    pub(crate) fn beside(&self) -> Self {
        let hosts = NvmeTcp { target: Arc::clone(&self.target), first_listener: 0 };
        let service = MemoryService::new(1, 4096, &[("unseen", BLOCK), ("vol", SIZE), ("other", 3 * BLOCK)]);
        let server = Server::new(16).with_nvme_tcp(Some(hosts));
        Self {
            net: ByteNet::default(),
            service,
            server,
            target: Arc::clone(&self.target),
            now: self.now,
            host_id: self.host_id,
        }
    }

    /// Turns until nothing moves any more.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            let rests = self.service.hold || self.service.pending_count() == 0 || self.service.idle_of_eight == 8;
            if !self.server.poll(&mut self.net, &mut self.service, self.now) && rests {
                return;
            }
        }
        panic!("the server does not come to rest");
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.settle();
    }

    pub(crate) fn closed(&mut self, queue: &Queue) -> Option<Closed> {
        self.settle();
        self.net.closed(queue.connection)
    }

    /// A connection that has exchanged its first units.
    #[track_caller]
    pub(crate) fn open(&mut self, digests: bool) -> Queue {
        let connection = self.net.new_client();
        let mut queue = Queue {
            connection,
            digests,
            next_id: 0,
            block_bytes: BLOCK,
            to_send: BTreeMap::new(),
            read: BTreeMap::new(),
            answers: BTreeMap::new(),
            received: Vec::new(),
            piece_bytes: usize::MAX,
            terminated: None,
        };
        self.net.client_send(connection, &ic_request(digests));
        self.settle();
        let reply = self.net.client_take(connection, usize::MAX);
        assert_eq!((reply.len(), reply[0], reply[11]), (128, 1, if digests { 3 } else { 0 }));
        queue.received.clear();
        queue
    }

    /// An admin queue whose controller is enabled; the controller's id beside it.
    #[track_caller]
    pub(crate) fn admin(&mut self, digests: bool) -> (Queue, u16) {
        let subsystem = self.target.subsystem().to_owned();
        let mut queue = self.open(digests);
        let answer = self.connect(&mut queue, 0, 0xffff, &subsystem, 0);
        assert_eq!(answer.status, 0);
        let enabled = self.set_property(&mut queue, 0x14, 0x0046_0001);
        assert_eq!(enabled.status, 0);
        (queue, u16::try_from(answer.result).expect("it fits"))
    }

    /// An I/O queue of that controller.
    #[track_caller]
    pub(crate) fn io(&mut self, controller: u16, number: u16, digests: bool) -> Queue {
        let subsystem = self.target.subsystem().to_owned();
        let mut queue = self.open(digests);
        assert_eq!(self.connect(&mut queue, number, controller, &subsystem, 0).status, 0);
        queue
    }

    pub(crate) fn connect(
        &mut self,
        queue: &mut Queue,
        number: u16,
        controller: u16,
        subsystem: &str,
        keep_alive_ms: u32,
    ) -> Answer {
        self.connect_as(queue, (number, 31), controller, (subsystem, HOST), keep_alive_ms)
    }

    pub(crate) fn connect_as(
        &mut self,
        queue: &mut Queue,
        (number, size): (u16, u16),
        controller: u16,
        (subsystem, host): (&str, &str),
        keep_alive_ms: u32,
    ) -> Answer {
        let mut entry = queue.entry(op::FABRICS);
        entry[4] = 1;
        entry[42..44].copy_from_slice(&number.to_le_bytes());
        entry[44..46].copy_from_slice(&size.to_le_bytes());
        entry[46] = 4;
        entry[48..52].copy_from_slice(&keep_alive_ms.to_le_bytes());
        let mut data = vec![0; 1024];
        data[..16].fill(self.host_id);
        data[16..18].copy_from_slice(&controller.to_le_bytes());
        data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
        data[512..512 + host.len()].copy_from_slice(host.as_bytes());
        self.run(queue, entry, Some(&data), true)
    }

    pub(crate) fn set_property(&mut self, queue: &mut Queue, at: u32, value: u32) -> Answer {
        let mut entry = queue.entry(op::FABRICS);
        entry[44..48].copy_from_slice(&at.to_le_bytes());
        entry[48..52].copy_from_slice(&value.to_le_bytes());
        self.run(queue, entry, None, false)
    }

    pub(crate) fn property(&mut self, queue: &mut Queue, at: u32, is_long: bool) -> Answer {
        let mut entry = queue.entry(op::FABRICS);
        (entry[4], entry[40]) = (4, u8::from(is_long));
        entry[44..48].copy_from_slice(&at.to_le_bytes());
        self.run(queue, entry, None, false)
    }

    /// A command with its dwords 10 and 11 and room for `bytes` of data.
    pub(crate) fn ask(&mut self, queue: &mut Queue, opcode: u8, words: &[u32], namespace: u32, bytes: u32) -> Answer {
        let mut entry = queue.entry(opcode);
        entry[4..8].copy_from_slice(&namespace.to_le_bytes());
        for (place, word) in entry[40..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        entry[32..36].copy_from_slice(&bytes.to_le_bytes());
        self.run(queue, entry, None, false)
    }

    /// Sends an Abort of a command of I/O queue 1, and takes what comes. Its id.
    pub(crate) fn abort(&mut self, admin: &mut Queue, command: &[u8; 64]) -> u16 {
        let mut abort = admin.entry(op::ABORT);
        (abort[40], abort[42], abort[43]) = (1, command[2], command[3]);
        let bytes = admin.capsule(abort, None, false);
        self.net.client_send(admin.connection, &bytes);
        self.serve(admin);
        u16::from_le_bytes([abort[2], abort[3]])
    }

    /// Sends a command, and whatever the target asks for, until it is answered.
    #[track_caller]
    pub(crate) fn run(&mut self, queue: &mut Queue, entry: [u8; 64], data: Option<&[u8]>, in_capsule: bool) -> Answer {
        let id = u16::from_le_bytes([entry[2], entry[3]]);
        let bytes = queue.capsule(entry, data, in_capsule);
        self.net.client_send(queue.connection, &bytes);
        self.serve(queue);
        queue.answers.remove(&id).unwrap_or_else(|| panic!("command {id} was answered: {:?}", queue.terminated))
    }

    /// Takes what comes, and sends what is asked for, until nothing moves.
    #[track_caller]
    pub(crate) fn serve(&mut self, queue: &mut Queue) {
        loop {
            self.settle();
            let bytes = self.net.client_take(queue.connection, usize::MAX);
            let out = queue.take(&bytes);
            if bytes.is_empty() && out.is_empty() {
                return;
            }
            if self.net.closed(queue.connection).is_none() {
                self.net.client_send(queue.connection, &out);
            }
        }
    }

    /// Like [`serve`](Self::serve) of one step, with bytes split at random both ways.
    pub(crate) fn serve_bits(&mut self, queue: &mut Queue, waiting: &mut Vec<u8>, prng: &mut Prng) {
        let count = usize::try_from(prng.between(0, waiting.len() as u64)).expect("it fits");
        let part: Vec<u8> = waiting.drain(..count).collect();
        self.net.client_send(queue.connection, &part);
        for _ in 0..prng.between(1, 4) {
            self.server.poll(&mut self.net, &mut self.service, self.now);
        }
        let scale = prng.between(1, 21);
        let most = usize::try_from(prng.between(0, 1 << scale)).expect("it fits");
        let bytes = self.net.client_take(queue.connection, most);
        waiting.extend(queue.take(&bytes));
    }
}

/// An ICReq.
pub(crate) fn ic_request(digests: bool) -> Vec<u8> {
    let mut bytes = vec![0; 128];
    (bytes[2], bytes[4], bytes[11]) = (128, 128, if digests { 3 } else { 0 });
    bytes
}

impl Queue {
    /// A submission entry with an id of its own.
    pub(crate) fn entry(&mut self, opcode: u8) -> [u8; 64] {
        let mut entry = [0; 64];
        (entry[0], entry[1], entry[39]) = (opcode, 0x40, 0x5a);
        entry[2..4].copy_from_slice(&self.next_id.to_le_bytes());
        self.next_id = self.next_id.wrapping_add(1);
        entry
    }

    /// An entry for blocks of namespace 1.
    pub(crate) fn blocks(&mut self, opcode: u8, first: u64, count: u64, flags: u32) -> [u8; 64] {
        let mut entry = self.entry(opcode);
        entry[4] = 1;
        entry[40..48].copy_from_slice(&first.to_le_bytes());
        entry[48..52].copy_from_slice(&(u32::try_from(count - 1).expect("it fits") | flags).to_le_bytes());
        if opcode == op::READ {
            entry[32..36].copy_from_slice(&u32::try_from(count * self.block_bytes).expect("it fits").to_le_bytes());
        }
        entry
    }

    /// A capsule. Data that is not in it is sent when it is asked for.
    pub(crate) fn capsule(&mut self, mut entry: [u8; 64], data: Option<&[u8]>, in_capsule: bool) -> Vec<u8> {
        let id = u16::from_le_bytes([entry[2], entry[3]]);
        if let Some(data) = data {
            entry[32..36].copy_from_slice(&u32::try_from(data.len()).expect("it fits").to_le_bytes());
            if in_capsule {
                entry[39] = 1;
                return self.unit(4, &entry, data);
            }
            self.to_send.insert(id, data.to_vec());
        }
        self.unit(4, &entry, &[])
    }

    /// A unit with digests as agreed on.
    pub(crate) fn unit(&self, kind: u8, header: &[u8], data: &[u8]) -> Vec<u8> {
        let digest_bytes = if self.digests { 4 } else { 0 };
        let (head_bytes, has_data) = (8 + header.len(), !data.is_empty());
        let data_offset = head_bytes + digest_bytes;
        let whole = data_offset + data.len() + if has_data { digest_bytes } else { 0 };
        let flags = if self.digests { 1 | u8::from(has_data) << 1 } else { 0 };
        let place = if has_data { u8::try_from(data_offset).expect("it fits") } else { 0 };
        let mut bytes = vec![kind, flags, u8::try_from(head_bytes).expect("it fits"), place];
        bytes.extend(u32::try_from(whole).expect("it fits").to_le_bytes());
        bytes.extend(header);
        if self.digests {
            bytes.extend(crc32c(&bytes).to_le_bytes());
        }
        bytes.extend(data);
        if self.digests && has_data {
            bytes.extend(crc32c(data).to_le_bytes());
        }
        bytes
    }

    /// Takes bytes of the target. Returns what is to be sent in return.
    #[track_caller]
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.received.extend_from_slice(bytes);
        let mut out = Vec::new();
        while self.received.len() >= 8 {
            let whole = u32::from_le_bytes(self.received[4..8].try_into().expect("it fits")) as usize;
            if self.received.len() < whole {
                break;
            }
            let unit: Vec<u8> = self.received.drain(..whole).collect();
            self.take_unit(&unit, &mut out);
        }
        out
    }

    #[track_caller]
    fn take_unit(&mut self, unit: &[u8], out: &mut Vec<u8>) {
        let head_bytes = usize::from(unit[2]);
        if unit[0] != 3 {
            assert_eq!(unit[1] & 1 != 0, self.digests);
            if self.digests {
                assert_eq!(unit[head_bytes..head_bytes + 4], crc32c(&unit[..head_bytes]).to_le_bytes());
            }
        }
        let short = |at: usize| u16::from_le_bytes([unit[at], unit[at + 1]]);
        let long = |at: usize| u32::from_le_bytes(unit[at..at + 4].try_into().expect("it fits"));
        match unit[0] {
            5 => {
                let (id, result) = (short(20), u64::from_le_bytes(unit[8..16].try_into().expect("it fits")));
                let status = short(22) >> 1 & 0x7ff;
                let data = self.read.remove(&id).unwrap_or_default();
                self.to_send.remove(&id);
                self.answer(id, Answer { status, result, data });
            }
            7 => {
                let (id, offset, length) = (short(8), long(12) as usize, long(16) as usize);
                let start = usize::from(unit[3]);
                let data = &unit[start..start + length];
                if self.digests {
                    assert_eq!(unit[start + length..], crc32c(data).to_le_bytes());
                }
                let read = self.read.entry(id).or_default();
                assert_eq!(read.len(), offset, "in order");
                read.extend_from_slice(data);
                assert_eq!(unit[1] & 4, 4, "the last of its command");
                if unit[1] & 8 != 0 {
                    let data = self.read.remove(&id).unwrap_or_default();
                    self.answer(id, Answer { data, ..Answer::default() });
                }
            }
            9 => {
                let (id, tag, offset, length) = (short(8), short(10), long(12) as usize, long(16) as usize);
                let data = self.to_send.get(&id).expect("something to send")[offset..offset + length].to_vec();
                let mut offset = offset;
                for piece in data.chunks(self.piece_bytes.min(length)) {
                    out.extend(self.host_data(id, tag, offset, piece));
                    offset += piece.len();
                }
            }
            3 => self.terminated = Some(short(8)),
            other => panic!("a unit of kind {other}"),
        }
    }

    /// An H2CData.
    pub(crate) fn host_data(&self, id: u16, tag: u16, offset: usize, data: &[u8]) -> Vec<u8> {
        let mut header = id.to_le_bytes().to_vec();
        header.extend(tag.to_le_bytes());
        header.extend(u32::try_from(offset).expect("it fits").to_le_bytes());
        header.extend(u32::try_from(data.len()).expect("it fits").to_le_bytes());
        header.extend([0; 4]);
        self.unit(6, &header, data)
    }

    #[track_caller]
    fn answer(&mut self, id: u16, answer: Answer) {
        assert!(self.answers.insert(id, answer).is_none(), "command {id} is answered once");
    }
}

/// CRC-32C of each byte, from its definition.
const SUMS: [u32; 256] = {
    let mut sums = [0; 256];
    let (mut byte, mut start) = (0, 0_u32);
    while byte < 256 {
        let (mut sum, mut bit) = (start, 0);
        while bit < 8 {
            sum = if sum & 1 != 0 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
            bit += 1;
        }
        sums[byte] = sum;
        byte += 1;
        start += 1;
    }
    sums
};

/// CRC-32C, byte by byte.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| sum >> 8 ^ SUMS[usize::from(sum.to_le_bytes()[0] ^ byte)])
}
