//! The messages of DH-HMAC-CHAP (base 2.0, section 8.13.5): what a host sends, and what it is sent. Pure functions.
//!
//! What comes from the target is bounded here: whatever is let through lies whole within the bytes that came, and names a hash function and a group that exist.

use twinlog_chap::{Group, Hash};

/// Bytes that an Authentication Receive asks for: the longest message, a challenge with SHA-512 and a group of 8192 bits, has 1104.
pub(super) const MESSAGE_BYTES: u32 = 4096;
/// Bytes of what all messages begin with: type, id, transaction.
const HEAD_BYTES: usize = 6;
/// Bytes of messages up to what varies.
const FIXED_BYTES: usize = 16;
/// The only authentication protocol there is.
const DH_HMAC_CHAP: u8 = 1;
/// Identifiers in each list of a negotiation.
const IDENTIFIERS: usize = 30;

/// Messages by their type and id.
mod kind {
    pub(super) const NEGOTIATE: [u8; 2] = [0x00, 0x00];
    pub(super) const FAILURE2: [u8; 2] = [0x00, 0xf0];
    pub(super) const FAILURE1: [u8; 2] = [0x00, 0xf1];
    pub(super) const CHALLENGE: [u8; 2] = [0x01, 0x01];
    pub(super) const REPLY: [u8; 2] = [0x01, 0x02];
    pub(super) const SUCCESS1: [u8; 2] = [0x01, 0x03];
    pub(super) const SUCCESS2: [u8; 2] = [0x01, 0x04];
}

/// Explanations of a failure (section 8.13.5.6) that a host gives.
pub(super) mod explanation {
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const HASH: u8 = 4;
    pub(crate) const GROUP: u8 = 5;
    pub(crate) const PAYLOAD: u8 = 6;
    pub(crate) const MESSAGE: u8 = 7;
}

/// What an explanation means.
pub(super) fn meaning(explanation: u8) -> &'static str {
    match explanation {
        explanation::FAILED => "authentication failed",
        2 => "it knows no protocol that was offered",
        3 => "it demands a secure channel (TLS)",
        explanation::HASH => "it knows no hash function that was offered",
        explanation::GROUP => "it knows no Diffie-Hellman group that was offered",
        explanation::PAYLOAD => "the content of a message is wrong",
        explanation::MESSAGE => "a message came that it did not expect",
        _ => "no reason that is known",
    }
}

/// Why what came is not the message that had to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// The target ends the transaction, with this explanation (AUTH_Failure1).
    Failed(u8),
    /// With the explanation for the target, and words for people.
    Wrong(u8, String),
}

fn wrong<T>(explanation: u8, what: impl Into<String>) -> Result<T, Unfit> {
    Err(Unfit::Wrong(explanation, what.into()))
}

/// DH-HMAC-CHAP_Challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Challenged<'a> {
    pub(super) hash: Hash,
    pub(super) group: Group,
    pub(super) sequence: u32,
    /// As long as what the hash function makes.
    pub(super) value: &'a [u8],
    /// The target's element of the group; whether it is one was not looked at.
    pub(super) element: &'a [u8],
}

/// The host's answer to a challenge.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reply<'a> {
    pub(super) response: &'a [u8],
    /// The host's own challenge, and its sequence number, if the controller is to prove itself.
    pub(super) challenge: Option<(&'a [u8], u32)>,
    /// Of the group; nothing with the null group.
    pub(super) element: &'a [u8],
}

/// AUTH_Negotiate: one protocol, with these functions and groups; no secure channel is to follow.
pub(super) fn negotiate(transaction: u16, hashes: &[Hash], groups: &[Group]) -> Vec<u8> {
    let mut message = head(kind::NEGOTIATE, transaction);
    message.extend([0, 1, DH_HMAC_CHAP, 0, short(hashes.len()), short(groups.len())]);
    let mut lists = [0; 2 * IDENTIFIERS];
    let (first, second) = lists.split_at_mut(IDENTIFIERS);
    first.iter_mut().zip(hashes).for_each(|(place, hash)| *place = hash.id());
    second.iter_mut().zip(groups).for_each(|(place, group)| *place = group.id());
    message.extend(lists);
    message
}

/// DH-HMAC-CHAP_Reply.
pub(super) fn reply(transaction: u16, reply: &Reply<'_>) -> Vec<u8> {
    let nothing = vec![0; reply.response.len()];
    let (challenge, sequence) = reply.challenge.unwrap_or((&nothing, 0));
    let mut message = head(kind::REPLY, transaction);
    message.extend([short(reply.response.len()), 0, u8::from(reply.challenge.is_some()), 0]);
    message.extend(u16::try_from(reply.element.len()).expect("at most 1024").to_le_bytes());
    message.extend(sequence.to_le_bytes());
    [&message, reply.response, challenge, reply.element].concat()
}

