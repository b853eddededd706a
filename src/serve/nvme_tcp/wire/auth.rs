//! The messages of in-band authentication, DH-HMAC-CHAP (NVMe base 2.0, section 8.13.5), and the commands that carry them.

use super::command::Command;
use twinlog_chap::{Group, Hash};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// Bytes of the longest message that is taken or given: a reply with SHA-512 and a group of 8192 bits has 1168, and hosts provide 4096 (Linux).
pub const MESSAGE_BYTES_MAX: u32 = 4096;

/// Security protocol of NVMe, and its two specific fields (section 8.13.2): dword 10 of Authentication Send and Receive, from byte 41 on.
const PROTOCOL: u32 = 0xe901_0100;
const PROTOCOL_MASK: u32 = 0xffff_ff00;

/// The only authentication protocol there is.
const DH_HMAC_CHAP: u8 = 1;
/// Identifiers in each list of a negotiation.
const IDENTIFIERS_MAX: usize = 30;

/// Message types.
mod kind {
    pub(super) const COMMON: u8 = 0;
    pub(super) const DH_HMAC_CHAP: u8 = 1;
}

/// Messages, by type and id.
mod message {
    use super::kind::{COMMON, DH_HMAC_CHAP};
    pub(super) const NEGOTIATE: (u8, u8) = (COMMON, 0x00);
    pub(super) const FAILURE2: (u8, u8) = (COMMON, 0xf0);
    pub(super) const FAILURE1: (u8, u8) = (COMMON, 0xf1);
    pub(super) const CHALLENGE: (u8, u8) = (DH_HMAC_CHAP, 0x01);
    pub(super) const REPLY: (u8, u8) = (DH_HMAC_CHAP, 0x02);
    pub(super) const SUCCESS1: (u8, u8) = (DH_HMAC_CHAP, 0x03);
    pub(super) const SUCCESS2: (u8, u8) = (DH_HMAC_CHAP, 0x04);
}

/// Why an authentication fails: the explanation of its only reason (section 8.13.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Somebody does not have the secret.
    Failed,
    /// No protocol that both know.
    NoProtocol,
    /// A secure channel is wanted, and there is none here.
    SecureChannel,
    /// No hash function that both know.
    NoHash,
    /// No group that both know.
    NoGroup,
    /// A message with wrong content.
    Payload,
    /// A message that may not come now.
    Message,
}

impl Failure {
    /// Its code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::NoProtocol => 2,
            Self::SecureChannel => 3,
            Self::NoHash => 4,
            Self::NoGroup => 5,
            Self::Payload => 6,
            Self::Message => 7,
        }
    }
}

/// How a transaction begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiate {
    /// Names the transaction in all its messages.
    pub transaction: u16,
    /// Zero: no secure channel is to follow.
    pub secure_channel: u8,
    /// Hash functions and groups that the host knows, of those that are known here. `None`: it does not know the protocol.
    pub offer: Option<(Vec<Hash>, Vec<Group>)>,
}

/// The host's answer to a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The transaction.
    pub transaction: u16,
    /// As long as what the hash function makes.
    pub response: &'a [u8],
    /// The host's own challenge, if the controller is to prove itself, and its sequence number.
    pub challenge: Option<(&'a [u8], u32)>,
    /// The host's element of the group.
    pub element: &'a [u8],
}

/// What a host sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMessage<'a> {
    /// AUTH_Negotiate.
    Negotiate(Negotiate),
    /// DH-HMAC-CHAP_Reply.
    Reply(Reply<'a>),
    /// DH-HMAC-CHAP_Success2: the controller has proven itself in this transaction.
    Success2(u16),
    /// AUTH_Failure2: it has not; the explanation.
    Failure2(u16, u8),
}

#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    kind: u8,
    id: u8,
    reserved: U16,
    transaction: U16,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct NegotiateHead {
    head: Head,
    secure_channel: u8,
    protocol_count: u8,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Protocol {
    id: u8,
    reserved: u8,
    hash_count: u8,
    group_count: u8,
    hashes: [u8; IDENTIFIERS_MAX],
    groups: [u8; IDENTIFIERS_MAX],
}

#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct ChallengeHead {
    head: Head,
    hash_bytes: u8,
    reserved: u8,
    hash: u8,
    group: u8,
    element_bytes: U16,
    sequence: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ReplyHead {
    head: Head,
    hash_bytes: u8,
    reserved: u8,
    has_challenge: u8,
    reserved_too: u8,
    element_bytes: U16,
    sequence: U32,
}

#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Success1Head {
    head: Head,
    hash_bytes: u8,
    reserved: u8,
    has_response: u8,
    reserved_too: [u8; 7],
}

#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct FailureBytes {
    head: Head,
    reason: u8,
    explanation: u8,
}

const _: () = assert!(size_of::<NegotiateHead>() == 8);
const _: () = assert!(size_of::<Protocol>() == 64);
const _: () = assert!(size_of::<ChallengeHead>() == 16);
const _: () = assert!(size_of::<ReplyHead>() == 16);
const _: () = assert!(size_of::<Success1Head>() == 16);
const _: () = assert!(size_of::<FailureBytes>() == 8);

