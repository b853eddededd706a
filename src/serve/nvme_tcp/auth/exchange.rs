//! One queue's authentication (NVMe base 2.0, section 8.13.5).
//!
//! ```text
//!           AUTH_Negotiate              Challenge                Reply                Success1
//! resting -----------------> offered - - - - - - - -> challenged ------> answered - - - - - - - -> resting, the host has proven itself
//!    ^                                                                      :  Success1 with the controller's response
//!    |                                                                      + - - - - - - - - -> examined
//!    +--------------------------------- Success2 -------------------------------------------------/
//!
//! anything wrong --> failed - - Failure1 - -> the connection ends;     Failure2 --> the connection ends
//! ```
//!
//! Solid: the host sends, by Authentication Send; dashed: it fetches, by Authentication Receive. What is fetched may have to be waited for: a power is
//! computed meanwhile.
//!
//! # Invariants
//!
//! 1. A response is checked once, against a challenge that was never used before: repeating what another host or this one has said proves nothing.
//! 2. The controller proves itself only to a host that has proven itself.
//! 3. Hosts may authenticate again whenever they like; a queue stays open for commands meanwhile, and ends when that fails.

use super::means::{Means, Power};
use crate::serve::nvme_tcp::{
    hosts::Host,
    wire::auth::{self, Failure, HostMessage, Negotiate, Reply},
};
use std::{sync::Arc, time::Duration};
use twinlog_chap::{Challenge, EXPONENT_BYTES, Group, Hash, Prover, Role};
use twinlog_device::Nanos;

/// How long a host may take, from its Connect, or its negotiation, to the end. A host whose keep-alive time-out is shorter has less at its admin queue.
const LIMIT: Duration = Duration::from_secs(120);

/// Hash functions, the best first.
const HASHES: [Hash; 3] = [Hash::Sha512, Hash::Sha384, Hash::Sha256];

/// Groups, the best first: the smallest is strong enough to keep whoever listens from trying secrets, and costs the least. Without any, secrets of 32
/// random bytes cannot be found by trying either.
const GROUPS: [Group; 6] =
    [Group::Ffdhe2048, Group::Ffdhe3072, Group::Ffdhe4096, Group::Ffdhe6144, Group::Ffdhe8192, Group::Null];

/// No secure channel follows (SC_C).
const NO_CHANNEL: u8 = 0;

/// What a transaction is about.
#[derive(Debug)]
struct Terms {
    transaction: u16,
    hash: Hash,
    group: Group,
    challenge: Vec<u8>,
    sequence: u32,
    exponent: Exponent,
}

impl Terms {
    /// One end's challenge, where both have `common`.
    fn challenge<'a>(&self, common: &'a [u8], value: &'a [u8], sequence: u32) -> Challenge<'a> {
        let Self { hash, group, transaction, .. } = *self;
        Challenge { hash, group, transaction, value, sequence, common }
    }
}

/// Never shown.
struct Exponent([u8; EXPONENT_BYTES]);

impl std::fmt::Debug for Exponent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Exponent(..)")
    }
}

/// What the host has answered.
#[derive(Debug)]
struct Answer {
    response: Vec<u8>,
    challenge: Option<(Vec<u8>, u32)>,
    common: Power,
}

#[derive(Debug)]
enum State {
    Resting,
    Offered(Terms, Power),
    Challenged(Terms),
    Answered(Terms, Answer),
    Examined(u16),
    Failed(u16, Failure),
}

/// What a message that was taken brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::serve::nvme_tcp) enum Taken {
    /// The host goes on.
    Well,
    /// The host does not believe that the controller is what it should be: the connection ends.
    Doubted,
}

/// What is given to a host that fetches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve::nvme_tcp) enum Given {
    /// Nothing is to be fetched.
    Nothing,
    /// Not yet: ask again when a power may be there.
    Later,
    /// This.
    Message(Vec<u8>),
    /// This, and then the connection ends.
    Last(Vec<u8>),
}

/// One queue's authentication.
#[derive(Debug)]
pub(in crate::serve::nvme_tcp) struct Exchange {
    host: Arc<Host>,
    subsystem: String,
    state: State,
    is_proven: bool,
    /// When the host was asked, or began to authenticate, if it has not come to the end.
    began: Option<Nanos>,
}

impl Exchange {
    /// The authentication of a queue that `host`, which has a secret, has just connected.
    pub(in crate::serve::nvme_tcp) fn new(host: Arc<Host>, subsystem: &str, now: Nanos) -> Self {
        assert!(host.secret.is_some(), "others have nothing to prove");
        Self { host, subsystem: subsystem.to_owned(), state: State::Resting, is_proven: false, began: Some(now) }
    }

    /// Whether the host has proven itself, so that its commands are performed.
    pub(in crate::serve::nvme_tcp) fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Whether the host takes too long.
    pub(in crate::serve::nvme_tcp) fn is_overdue(&self, now: Nanos) -> bool {
        self.began.is_some_and(|began| now.since(began) > LIMIT)
    }

    /// Takes what an Authentication Send has brought.
    pub(in crate::serve::nvme_tcp) fn take(&mut self, means: &Means, data: &[u8], now: Nanos) -> Taken {
        if let State::Failed(..) = self.state {
            return Taken::Well;
        }
        let state = std::mem::replace(&mut self.state, State::Resting);
        let transaction = transaction_of(&state, data);
        let next = match (state, auth::parse(data)) {
            (State::Resting, Ok(HostMessage::Negotiate(negotiate))) => {
                self.began = Some(now);
                offered(means, &negotiate)
            }
            (State::Challenged(terms), Ok(HostMessage::Reply(reply))) => answered(means, terms, &reply),
            (State::Examined(_), Ok(HostMessage::Success2(said))) if transaction == said => {
                (self.is_proven, self.began) = (true, None);
                Ok(State::Resting)
            }
            // A host that cannot use the challenge ends the transaction so, too.
            (State::Examined(_) | State::Challenged(_), Ok(HostMessage::Failure2(said, _))) if transaction == said => {
                return Taken::Doubted;
            }
            (_, Ok(_)) => Err(Failure::Message),
            (_, Err(failure)) => Err(failure),
        };
        self.state = next.unwrap_or_else(|failure| {
            self.began.get_or_insert(now);
            self.report(failure);
            State::Failed(transaction, failure)
        });
        Taken::Well
    }