/// DH-HMAC-CHAP_Success2: the controller is believed.
pub(super) fn success2(transaction: u16) -> Vec<u8> {
    let mut message = head(kind::SUCCESS2, transaction);
    message.resize(FIXED_BYTES, 0);
    message
}

/// AUTH_Failure2: it is not, or has said what may not be said.
pub(super) fn failure2(transaction: u16, explanation: u8) -> Vec<u8> {
    let mut message = head(kind::FAILURE2, transaction);
    message.extend([1, explanation]);
    message
}

/// Reads a challenge; what follows it is filling.
pub(super) fn parse_challenge(data: &[u8], transaction: u16) -> Result<Challenged<'_>, Unfit> {
    let fixed = expect(data, kind::CHALLENGE, transaction)?;
    let Some(hash) = Hash::of(fixed[8]) else {
        return wrong(explanation::HASH, format!("a challenge with hash function {}", fixed[8]));
    };
    let Some(group) = Group::of(fixed[9]) else {
        return wrong(explanation::GROUP, format!("a challenge with Diffie-Hellman group {}", fixed[9]));
    };
    let bytes = usize::from(fixed[6]);
    if bytes != hash.bytes() {
        return wrong(explanation::PAYLOAD, format!("a challenge of {bytes} bytes for {}", hash.name()));
    }
    let element_bytes = usize::from(u16::from_le_bytes([fixed[10], fixed[11]]));
    let rest = data[FIXED_BYTES..].split_at_checked(bytes);
    let Some((value, element)) = rest.and_then(|(value, rest)| Some((value, rest.get(..element_bytes)?))) else {
        return wrong(explanation::PAYLOAD, format!("a challenge cut short after {} bytes", data.len()));
    };
    let sequence = u32::from_le_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]);
    Ok(Challenged { hash, group, sequence, value, element })
}

/// Reads DH-HMAC-CHAP_Success1: the controller's response, as long as what `hash` makes, if there is one.
pub(super) fn parse_success1(data: &[u8], transaction: u16, hash: Hash) -> Result<Option<&[u8]>, Unfit> {
    let fixed = expect(data, kind::SUCCESS1, transaction)?;
    let bytes = usize::from(fixed[6]);
    if bytes != hash.bytes() {
        return wrong(explanation::PAYLOAD, format!("a success with {bytes} bytes for {}", hash.name()));
    }
    match (fixed[8], data[FIXED_BYTES..].get(..bytes)) {
        (0, _) => Ok(None),
        (1, Some(response)) => Ok(Some(response)),
        (1, None) => wrong(explanation::PAYLOAD, format!("a success cut short after {} bytes", data.len())),
        (valid, _) => wrong(explanation::PAYLOAD, format!("a success with a response that is {valid}, not 0 or 1")),
    }
}

/// The beginning of a message that has to be of this kind.
fn expect(data: &[u8], kind: [u8; 2], transaction: u16) -> Result<&[u8; FIXED_BYTES], Unfit> {
    let Some(head) = data.first_chunk::<HEAD_BYTES>() else {
        return wrong(explanation::PAYLOAD, format!("a message that authenticates of {} bytes", data.len()));
    };
    let (said, named) = ([head[0], head[1]], u16::from_le_bytes([head[4], head[5]]));
    let is_failure = said == kind::FAILURE1;
    if said != kind && !is_failure {
        let what =
            format!("message {:#04x} of type {} instead of {:#04x} of type {}", said[1], said[0], kind[1], kind[0]);
        return wrong(explanation::MESSAGE, what);
    }
    if named != transaction {
        return wrong(explanation::PAYLOAD, format!("transaction {named}, in the middle of transaction {transaction}"));
    }
    match data.first_chunk() {
        Some(fixed) if !is_failure => Ok(fixed),
        // Reason and explanation.
        _ if is_failure && data.len() >= HEAD_BYTES + 2 => Err(Unfit::Failed(data[HEAD_BYTES + 1])),
        _ => wrong(explanation::PAYLOAD, format!("a message that authenticates, cut short after {} bytes", data.len())),
    }
}

fn head(kind: [u8; 2], transaction: u16) -> Vec<u8> {
    let [low, high] = transaction.to_le_bytes();
    vec![kind[0], kind[1], 0, 0, low, high]
}

fn short(length: usize) -> u8 {
    u8::try_from(length).expect("at most 64")
}
