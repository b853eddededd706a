//! What the tests of the front end share: a service and a network in memory, and the protocol's bytes written out by hand.

pub(crate) mod byte_net;
pub(crate) mod memory_service;
pub(crate) mod wire;

use byte_net::{ByteNet, Closed};
use memory_service::MemoryService;
use std::time::Duration;
use twinlog::serve::Server;
use twinlog_device::{ConnectionId, Nanos};

/// A server on a network and a service in memory.
pub(crate) struct Bench {
    pub(crate) net: ByteNet,
    pub(crate) service: MemoryService,
    pub(crate) server: Server,
    pub(crate) now: Nanos,
}

/// Size of the volume `vol`.
pub(crate) const SIZE: u64 = 64 << 20;

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_service(MemoryService::new(1, 16 << 10, &[("vol", SIZE), ("other", 4096 * 3 + 5)]))
    }

    pub(crate) fn with_service(service: MemoryService) -> Self {
        Self { net: ByteNet::default(), service, server: Server::new(4), now: Nanos(0) }
    }

    /// Turns until nothing moves any more.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.server.poll(&mut self.net, &mut self.service, self.now) && self.idle() {
                return;
            }
        }
        panic!("the server does not come to rest");
    }

    fn idle(&self) -> bool {
        self.service.hold || self.service.pending_count() == 0 || self.service.idle_of_eight == 8
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.settle();
    }

    /// A client that has connected and taken the greeting.
    #[track_caller]
    pub(crate) fn connect(&mut self) -> ConnectionId {
        let connection = self.net.new_client();
        assert_eq!(self.exchange(connection, &[]), wire::greeting());
        connection
    }

    /// Sends `bytes` and returns everything that comes back.
    pub(crate) fn exchange(&mut self, connection: ConnectionId, bytes: &[u8]) -> Vec<u8> {
        self.net.client_send(connection, bytes);
        self.receive(connection)
    }

    /// Everything that comes.
    pub(crate) fn receive(&mut self, connection: ConnectionId) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            self.settle();
            let bytes = self.net.client_take(connection, usize::MAX);
            if bytes.is_empty() {
                return all;
            }
            all.extend_from_slice(&bytes);
        }
    }

    /// A client in the transmission phase of `vol`.
    #[track_caller]
    pub(crate) fn enter(&mut self, style: wire::Style) -> ConnectionId {
        let connection = self.connect();
        let mut hello = wire::client_flags(3);
        match style {
            wire::Style::Simple => {}
            wire::Style::Structured => hello.extend(wire::option(8, &[])),
            wire::Style::Extended => hello.extend(wire::option(11, &[])),
        }
        if style != wire::Style::Simple {
            hello.extend(wire::option(10, &wire::meta_query("vol", &["base:allocation"])));
        }
        hello.extend(wire::option(7, &wire::go("vol", &[])));
        let reply = self.exchange(connection, &hello);
        assert!(reply.ends_with(&wire::option_reply(7, 1, &[])), "the export is entered: {reply:x?}");
        connection
    }

    /// How the server ended the connection, if it did.
    pub(crate) fn closed(&mut self, connection: ConnectionId) -> Option<Closed> {
        self.settle();
        self.net.closed(connection)
    }
}
