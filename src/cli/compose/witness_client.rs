//! A node's thread at a witness: one connection, made again whenever it is lost.
//!
//! # Invariants
//!
//! 1. One request at a time; each ends within the limit, or the connection ends with it. Nothing is sent twice: a swap of which no answer came is
//!    [`SwapOutcome::Unknown`].
//! 2. While the witness is not reached every call fails at once but for one try in a quarter of the limit.

use super::{
    offline::random_id,
    partner_beats::{self, Beats},
    registers::{ArbiterFence, Call, Reply, Worker, fenced, now},
};
use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};
use twinlog::{
    base::{Incarnation, PoolId},
    format::register::Register,
    pair::{
        arbiter::{Answer, SwapOutcome},
        auth::PairKey,
        decide::Fence,
        witness::{self, ANSWER_BYTES, Hello, NONCE_BYTES, Request, Session, WELCOME_BYTES},
    },
};

/// Time between two looks at a fence that was begun.
const TRIAL_POLL: Duration = Duration::from_millis(20);

/// How a witness is reached, and who asks.
pub(super) struct WitnessConfig {
    /// Host and port.
    pub(super) address: String,
    pub(super) key: PairKey,
    /// This node, then its partner.
    pub(super) nodes: [String; 2],
    pub(super) incarnation: Incarnation,
    /// Time that one request may take.
    pub(super) limit: Duration,
    /// How long a node may serve after a beat.
    pub(super) lease: Duration,
}

/// The thread's work at a witness.
pub(super) struct WitnessWorker {
    config: WitnessConfig,
    connection: Option<(TcpStream, Session)>,
    /// Why the last try has failed, and when.
    failed: Option<(String, Instant)>,
    beats: Beats,
}

/// Random bytes that were never used before.
pub(super) fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut bytes = [0; NONCE_BYTES];
    for half in bytes.chunks_mut(NONCE_BYTES / 2) {
        let random = random_id().map_err(|failure| io::Error::other(failure.message))?;
        half.copy_from_slice(&random.to_le_bytes());
    }
    Ok(bytes)
}

impl WitnessWorker {
    pub(super) fn new(config: WitnessConfig) -> Self {
        let beats = Beats::new(config.incarnation, config.lease);
        Self { config, connection: None, failed: None, beats }
    }

    fn connect(&self) -> io::Result<(TcpStream, Session)> {
        let WitnessConfig { address, key, nodes: [name, partner], incarnation, limit, .. } = &self.config;
        let address = address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("it has no address"))?;
        let mut stream = TcpStream::connect_timeout(&address, *limit)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(*limit))?;
        stream.set_write_timeout(Some(*limit))?;
        let (name, partner) = (name.clone(), partner.clone());
        let hello = Hello { name, partner, incarnation: *incarnation, nonce: nonce()? };
        stream.write_all(&hello.encode(key))?;
        let mut bytes = [0; WELCOME_BYTES];
        stream.read_exact(&mut bytes)?;
        let session = Session::welcomed(key, &hello, &bytes).map_err(io::Error::other)?;
        Ok((stream, session))
    }

    /// The answer to a request, or why there is none. `Err` of a swap: nobody knows whether it was made.
    fn ask(&mut self, request: &Request) -> Result<witness::Answer, String> {
        let connection = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => match &self.failed {
                Some((reason, at)) if at.elapsed() < self.config.limit / 4 => return Err(reason.clone()),
                _ => self.connect(),
            },
        };
        let answered = connection.and_then(|(mut stream, mut session)| {
            stream.write_all(&session.ask(request))?;
            let mut bytes = [0; ANSWER_BYTES];
            stream.read_exact(&mut bytes)?;
            let answer = session.answered(&bytes).map_err(io::Error::other)?;
            Ok((answer, (stream, session)))
        });
        match answered {
            Ok((answer, connection)) => {
                if self.failed.take().is_some() {
                    tracing::info!(witness = self.config.address, "the witness answers again");
                }
                self.connection = Some(connection);
                Ok(answer)
            }
            Err(error) => {
                let reason = format!("the witness at {}: {error}", self.config.address);
                if self.failed.is_none() {
                    tracing::warn!(reason, "the witness does not answer");
                }
                self.failed = Some((reason.clone(), now()));
                self.beats.lose_sight();
                Err(reason)
            }
        }
    }

    fn beats(&mut self) -> &mut Beats {
        &mut self.beats
    }

    fn beat(&mut self, time_ns: u64) -> Result<bool, String> {
        let beat = self.beats.next(time_ns);
        match self.ask(&Request::Beat(beat))? {
            witness::Answer::Beat(theirs) => self.beats.heard(theirs),
            other => Err(senseless(&other)),
        }
    }

    fn read(&mut self, pool: PoolId) -> Result<Option<Register>, String> {
        match self.ask(&Request::Read(pool))? {
            witness::Answer::Register(register) if register.is_none_or(|register| register.pool == pool) => {
                Ok(register)
            }
            other => Err(senseless(&other)),
        }
    }

    fn swap(&mut self, old: Option<Register>, new: Register) -> SwapOutcome {
        match self.ask(&Request::Swap(old, new)) {
            Ok(witness::Answer::Swapped(outcome)) => outcome,
            Ok(other) => SwapOutcome::Unknown(senseless(&other)),
            Err(reason) => SwapOutcome::Unknown(reason),
        }
    }
}

/// Why an answer is none to what was asked.
fn senseless(answer: &witness::Answer) -> String {
    match answer {
        witness::Answer::Failed(reason) => format!("the witness: {reason}"),
        _ => "the witness answers something else than it was asked".to_owned(),
    }
}

impl Worker for WitnessWorker {
    fn perform(&mut self, call: Call) -> Option<Reply> {
        match call {
            Call::Read(pool) => Some(Reply::Arbiter(Answer::Read(pool, self.read(pool)))),
            Call::Swap(old, new) => Some(Reply::Arbiter(Answer::Swapped(new.pool, self.swap(old, new)))),
            Call::Beat(time_ns) => Some(Reply::Arbiter(Answer::Beat(self.beat(time_ns)))),
            Call::Fence(pool, epoch, ArbiterFence::Lease) => {
                self.beats.begin(pool, epoch);
                None
            }
            Call::Fence(pool, epoch, ArbiterFence::Lock | ArbiterFence::Process) => {
                Some(fenced(pool, epoch, Fence::Held, "a witness knows no locks"))
            }
        }
    }

    fn go_on(&mut self) -> Option<Reply> {
        partner_beats::follow(self, Self::beats, |worker| worker.beat(0))
    }

    fn patience(&self) -> Option<Duration> {
        self.beats.is_trying().then_some(TRIAL_POLL)
    }
}
