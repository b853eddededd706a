//! The discovery log: which subsystem there is, and by which addresses.

use std::io::{Read, Write};

use super::{
    auth::keys::Keys,
    controller::{DISCOVERY, Parties, connect_admin},
    goal::{Host, PATHS_LIMIT},
    link::{Link, LinkError, Reply},
    wire::{Command, WireError, opcode, u64_at},
};
use crate::target::Address;

/// The most entries that are read.
const ENTRIES_LIMIT: u64 = 64;
const LOG_DISCOVERY: u32 = 0x70;
const ENTRY_BYTES: u32 = 1024;

/// A subsystem, and the addresses at which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) subsystem: String,
    pub(crate) addresses: Vec<Address>,
}

/// Asks a discovery service, at the other end of `stream`, for the one subsystem that it knows. It may demand that the host authenticates itself.
pub(crate) fn discover<S: Read + Write>(stream: S, host: &Host, keys: Option<&Keys>) -> Result<Found, LinkError> {
    let mut admin = Link::open(stream, (false, false))?;
    connect_admin(&mut admin, Parties { host, subsystem: DISCOVERY, keys }, 0)?;
    let head = read(&mut admin, 0)?;
    let count = u64_at(&head, 8);
    if count > ENTRIES_LIMIT {
        return Err(LinkError::Refused(format!("the discovery log has {count} entries: name the subsystem")));
    }
    let mut found: Vec<Found> = Vec::new();
    for number in 1..=count {
        let entry = read(&mut admin, number * u64::from(ENTRY_BYTES))?;
        let Some((subsystem, address)) = entry_of(&entry)? else { continue };
        match found.iter_mut().find(|other| other.subsystem == subsystem) {
            Some(known) if known.addresses.contains(&address) || known.addresses.len() >= PATHS_LIMIT => {}
            Some(known) => known.addresses.push(address),
            None => found.push(Found { subsystem, addresses: vec![address] }),
        }
    }
    match found.len() {
        0 => Err(LinkError::Refused("the discovery log names no subsystem over TCP".to_owned())),
        1 => Ok(found.remove(0)),
        _ => {
            let names: Vec<&str> = found.iter().map(|found| found.subsystem.as_str()).collect();
            Err(LinkError::Refused(format!("there are several subsystems: name one, of {}", names.join(", "))))
        }
    }
}

/// [`ENTRY_BYTES`] of the log from byte `offset`.
fn read<S: Read + Write>(admin: &mut Link<S>, offset: u64) -> Result<Vec<u8>, LinkError> {
    let mut command = Command::new(opcode::GET_LOG_PAGE, 0);
    command.words[0] = LOG_DISCOVERY | (ENTRY_BYTES / 4 - 1) << 16;
    command.words[2] = u32::try_from(offset).expect("a short log");
    let Reply { answer, data } = admin.call(command, ENTRY_BYTES, &[])?;
    if !answer.status.is_success() {
        return Err(LinkError::Refused(format!("the target does not tell its discovery log: {}", answer.status)));
    }
    match u32::try_from(data.len()) == Ok(ENTRY_BYTES) {
        true => Ok(data),
        false => Err(WireError(format!("{} bytes of the discovery log", data.len())).into()),
    }
}

/// The subsystem and the address of an entry (base, section 5.16.1.23), if it is an NVM subsystem over TCP.
fn entry_of(entry: &[u8]) -> Result<Option<(String, Address)>, LinkError> {
    let is_tcp = entry[0] == 3 && matches!(entry[1], 1 | 2);
    if !is_tcp || entry[2] != 2 {
        return Ok(None);
    }
    let (service, name, address) = (text(&entry[32..64])?, text(&entry[256..512])?, text(&entry[512..768])?);
    let port = service.parse().map_err(|_| WireError(format!("`{}` is not a port", service.escape_debug())))?;
    if !name.starts_with("nqn.") || name.len() > 223 || address.is_empty() {
        return Err(WireError("a discovery log entry without a name or an address".to_owned()).into());
    }
    Ok(Some((name, Address::Tcp(address, port))))
}

/// A field of text that ends with a zero byte or with spaces.
fn text(field: &[u8]) -> Result<String, WireError> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]).ok().map(str::trim_end);
    let good = text.filter(|text| !text.contains(char::is_control));
    good.map(str::to_owned).ok_or_else(|| WireError("text that is none".to_owned()))
}
