//! One connection of the interconnect, from its first byte to its last.
//!
//! ```text
//! Connecting --> Greeting --hello--> Proving --proof--> Agreeing --welcome--> Open
//! ```
//!
//! Both ends send a hello as soon as there is a connection, a proof as soon as they have the other's hello, and a welcome as soon as the proof is
//! true and everything agrees. The frames of each step are the answer to those of the step before, so an end that is *Open* knows that the
//! other one is, or will be when it has read what is on its way.
//!
//! | phase | what may be trusted | what may arrive |
//! |---|---|---|
//! | Connecting | nothing | nothing |
//! | Greeting | nothing | a hello |
//! | Proving | nothing: the hello may be anybody's | a proof, or a refusal |
//! | Agreeing | the hello: its author knows the key | a welcome, or a refusal |
//! | Open | every frame comes from the partner, as far as the way between the nodes can be trusted | everything else |

use crate::{
    base::{Epoch, PoolId, checksum::checksum_of_parts},
    pair::{
        auth::{PairKey, Transcript},
        wire::{
            Ack, FRAME_BYTES_MAX, Frame, FrameError, GREETING_BYTES_MAX, Heartbeat, Hello, Message, Outgoing, Role,
            Seal, SealedFrame,
        },
    },
};
use std::time::Duration;
use twinlog_device::{ConnectionId, Nanos, Network};

/// How far a channel has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The network connects.
    Connecting,
    /// The partner's hello is due.
    Greeting,
    /// Its proof is due.
    Proving,
    /// Its welcome is due.
    Agreeing,
    /// Frames pass.
    Open,
}

/// A frame that has arrived, apart from its payload, which lies at the end of its bytes in the network's input.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) pool: PoolId,
    pub(super) epoch: Epoch,
    pub(super) acks: Vec<Ack>,
    pub(super) message: Message,
    pub(super) frame_bytes: usize,
    pub(super) payload_bytes: usize,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) connection: ConnectionId,
    /// Our part in it.
    pub(super) role: Role,
    pub(super) phase: Phase,
    /// Which path it is; zero until the partner's hello says so, if we listen.
    pub(super) path: u8,
    /// The connecting node's number of it; the same.
    pub(super) number: u64,
    /// The connecting node's number of the session; the same.
    pub(super) session: u64,
    /// Who is at the other end, for people.
    pub(super) peer: String,
    pub(super) opened_at: Nanos,
    /// When anything has arrived.
    pub(super) heard_at: Nanos,
    /// Input that waited when it was last looked at.
    seen_bytes: usize,
    /// Our hello, as it was sent.
    own: Option<(Vec<u8>, Hello)>,
    /// The partner's, as it came.
    partner: Option<(Vec<u8>, Hello)>,
    /// What binds the proofs to this connection, if it is encrypted.
    binding: Option<[u8; 32]>,
    sending: Seal,
    receiving: Seal,
    pub(super) beat_due: Nanos,
    /// The partner's last heartbeat: what it said, and when it came.
    beat: Option<(u64, Nanos)>,
    /// How long a frame takes there and back, smoothed.
    pub(super) round_trip: Option<Duration>,
}

