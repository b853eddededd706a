//! One queue's authentication: what the host says to what the target says (base 2.0, sections 8.13.5.1 to 8.13.5.7).
//!
//! ```text
//! host                                  target
//!   Negotiate: functions, groups  --->
//!                                 <---  Challenge: the choice, an element of the group
//!   Reply: response, element,     --->
//!     perhaps a challenge
//!                                 <---  Success1: perhaps the controller's response
//!   Success2, after a response    --->
//! ```
//!
//! Either may end it with a failure that says why. What is drawn is drawn anew for every queue, and each time that a path is opened again.

use std::{fmt, io};

use twinlog_chap::{Challenge, EXPONENT_BYTES, Group, Hash, Prover, Role, Secret};

use super::{
    keys::Keys,
    message::{self, Challenged, Reply, Unfit, explanation, meaning, parse_challenge, parse_success1},
};
use crate::nvme::controller::{DISCOVERY, Parties};

/// The longest challenge.
const CHALLENGE_BYTES: usize = 64;

/// Why an authentication ends without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The target has ended it.
    #[error("the target does not let this host in: {0}")]
    Refused(&'static str),
    /// What the target says may not be said; with the explanation that it is given.
    #[error("{1}")]
    Wrong(u8, String),
    /// The response is not that of somebody who knows the controller's secret.
    #[error("the target is not what it should be: it does not know the secret in --controller-secret-file")]
    Impostor,
}

/// The host is ended by what it has been told, or tells why it ends itself.
fn fault(unfit: Unfit, refused: impl FnOnce(u8) -> &'static str) -> Fault {
    match unfit {
        Unfit::Failed(explanation) => Fault::Refused(refused(explanation)),
        Unfit::Wrong(explanation, what) => Fault::Wrong(explanation, what),
    }
}

/// The host's answer to a challenge, and what the controller's response is held against.
pub(crate) struct Proof {
    pub(crate) reply: Vec<u8>,
    hash: Hash,
    group: Group,
    common: Vec<u8>,
}

impl fmt::Debug for Proof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Proof").field("hash", &self.hash).field("group", &self.group).finish_non_exhaustive()
    }
}

/// One queue's authentication.
pub(crate) struct Exchange<'a> {
    parties: Parties<'a>,
    keys: &'a Keys,
    /// What the target has to know; discovery says where others are, and proves nothing.
    asked: Option<&'a Secret>,
    transaction: u16,
    challenge: [u8; CHALLENGE_BYTES],
    sequence: u32,
    exponent: [u8; EXPONENT_BYTES],
}

impl<'a> Exchange<'a> {
    /// Of a queue that has been connected for `parties`. Fails when there is nothing random.
    pub(crate) fn new(parties: Parties<'a>, keys: &'a Keys) -> io::Result<Self> {
        let (mut transaction, mut sequence) = ([0; 2], [0; 4]);
        let (mut challenge, mut exponent) = ([0; CHALLENGE_BYTES], [0; EXPONENT_BYTES]);
        for bytes in [&mut transaction[..], &mut sequence, &mut challenge, &mut exponent] {
            (keys.draw)(bytes)?;
        }
        let transaction = u16::from_le_bytes(transaction);
        // Zero says that there is no challenge.
        let sequence = u32::from_le_bytes(sequence).max(1);
        let asked = keys.controller_secret.as_ref().filter(|_| parties.subsystem != DISCOVERY);
        Ok(Self { parties, keys, asked, transaction, challenge, sequence, exponent })
    }

    /// How it begins.
    pub(crate) fn negotiate(&self) -> Vec<u8> {
        message::negotiate(self.transaction, &self.keys.hashes, &self.keys.groups)
    }

    /// Answers the challenge in `data`.
    pub(crate) fn prove(&self, data: &[u8]) -> Result<Proof, Fault> {
        let challenged = parse_challenge(data, self.transaction).map_err(|unfit| fault(unfit, meaning))?;
        let Challenged { hash, group, sequence, value, element } = challenged;
        self.check(&challenged)?;
        let (own, common) = match group {
            Group::Null => (Vec::new(), Vec::new()),
            group => (group.element(&self.exponent), group.common(element, &self.exponent)),
        };
        let challenge = Challenge { hash, group, transaction: self.transaction, value, sequence, common: &common };
        let (name, examiner) = (self.parties.host.name.as_str(), self.parties.subsystem);
        let response = challenge.response(Prover { role: Role::Host, name, secret: &self.keys.secret, examiner });
        let reply = Reply {
            response: &response,
            challenge: self.asked.is_some().then_some((&self.challenge[..hash.bytes()], self.sequence)),
            element: &own,
        };
        let reply = message::reply(self.transaction, &reply);
        Ok(Proof { reply, hash, group, common })
    }

    /// Whether the target has chosen from what was offered, and sent an element that does not tell the result to everybody.
    fn check(&self, challenged: &Challenged<'_>) -> Result<(), Fault> {
        let Challenged { hash, group, element, .. } = *challenged;
        if !self.keys.hashes.contains(&hash) {
            return Err(Fault::Wrong(
                explanation::HASH,
                format!("it has chosen {}, which was not offered", hash.name()),
            ));
        }
        if !self.keys.groups.contains(&group) {
            return Err(Fault::Wrong(
                explanation::GROUP,
                format!("it has chosen group {}, which was not offered", group.name()),
            ));
        }
        if !group.is_element(element) {
            let what = format!("a value of {} bytes that is no element of group {}", element.len(), group.name());
            return Err(Fault::Wrong(explanation::PAYLOAD, what));
        }
        Ok(())
    }

    /// Judges what the target says to the proof; what is to be said to that, if anything is.
    pub(crate) fn conclude(&self, proof: &Proof, data: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let response = parse_success1(data, self.transaction, proof.hash);
        let response = response.map_err(|unfit| fault(unfit, |explanation| self.refusal(explanation)))?;
        let (secret, response) = match (self.asked, response) {
            (None, None) => return Ok(None),
            (Some(secret), Some(response)) => (secret, response),
            (None, Some(_)) => {
                return Err(Fault::Wrong(explanation::PAYLOAD, "a response to no challenge".to_owned()));
            }
            (Some(_), None) => return Err(Fault::Impostor),
        };
        let Proof { hash, group, ref common, .. } = *proof;
        let (transaction, value) = (self.transaction, &self.challenge[..hash.bytes()]);
        let challenge = Challenge { hash, group, transaction, value, sequence: self.sequence, common };
        let (name, examiner) = (self.parties.subsystem, self.parties.host.name.as_str());
        match challenge.is_answered(Prover { role: Role::Controller, name, secret, examiner }, response) {
            true => Ok(Some(message::success2(self.transaction))),
            false => Err(Fault::Impostor),
        }
    }

    /// What it means that the target has looked at the proof and ends the transaction.
    fn refusal(&self, explanation: u8) -> &'static str {
        match (explanation, self.asked) {
            (explanation::FAILED, None) => {
                "the secret in --secret-file is not the one that it has for this host's name"
            }
            (explanation::FAILED, Some(_)) => {
                "the secret in --secret-file is not the one that it has for this host's name, or it has none for \
                 --controller-secret-file"
            }
            (explanation, _) => meaning(explanation),
        }
    }

    /// What the target is told of a fault that it does not know of.
    pub(crate) fn farewell(&self, fault: &Fault) -> Option<Vec<u8>> {
        match fault {
            Fault::Refused(_) => None,
            Fault::Wrong(explanation, _) => Some(message::failure2(self.transaction, *explanation)),
            Fault::Impostor => Some(message::failure2(self.transaction, explanation::FAILED)),
        }
    }
}
