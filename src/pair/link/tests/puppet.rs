//! An end of a connection that a test moves by hand: a stranger, a partner that lies, or one that stops in the middle.

use super::*;
use crate::pair::{
    auth::Transcript,
    wire::{FRAME_BYTES_MAX, Seal, SealedFrame},
};
use twinlog_sim::SimClient;

pub(super) struct Puppet {
    client: SimClient,
    config: LinkConfig,
    sending: Seal,
    receiving: Seal,
    input: Vec<u8>,
    hellos: [Vec<u8>; 2],
    /// Everything that was sent.
    pub(super) sent: Vec<u8>,
    pub(super) is_over: bool,
}

impl Puppet {
    /// Connects to the listening node, as `config` says.
    pub(super) fn connect(pair: &Pair, config: LinkConfig) -> Self {
        Self {
            client: pair.nodes[1].listener.connect(0),
            config,
            sending: Seal::default(),
            receiving: Seal::default(),
            input: Vec::new(),
            hellos: [Vec::new(), Vec::new()],
            sent: Vec::new(),
            is_over: false,
        }
    }

    /// What the connecting node would say of itself.
    pub(super) fn hello(&self, session: u64, connection: u64) -> Hello {
        let config = &self.config;
        Hello {
            role: Role::Connects,
            path: 0,
            features_required: 0,
            pair: config.pair,
            configuration: config.configuration,
            incarnation: config.incarnation,
            session,
            connection,
            challenge: [3; 32],
            name: config.name.clone(),
            partner: config.partner.clone(),
            pools: config.pools.clone(),
        }
    }

    pub(super) fn send_bytes(&mut self, bytes: &[u8]) {
        let mut sent = 0;
        while sent < bytes.len() {
            let count = self.client.send(&bytes[sent..]);
            if count == 0 {
                return;
            }
            sent += count;
        }
        self.sent.extend_from_slice(bytes);
    }

    /// The bytes of the next frame.
    pub(super) fn frame(&mut self, message: &Message, payload: &[u8]) -> Vec<u8> {
        let (pool, epoch) = if message.kind().names_pool() { (POOLS[0], EPOCH) } else { (PoolId(0), Epoch(0)) };
        let mut bytes = Vec::new();
        Outgoing { pool, epoch, acks: &[], message }.write(&mut self.sending, &[payload], &mut bytes);
        bytes.extend_from_slice(payload);
        if let Message::Hello(_) = message {
            self.hellos[0].clone_from(&bytes);
        }
        bytes
    }

    pub(super) fn send(&mut self, message: &Message) {
        let bytes = self.frame(message, &[]);
        self.send_bytes(&bytes);
    }

    fn transcript(&self) -> Transcript<'_> {
        Transcript { connecting: &self.hellos[0], listening: &self.hellos[1], binding: &[] }
    }

    fn tag(&self, sender: Role) -> u64 {
        crate::base::checksum::checksum_of_parts(sender as u64, self.hellos.iter().map(Vec::as_slice))
    }

    /// The proof of who has the configured key.
    pub(super) fn proof(&self) -> Message {
        Message::Proof(self.config.key.prove(Role::Connects, self.transcript()))
    }

    /// The frames after the proof are bound to the connection.
    pub(super) fn bind(&mut self) {
        let (own, partner) = (self.tag(Role::Connects), self.tag(Role::Listens));
        self.sending.bind(own);
        self.receiving.bind(partner);
    }

    /// The next frame from the node, once it is there.
    pub(super) fn receive(&mut self) -> Option<Message> {
        self.is_over |= !self.client.receive(&mut self.input);
        let sealed = SealedFrame::read(&self.input, self.receiving, FRAME_BYTES_MAX).expect("nodes send frames")?;
        let bytes = sealed.frame_bytes();
        let message = sealed.open().expect("nodes send sound frames").message;
        if let Message::Hello(_) = message {
            self.hellos[1] = self.input[..bytes].to_vec();
        }
        self.input.drain(..bytes);
        self.receiving.advance();
        Some(message)
    }

    /// Waits for the next frame; `None`: the node has closed.
    pub(super) fn next(&mut self, pair: &mut Pair) -> Option<Message> {
        let end = pair.world.now() + Duration::from_secs(30);
        loop {
            if let Some(message) = self.receive() {
                return Some(message);
            }
            if self.is_over {
                return None;
            }
            assert!(pair.world.now() < end, "the node says something, or closes");
            pair.turn();
        }
    }

    /// Says hello and hears the node's.
    pub(super) fn greet(&mut self, pair: &mut Pair, session: u64) {
        let hello = self.hello(session, 77);
        self.send(&Message::Hello(Box::new(hello)));
        assert!(matches!(self.next(pair), Some(Message::Hello(_))), "it says hello to everybody");
    }

    /// Proves its key, and hears the node's proof.
    pub(super) fn prove(&mut self, pair: &mut Pair) {
        let proof = self.proof();
        self.send(&proof);
        assert!(matches!(self.next(pair), Some(Message::Proof(_))));
        self.bind();
    }

    /// Becomes the node's partner.
    pub(super) fn enter(&mut self, pair: &mut Pair, session: u64) {
        self.greet(pair, session);
        self.prove(pair);
        assert_eq!(self.next(pair), Some(Message::Welcome));
        self.send(&Message::Welcome);
    }

    /// Follows a life that is repeated: frames after the proof are bound to the connection.
    pub(super) fn bind_after(&mut self, index: usize) {
        if index == 0 {
            let own = self.hello_bytes();
            self.hellos[0] = own;
        } else {
            self.bind();
        }
    }

    fn hello_bytes(&self) -> Vec<u8> {
        let bytes = 8 + self.sent.get(8..12).map_or(0, |length| {
            usize::try_from(u32::from_le_bytes(length.try_into().expect("four bytes"))).expect("small")
        });
        self.sent[..(bytes + 56).min(self.sent.len())].to_vec()
    }

    /// Sends no more; still hears.
    pub(super) fn end(&mut self) {
        self.client.end();
    }
}