impl Channel {
    pub(super) fn new(connection: ConnectionId, role: Role, peer: String, now: Nanos) -> Self {
        Self {
            connection,
            role,
            phase: if role == Role::Connects { Phase::Connecting } else { Phase::Greeting },
            path: 0,
            number: 0,
            session: 0,
            peer,
            opened_at: now,
            heard_at: now,
            seen_bytes: 0,
            own: None,
            partner: None,
            binding: None,
            sending: Seal::default(),
            receiving: Seal::default(),
            beat_due: now,
            beat: None,
            round_trip: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the other end has proved that it knows the key.
    pub(super) fn is_proven(&self) -> bool {
        self.phase >= Phase::Agreeing
    }

    /// What we have said of ourselves.
    pub(super) fn own(&self) -> Option<&Hello> {
        self.own.as_ref().map(|(_, hello)| hello)
    }

    /// What the other end has said of itself.
    pub(super) fn partner(&self) -> Option<&Hello> {
        self.partner.as_ref().map(|(_, hello)| hello)
    }

    /// Looks whether bytes have arrived. What waits because we do not take it counts too: then it is we who are slow.
    pub(super) fn listen<N: Network>(&mut self, net: &N, now: Nanos) {
        let waiting = net.input(self.connection).len();
        if waiting > self.seen_bytes || self.has_frame(net) {
            self.heard_at = now;
        }
        self.seen_bytes = waiting;
    }

    /// Whether a frame, or what is none, waits.
    pub(super) fn has_frame<N: Network>(&self, net: &N) -> bool {
        !matches!(SealedFrame::read(net.input(self.connection), self.receiving, self.frame_bytes_max()), Ok(None))
    }

    /// Largest frame that is taken now: strangers make nobody keep more.
    fn frame_bytes_max(&self) -> usize {
        if self.is_proven() { FRAME_BYTES_MAX } else { GREETING_BYTES_MAX }
    }

    /// The next frame, if all of it is there. It stays in the input until it is consumed.
    pub(super) fn next_frame<N: Network>(&mut self, net: &N) -> Result<Option<Arrived>, FrameError> {
        let input = net.input(self.connection);
        let Some(sealed) = SealedFrame::read(input, self.receiving, self.frame_bytes_max())? else { return Ok(None) };
        let frame_bytes = sealed.frame_bytes();
        let Frame { pool, epoch, acks, message, payload } = sealed.open()?;
        let payload_bytes = payload.len();
        Ok(Some(Arrived { pool, epoch, acks, message, frame_bytes, payload_bytes }))
    }

    /// Goes on to the frame after one of `frame_bytes`.
    pub(super) fn consume<N: Network>(&mut self, net: &mut N, frame_bytes: usize) {
        net.consume(self.connection, frame_bytes);
        self.seen_bytes = net.input(self.connection).len();
        self.receiving.advance();
    }

    /// Sends a frame without a payload.
    pub(super) fn send<N: Network>(&mut self, net: &mut N, message: &Message, scratch: &mut Vec<u8>) {
        let outgoing = Outgoing { pool: PoolId(0), epoch: Epoch(0), acks: &[], message };
        self.send_frame(net, &outgoing, &[], scratch);
    }

    /// Sends everything of a frame but its payload, which the caller sends after it.
    pub(super) fn send_frame<N: Network>(
        &mut self,
        net: &mut N,
        outgoing: &Outgoing<'_>,
        payload: &[&[u8]],
        scratch: &mut Vec<u8>,
    ) {
        scratch.clear();
        outgoing.write(&mut self.sending, payload, scratch);
        net.send(self.connection, scratch);
    }

    /// Says hello.
    pub(super) fn greet<N: Network>(&mut self, net: &mut N, hello: Hello, scratch: &mut Vec<u8>) {
        if self.role == Role::Connects {
            (self.path, self.number, self.session) = (hello.path, hello.connection, hello.session);
        }
        self.phase = Phase::Greeting;
        self.send(net, &Message::Hello(Box::new(hello.clone())), scratch);
        self.own = Some((scratch.clone(), hello));
    }

    /// The partner's hello, with the bytes that it came in, agrees with ours: proves that we know the key.
    pub(super) fn prove<N: Network>(
        &mut self,
        net: &mut N,
        (bytes, hello): (Vec<u8>, Hello),
        key: &PairKey,
        scratch: &mut Vec<u8>,
    ) {
        if self.role == Role::Listens {
            (self.path, self.number, self.session) = (hello.path, hello.connection, hello.session);
        }
        self.partner = Some((bytes, hello));
        self.binding = net.binding(self.connection);
        let proof = key.prove(self.role, self.transcript());
        self.phase = Phase::Proving;
        self.send(net, &Message::Proof(proof), scratch);
        self.sending.bind(self.tag(self.role));
    }

    /// Whether `proof` shows that the partner knows the key.
    pub(super) fn proves(&self, key: &PairKey, proof: &[u8; 32]) -> bool {
        key.is_proof(self.role.other(), self.transcript(), proof)
    }

    /// The partner is who it says: goes on with it, and takes frames of every size.
    pub(super) fn welcome<N: Network>(&mut self, net: &mut N, scratch: &mut Vec<u8>) {
        self.receiving.bind(self.tag(self.role.other()));
        self.phase = Phase::Agreeing;
        net.widen_input(self.connection, FRAME_BYTES_MAX);
        self.send(net, &Message::Welcome, scratch);
    }

    fn transcript(&self) -> Transcript<'_> {
        let [own, partner] = [&self.own, &self.partner].map(|said| match said {
            Some((bytes, _)) => bytes.as_slice(),
            None => unreachable!("both have said hello"),
        });
        let [connecting, listening] = match self.role {
            Role::Connects => [own, partner],
            Role::Listens => [partner, own],
        };
        Transcript { connecting, listening, binding: self.binding.as_ref().map_or(&[], <[u8; 32]>::as_slice) }
    }

    /// What binds the frames of `sender` to this connection.
    fn tag(&self, sender: Role) -> u64 {
        let Transcript { connecting, listening, .. } = self.transcript();
        checksum_of_parts(sender as u64, [connecting, listening])
    }

    /// Says that we live.
    pub(super) fn send_heartbeat<N: Network>(&mut self, net: &mut N, now: Nanos, scratch: &mut Vec<u8>) {
        let (echo_ns, heard_at) = self.beat.unwrap_or((0, now));
        let held_ns = u64::try_from(now.since(heard_at).as_nanos()).unwrap_or(u64::MAX);
        // Zero means none.
        let heartbeat = Heartbeat { sent_ns: now.0.max(1), echo_ns, held_ns };
        self.send(net, &Message::Heartbeat(heartbeat), scratch);
    }

    /// The partner lives.
    pub(super) fn note_heartbeat(&mut self, heartbeat: Heartbeat, now: Nanos) {
        self.beat = Some((heartbeat.sent_ns, now));
        if heartbeat.echo_ns == 0 {
            return;
        }
        let sample = now.since(Nanos(heartbeat.echo_ns)).saturating_sub(Duration::from_nanos(heartbeat.held_ns));
        // As TCP does it (RFC 6298): an eighth of each sample.
        self.round_trip = Some(self.round_trip.map_or(sample, |smoothed| (smoothed * 7 + sample) / 8));
    }
}