    /// Gives what an Authentication Receive fetches.
    pub(in crate::serve::nvme_tcp) fn give(&mut self) -> Given {
        match std::mem::replace(&mut self.state, State::Resting) {
            State::Offered(terms, element) => {
                let Some(own) = element.get() else {
                    self.state = State::Offered(terms, element);
                    return Given::Later;
                };
                let challenge = (terms.hash, &terms.challenge[..]);
                let message = auth::challenge(terms.transaction, challenge, (terms.group, own), terms.sequence);
                self.state = State::Challenged(terms);
                Given::Message(message)
            }
            State::Answered(terms, answer) if answer.common.get().is_none() => {
                self.state = State::Answered(terms, answer);
                Given::Later
            }
            State::Answered(terms, answer) => self.conclude(&terms, &answer),
            State::Failed(transaction, failure) => Given::Last(auth::failure1(transaction, failure)),
            state @ (State::Resting | State::Challenged(_) | State::Examined(_)) => {
                self.state = state;
                Given::Nothing
            }
        }
    }

    /// Looks whether the host knows its secret, and shows that the controller knows its own.
    fn conclude(&mut self, terms: &Terms, answer: &Answer) -> Given {
        let common = answer.common.get().expect("the caller has looked");
        let secret = self.host.secret.as_ref().expect("a host with a secret");
        let challenge = terms.challenge(common, &terms.challenge, terms.sequence);
        let prover = Prover { role: Role::Host, name: &self.host.name, secret, examiner: &self.subsystem };
        let (transaction, is_host) = (terms.transaction, challenge.is_answered(prover, &answer.response));
        let response = is_host.then(|| self.own_response(terms, answer)).flatten();
        if !is_host || response.is_some() != answer.challenge.is_some() {
            self.report(Failure::Failed);
            return Given::Last(auth::failure1(transaction, Failure::Failed));
        }
        if response.is_some() {
            self.state = State::Examined(transaction);
        } else {
            (self.is_proven, self.began) = (true, None);
        }
        Given::Message(auth::success1(transaction, terms.hash, response.as_deref()))
    }

    /// The controller's response to the host's challenge. `None`: there is none, or no secret to answer it with.
    fn own_response(&self, terms: &Terms, answer: &Answer) -> Option<Vec<u8>> {
        let (challenge, sequence) = answer.challenge.as_ref()?;
        let secret = self.host.controller_secret.as_ref()?;
        let challenge = terms.challenge(answer.common.get()?, challenge, *sequence);
        let prover = Prover { role: Role::Controller, name: &self.subsystem, secret, examiner: &self.host.name };
        Some(challenge.response(prover))
    }

    fn report(&self, failure: Failure) {
        tracing::warn!(host = self.host.name, reason = ?failure, "a host has not authenticated itself");
    }
}

/// The transaction that is under way, or that `data` names.
fn transaction_of(state: &State, data: &[u8]) -> u16 {
    match state {
        State::Offered(terms, _) | State::Challenged(terms) | State::Answered(terms, _) => terms.transaction,
        State::Examined(transaction) | State::Failed(transaction, _) => *transaction,
        State::Resting => data.get(4..6).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]])),
    }
}

/// Chooses from what the host offers, and begins to make the challenge.
fn offered(means: &Means, negotiate: &Negotiate) -> Result<State, Failure> {
    if negotiate.secure_channel != NO_CHANNEL {
        return Err(Failure::SecureChannel);
    }
    let (hashes, groups) = negotiate.offer.as_ref().ok_or(Failure::NoProtocol)?;
    let hash = HASHES.into_iter().find(|hash| hashes.contains(hash)).ok_or(Failure::NoHash)?;
    let group = GROUPS.into_iter().find(|group| groups.contains(group)).ok_or(Failure::NoGroup)?;
    let challenge = means.draw()[..hash.bytes()].to_vec();
    // Zero is no number.
    let sequence = u32::from_le_bytes(*means.draw().first_chunk().expect("64 bytes")).max(1);
    let exponent = means.draw();
    let element = means.power(group, None, &exponent).ok_or(Failure::Failed)?;
    let exponent = Exponent(exponent);
    let terms = Terms { transaction: negotiate.transaction, hash, group, challenge, sequence, exponent };
    Ok(State::Offered(terms, element))
}

/// Looks at the form of the host's answer, and begins to find what it is held against.
fn answered(means: &Means, terms: Terms, reply: &Reply<'_>) -> Result<State, Failure> {
    let has_form = reply.transaction == terms.transaction
        && reply.response.len() == terms.hash.bytes()
        && terms.group.is_element(reply.element)
        && reply.challenge.is_none_or(|(challenge, _)| challenge != terms.challenge);
    if !has_form {
        return Err(Failure::Payload);
    }
    let common = means.power(terms.group, Some(reply.element), &terms.exponent.0).ok_or(Failure::Failed)?;
    let challenge = reply.challenge.map(|(challenge, sequence)| (challenge.to_vec(), sequence));
    let answer = Answer { response: reply.response.to_vec(), challenge, common };
    Ok(State::Answered(terms, answer))
}