/// Bytes that an Authentication Send brings, or that an Authentication Receive may return (section 6.1 and 6.2). `None`: a field of the command is wrong.
#[must_use]
pub fn length_of(command: &Command) -> Option<u32> {
    let is_ours = command.word(10) & PROTOCOL_MASK == PROTOCOL;
    let length = command.word(11);
    (is_ours && (1..=MESSAGE_BYTES_MAX).contains(&length)).then_some(length)
}

/// The message in `data`; what follows it is filling.
///
/// # Errors
/// [`Failure::Message`]: of a kind that hosts do not send; [`Failure::Payload`]: of wrong content.
pub fn parse(data: &[u8]) -> Result<HostMessage<'_>, Failure> {
    let (head, _) = Head::ref_from_prefix(data).map_err(|_| Failure::Payload)?;
    let transaction = head.transaction.get();
    match (head.kind, head.id) {
        message::NEGOTIATE => parse_negotiate(data).map(HostMessage::Negotiate),
        message::REPLY => parse_reply(data).map(HostMessage::Reply),
        message::SUCCESS2 => Ok(HostMessage::Success2(transaction)),
        message::FAILURE2 => {
            let (failure, _) = FailureBytes::ref_from_prefix(data).map_err(|_| Failure::Payload)?;
            Ok(HostMessage::Failure2(transaction, failure.explanation))
        }
        _ => Err(Failure::Message),
    }
}

fn parse_negotiate(data: &[u8]) -> Result<Negotiate, Failure> {
    let (head, rest) = NegotiateHead::ref_from_prefix(data).map_err(|_| Failure::Payload)?;
    let count = usize::from(head.protocol_count);
    let (protocols, _) = <[Protocol]>::ref_from_prefix_with_elems(rest, count).map_err(|_| Failure::Payload)?;
    let protocol = protocols.iter().find(|protocol| protocol.id == DH_HMAC_CHAP);
    let offer = protocol.map(|protocol| {
        let hashes = protocol.hashes.get(..usize::from(protocol.hash_count)).ok_or(Failure::Payload)?;
        let groups = protocol.groups.get(..usize::from(protocol.group_count)).ok_or(Failure::Payload)?;
        let hashes = hashes.iter().filter_map(|&id| Hash::of(id)).collect();
        Ok((hashes, groups.iter().filter_map(|&id| Group::of(id)).collect()))
    });
    Ok(Negotiate {
        transaction: head.head.transaction.get(),
        secure_channel: head.secure_channel,
        offer: offer.transpose()?,
    })
}

fn parse_reply(data: &[u8]) -> Result<Reply<'_>, Failure> {
    let (head, rest) = ReplyHead::ref_from_prefix(data).map_err(|_| Failure::Payload)?;
    let hash_bytes = usize::from(head.hash_bytes);
    let split = rest.split_at_checked(hash_bytes).and_then(|(response, rest)| {
        let (challenge, rest) = rest.split_at_checked(hash_bytes)?;
        Some((response, challenge, rest.get(..usize::from(head.element_bytes.get()))?))
    });
    let (response, challenge, element) = split.ok_or(Failure::Payload)?;
    let challenge = match head.has_challenge {
        0 => None,
        // A sequence number of zero: it is for a secure channel only.
        1 if head.sequence.get() != 0 => Some((challenge, head.sequence.get())),
        _ => return Err(Failure::Payload),
    };
    Ok(Reply { transaction: head.head.transaction.get(), response, challenge, element })
}

fn head((kind, id): (u8, u8), transaction: u16) -> Head {
    Head { kind, id, reserved: U16::ZERO, transaction: U16::new(transaction) }
}

fn small(bytes: usize) -> u8 {
    u8::try_from(bytes).expect("at most 64")
}

/// DH-HMAC-CHAP_Challenge: `challenge` is as long as what `hash` makes, `element` as the group's elements are.
#[must_use]
pub fn challenge(transaction: u16, (hash, challenge): (Hash, &[u8]), group: (Group, &[u8]), sequence: u32) -> Vec<u8> {
    let (group, element) = group;
    let unit = ChallengeHead {
        head: head(message::CHALLENGE, transaction),
        hash_bytes: small(challenge.len()),
        reserved: 0,
        hash: hash.id(),
        group: group.id(),
        element_bytes: U16::new(u16::try_from(element.len()).expect("at most 1024")),
        sequence: U32::new(sequence),
    };
    [unit.as_bytes(), challenge, element].concat()
}

/// DH-HMAC-CHAP_Success1, with the controller's response if the host has challenged it.
#[must_use]
pub fn success1(transaction: u16, hash: Hash, response: Option<&[u8]>) -> Vec<u8> {
    let unit = Success1Head {
        head: head(message::SUCCESS1, transaction),
        hash_bytes: small(hash.bytes()),
        reserved: 0,
        has_response: u8::from(response.is_some()),
        reserved_too: [0; 7],
    };
    [unit.as_bytes(), response.unwrap_or_default()].concat()
}

