//! In-band authentication as a host does it, DH-HMAC-CHAP (base 2.0, section 8.13.5): before a queue is of any use the host shows that it knows its secret, and
//! the controller, if the host wants to know, that it knows its own.
//!
//! ```text
//! keys        what the host knows, and where it draws lots
//! message     bytes <-> messages; pure
//! exchange    what is answered to what
//! ```
//!
//! What both ends compute is in `twinlog_chap`, which the target uses too.

pub(crate) mod exchange;
pub(crate) mod keys;
mod message;
#[cfg(test)]
mod tests;

use std::io::{Read, Write};

use super::{
    controller::{DISCOVERY, Parties},
    link::{Link, LinkError, Reply},
    wire::{Command, WireError, opcode},
};
use exchange::{Exchange, Fault};
use message::MESSAGE_BYTES;

/// Bits of a Connect's result (AUTHREQ; base, section 6.3): the host has to authenticate itself (ATR), and a secure channel has to follow (ASCR).
const AUTHENTICATION: u64 = 1 << 17;
const SECURE_CHANNEL: u64 = 1 << 18;

/// Types of fabrics commands (base, sections 6.1 and 6.2).
const SEND: u32 = 0x05;
const RECEIVE: u32 = 0x06;
/// Dword 10 of both: NVMe's security protocol, and its specific fields (base, section 8.13.2).
const PROTOCOL: u32 = 0xe901_0100;

/// Does what `result`, that of a queue's Connect, demands.
///
/// # Errors
/// The target lets the host in only with what it does not have, does not believe it, or is not believed.
pub(super) fn satisfy<S: Read + Write>(link: &mut Link<S>, parties: Parties<'_>, result: u64) -> Result<(), LinkError> {
    let refused = |what: &str| Err(LinkError::Refused(what.to_owned()));
    if result & SECURE_CHANNEL != 0 {
        return refused("the target demands a secure channel (TLS), which is not supported");
    }
    match parties.keys {
        Some(keys) if result & AUTHENTICATION != 0 => authenticate(link, &Exchange::new(parties, keys)?),
        None if result & AUTHENTICATION != 0 => {
            refused("the target demands authentication: give --secret-file FILE, with this host's secret in it")
        }
        // Discovery says where others are, and proves nothing.
        Some(keys) if keys.controller_secret.is_some() && parties.subsystem != DISCOVERY => refused(
            "the target demands no authentication, so nothing shows that it knows the secret in --controller-secret-file",
        ),
        _ => Ok(()),
    }
}

fn authenticate<S: Read + Write>(link: &mut Link<S>, exchange: &Exchange<'_>) -> Result<(), LinkError> {
    send(link, &exchange.negotiate())?;
    let challenge = fetch(link)?;
    let proof = settle(link, exchange, exchange.prove(&challenge))?;
    send(link, &proof.reply)?;
    let success = fetch(link)?;
    match settle(link, exchange, exchange.conclude(&proof, &success))? {
        Some(last) => send(link, &last),
        None => Ok(()),
    }
}

/// Tells the target of a fault that it does not know of yet.
fn settle<S: Read + Write, T>(
    link: &mut Link<S>,
    exchange: &Exchange<'_>,
    result: Result<T, Fault>,
) -> Result<T, LinkError> {
    let fault = match result {
        Ok(value) => return Ok(value),
        Err(fault) => fault,
    };
    if let Some(message) = exchange.farewell(&fault) {
        // The connection ends, whatever the target says to it.
        let _ = send(link, &message);
    }
    Err(match fault {
        Fault::Wrong(_, what) => WireError(what).into(),
        fault => LinkError::Refused(fault.to_string()),
    })
}

/// Authentication Send.
fn send<S: Read + Write>(link: &mut Link<S>, message: &[u8]) -> Result<(), LinkError> {
    let mut command = Command::new(opcode::FABRICS, SEND);
    command.words[..2].copy_from_slice(&[PROTOCOL, u32::try_from(message.len()).expect("a few bytes")]);
    let Reply { answer, .. } = link.call(command, 0, message)?;
    match answer.status.is_success() {
        true => Ok(()),
        false => {
            Err(LinkError::Refused(format!("the target does not take a message that authenticates: {}", answer.status)))
        }
    }
}

/// Authentication Receive: a message, and what it is filled up with.
fn fetch<S: Read + Write>(link: &mut Link<S>) -> Result<Vec<u8>, LinkError> {
    let mut command = Command::new(opcode::FABRICS, RECEIVE);
    command.words[..2].copy_from_slice(&[PROTOCOL, MESSAGE_BYTES]);
    let Reply { answer, data } = link.call(command, MESSAGE_BYTES, &[])?;
    match answer.status.is_success() {
        true => Ok(data),
        false => Err(LinkError::Refused(format!("the target gives no message that authenticates: {}", answer.status))),
    }
}
