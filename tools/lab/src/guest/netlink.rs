//! The kernel's nbd driver through generic netlink (linux/nbd-netlink.h).
//!
//! This is the only way to tell it how long a device may be without a connection, and to give it a new one: the ioctls of the `nbd-client`
//! program in Debian 12 know neither. Messages are in the machine's own byte order, which is little-endian wherever Twinlog runs.

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

/// Generic netlink's own family, which knows the others' numbers.
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const CONNECT: u8 = 1;
const RECONFIGURE: u8 = 3;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONNECTION_TIMEOUT: u16 = 8;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

const NESTED: u16 = 0x8000;
const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
const ERROR: u16 = 2;
/// Of a message, and of a generic message's own.
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;
/// Larger than any reply here.
const REPLY_BYTES_MAX: usize = 8192;

/// A connection to the driver.
pub(super) struct Driver {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

/// How a device is attached.
pub(super) struct Attachment<'a> {
    pub(super) index: u32,
    pub(super) size_bytes: u64,
    /// Transmission flags of the server.
    pub(super) flags: u16,
    /// A request that is not answered for so long is sent again, over another connection or over a new one.
    pub(super) timeout_s: u64,
    /// So long requests wait for a new connection when there is none.
    pub(super) dead_timeout_s: u64,
    pub(super) sockets: &'a [BorrowedFd<'a>],
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 4).expect("attributes are short");
    let mut bytes = [&length.to_le_bytes()[..], &kind.to_le_bytes(), content].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn sockets(sockets: &[BorrowedFd<'_>]) -> Vec<u8> {
    let item = |socket: &BorrowedFd<'_>| {
        attribute(SOCKET_ITEM | NESTED, &attribute(SOCKET_FD, &socket.as_raw_fd().to_le_bytes()))
    };
    attribute(SOCKETS | NESTED, &sockets.iter().map(item).collect::<Vec<_>>().concat())
}

/// The content of one attribute among several.
fn find(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, rest @ ..] = bytes {
        let length = usize::from(u16::from_le_bytes([*a, *b])).checked_sub(4)?;
        if u16::from_le_bytes([*c, *d]) == wanted {
            return rest.get(..length);
        }
        bytes = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

impl Driver {
    pub(super) fn open() -> Result<Self> {
        let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric);
        let socket = socket(kind.0, kind.1, kind.2, kind.3).context("opening a netlink socket")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("binding a netlink socket")?;
        let mut driver = Self { socket, family: CONTROLLER, sequence: 0 };
        let reply = driver.call(GET_FAMILY, &attribute(FAMILY_NAME, b"nbd\0")).context("is the module nbd loaded?")?;
        let family = find(&reply, FAMILY_ID).and_then(|bytes| bytes.try_into().ok());
        driver.family = u16::from_le_bytes(family.context("the kernel names no family")?);
        Ok(driver)
    }

    /// Attaches a device.
    pub(super) fn connect(&mut self, to: &Attachment<'_>) -> Result<()> {
        let long = |kind, value: u64| attribute(kind, &value.to_le_bytes());
        let attributes = [
            attribute(INDEX, &to.index.to_le_bytes()),
            long(SIZE_BYTES, to.size_bytes),
            long(BLOCK_SIZE_BYTES, 512),
            long(SERVER_FLAGS, to.flags.into()),
            long(TIMEOUT, to.timeout_s),
            long(DEAD_CONNECTION_TIMEOUT, to.dead_timeout_s),
            sockets(to.sockets),
        ];
        self.call(CONNECT, &attributes.concat()).context("attaching the device")?;
        Ok(())
    }

    /// Puts a new connection in the place of a dead one.
    pub(super) fn replace(&mut self, index: u32, socket: BorrowedFd<'_>) -> Result<()> {
        let attributes = [attribute(INDEX, &index.to_le_bytes()), sockets(&[socket])];
        self.call(RECONFIGURE, &attributes.concat()).context("replacing a connection")?;
        Ok(())
    }

    /// Sends a command and returns the attributes of its reply, if it has one.
    fn call(&mut self, command: u8, attributes: &[u8]) -> Result<Vec<u8>> {
        self.sequence += 1;
        let length = u32::try_from(HEADER_BYTES + GENERIC_BYTES + attributes.len()).context("a long message")?;
        let mut message = Vec::new();
        message.extend(length.to_le_bytes());
        message.extend(self.family.to_le_bytes());
        message.extend(REQUEST_AND_ACKNOWLEDGE.to_le_bytes());
        message.extend(self.sequence.to_le_bytes());
        message.extend([0; 4]);
        message.extend([command, 1, 0, 0]);
        message.extend(attributes);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty()).context("sending to the kernel")?;
        let mut found = Vec::new();
        loop {
            let mut bytes = vec![0; REPLY_BYTES_MAX];
            let count = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()).context("the kernel's reply")?;
            let mut rest = &bytes[..count];
            while let Some(header) = rest.first_chunk::<HEADER_BYTES>() {
                let [l0, l1, l2, l3, k0, k1, ..] = *header;
                let length = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).context("a long reply")?;
                let body = rest.get(HEADER_BYTES..length).context("a reply that is cut off")?;
                if u16::from_le_bytes([k0, k1]) == ERROR {
                    return match body.first_chunk::<4>().map(|error| i32::from_le_bytes(*error)) {
                        Some(0) => Ok(found),
                        Some(error) => bail!(std::io::Error::from_raw_os_error(-error)),
                        None => bail!("a reply that is cut off"),
                    };
                }
                found = body.get(GENERIC_BYTES..).unwrap_or_default().to_vec();
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found() {
        let bytes = [attribute(FAMILY_NAME, b"nbd\0x"), attribute(FAMILY_ID, &[0x1c, 0])].concat();
        assert_eq!(bytes, [9, 0, 2, 0, b'n', b'b', b'd', 0, b'x', 0, 0, 0, 6, 0, 1, 0, 0x1c, 0, 0, 0]);
        assert_eq!(find(&bytes, FAMILY_ID), Some(&[0x1c, 0][..]));
        assert_eq!(find(&bytes, 7), None);
        assert_eq!(find(&[9, 0, 2, 0, 1], FAMILY_NAME), None, "cut off");
        assert_eq!(find(&[1, 0, 2, 0], FAMILY_NAME), None, "shorter than its own header");
    }

    #[test]
    fn the_kernel_knows_its_own_controller_and_no_other_family() {
        // The controller is in every kernel; asking it for a family that is not there shows the way of an error.
        let error = match Driver::open() {
            Ok(_) => return, // this machine has the module
            Err(error) => format!("{error:#}"),
        };
        assert!(error.contains("module nbd"), "{error}");
    }
}