/// AUTH_Failure1.
#[must_use]
pub fn failure1(transaction: u16, failure: Failure) -> Vec<u8> {
    let head = head(message::FAILURE1, transaction);
    FailureBytes { head, reason: 1, explanation: failure.code() }.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(hashes: &[u8], groups: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 72];
        (bytes[4], bytes[5], bytes[7], bytes[8]) = (0x34, 0x12, 1, 1);
        (bytes[10], bytes[11]) = (small(hashes.len()), small(groups.len()));
        bytes[12..][..hashes.len()].copy_from_slice(hashes);
        bytes[42..][..groups.len()].copy_from_slice(groups);
        bytes
    }

    #[test]
    fn a_negotiation_is_read() {
        let bytes = negotiate(&[3, 9, 1], &[5, 0, 77]);
        let offer = Some((vec![Hash::Sha512, Hash::Sha256], vec![Group::Ffdhe8192, Group::Null]));
        let expected = Negotiate { transaction: 0x1234, secure_channel: 0, offer };
        assert_eq!(parse(&bytes), Ok(HostMessage::Negotiate(expected.clone())));
        assert_eq!(parse(&[&bytes[..], &[7; 9]].concat()), Ok(HostMessage::Negotiate(expected)));
        let mut other = bytes.clone();
        (other[6], other[8]) = (3, 2);
        let none = Negotiate { transaction: 0x1234, secure_channel: 3, offer: None };
        assert_eq!(parse(&other), Ok(HostMessage::Negotiate(none)));
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Err(Failure::Payload), "{length}");
        }
        for place in [10, 11] {
            let mut bad = bytes.clone();
            bad[place] = 31;
            assert_eq!(parse(&bad), Err(Failure::Payload));
        }
    }

    #[test]
    fn a_reply_is_read_with_and_without_a_challenge() {
        let mut bytes = vec![1, 2, 0, 0, 9, 0, 32, 0, 1, 0, 4, 0, 5, 0, 0, 0];
        bytes.extend([6; 32]);
        bytes.extend([7; 32]);
        bytes.extend([8; 4]);
        let expected = Reply { transaction: 9, response: &[6; 32], challenge: Some((&[7; 32], 5)), element: &[8; 4] };
        assert_eq!(parse(&bytes), Ok(HostMessage::Reply(expected)));
        for length in 6..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Err(Failure::Payload), "{length}");
        }
        let with = |place: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[place] = byte;
            bytes
        };
        assert_eq!(parse(&with(8, 0)), Ok(HostMessage::Reply(Reply { challenge: None, ..expected })));
        for (place, byte) in [(8, 2), (12, 0), (6, 64), (11, 1)] {
            assert_eq!(parse(&with(place, byte)), Err(Failure::Payload), "{place}");
        }
    }

    #[test]
    fn the_rest_is_short() {
        assert_eq!(parse(&[1, 4, 0, 0, 3, 1, 0, 0]), Ok(HostMessage::Success2(0x103)));
        assert_eq!(parse(&[0, 0xf0, 0, 0, 3, 0, 1, 6]), Ok(HostMessage::Failure2(3, 6)));
        assert_eq!(parse(&[0, 0xf0, 0, 0, 3, 0, 1]), Err(Failure::Payload));
        for (kind, id) in [(0, 0xf1), (1, 1), (1, 3), (2, 0), (1, 0)] {
            assert_eq!(parse(&[kind, id, 0, 0, 3, 0, 1, 6]), Err(Failure::Message));
        }
    }

    #[test]
    fn what_is_written_lies_where_the_specification_says() {
        let bytes = challenge(0x1234, (Hash::Sha384, &[7; 48]), (Group::Ffdhe2048, &[8; 256]), 0x0102_0304);
        assert_eq!(bytes[..16], [1, 1, 0, 0, 0x34, 0x12, 48, 0, 2, 1, 0, 1, 4, 3, 2, 1]);
        assert_eq!((bytes.len(), bytes[63], bytes[64]), (16 + 48 + 256, 7, 8));
        let bytes = success1(5, Hash::Sha256, Some(&[9; 32]));
        assert_eq!(bytes[..17], [1, 3, 0, 0, 5, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(success1(5, Hash::Sha256, None), [1, 3, 0, 0, 5, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(failure1(5, Failure::NoGroup), [0, 0xf1, 0, 0, 5, 0, 1, 5]);
    }

    #[test]
    fn the_commands_name_the_protocol_and_a_length() {
        let command = |bytes: &[(usize, u8)]| {
            let mut entry = [0; 64];
            (entry[0], entry[4], entry[41], entry[42], entry[43], entry[44]) = (0x7f, 5, 1, 1, 0xe9, 16);
            bytes.iter().for_each(|&(at, byte)| entry[at] = byte);
            length_of(&Command::parse(&entry))
        };
        assert_eq!((command(&[]), command(&[(44, 0), (45, 0x10)])), (Some(16), Some(4096)));
        for bad in [(41, 0), (42, 2), (43, 0xe8), (44, 0), (46, 1)] {
            assert_eq!(command(&[bad]), None, "{bad:?}");
        }
        assert_eq!(command(&[(45, 0x10)]), None, "4112 bytes");
    }
}
