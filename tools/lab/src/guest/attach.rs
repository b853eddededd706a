//! Attaches an NBD export to the kernel and keeps it attached: a connection that breaks is replaced.
//!
//! While there is no connection, requests wait in the kernel; what was sent and not answered is sent again. So a file system lives through
//! the death and return of its server.

use super::netlink::{Attachment, Driver};
use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

/// Seconds after which the kernel sends an unanswered request again. Emulation is slow, so it is not short.
const TIMEOUT_S: u64 = 6;
/// Seconds for which requests wait for a connection, and this program tries to make one.
const DEAD_TIMEOUT_S: u64 = 120;
const RETRY: Duration = Duration::from_millis(100);
/// A server that is silent for so long while a connection is made is not there.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

const OPTION_GO: u32 = 7;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REPLY_DONE: u32 = 1;
const REPLY_INFO: u32 = 3;
/// An option's reply is short; a longer one is not NBD.
const REPLY_BYTES_MAX: u32 = 4096;

/// A connection in the transmission phase, and what the server says of the export.
struct Connection {
    stream: TcpStream,
    size_bytes: u64,
    flags: u16,
}

fn take<const N: usize>(stream: &mut TcpStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn connect(address: &str, export: &str) -> Result<Connection> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HANDSHAKE_PATIENCE))?;
    if take::<18>(&mut stream)?[..16] != *b"NBDMAGICIHAVEOPT" {
        bail!("{address} does not speak NBD");
    }
    let name = export.as_bytes();
    let name_bytes = u32::try_from(name.len())?;
    let mut message = vec![0, 0, 0, 3];
    message.extend(b"IHAVEOPT");
    message.extend(OPTION_GO.to_be_bytes());
    message.extend((name_bytes + 6).to_be_bytes());
    message.extend(name_bytes.to_be_bytes());
    message.extend(name);
    message.extend([0, 0]);
    stream.write_all(&message)?;
    let (mut size_bytes, mut flags) = (0, 0);
    loop {
        let magic = u64::from_be_bytes(take(&mut stream)?);
        let [_, kind, length] = [take(&mut stream)?, take(&mut stream)?, take(&mut stream)?].map(u32::from_be_bytes);
        if magic != REPLY_MAGIC || length > REPLY_BYTES_MAX {
            bail!("{address} does not speak NBD");
        }
        let mut body = vec![0; usize::try_from(length)?];
        stream.read_exact(&mut body)?;
        match (kind, body.as_slice()) {
            (REPLY_DONE, _) => break,
            // Information of kind 0: the export itself.
            (REPLY_INFO, [0, 0, size @ .., high, low]) if size.len() == 8 => {
                size_bytes = u64::from_be_bytes(size.try_into()?);
                flags = u16::from_be_bytes([*high, *low]);
            }
            (REPLY_INFO, _) => {}
            _ => bail!("{address} has no export {export:?}"),
        }
    }
    stream.set_read_timeout(None)?;
    Ok(Connection { stream, size_bytes, flags })
}

/// Tries until there is a connection.
fn connect_again(address: &str, export: &str) -> Result<Connection> {
    let start = Instant::now();
    loop {
        match connect(address, export) {
            Ok(connection) => return Ok(connection),
            Err(error) if start.elapsed().as_secs() > DEAD_TIMEOUT_S => {
                return Err(error.context(format!("no connection to {address} for {DEAD_TIMEOUT_S} s")));
            }
            Err(_) => thread::sleep(RETRY),
        }
    }
}

/// Attaches and stays, until it is killed or cannot reach the server for too long. The device outlives this program.
pub(super) fn run(address: &str, export: &str, index: u32, connection_count: usize) -> Result<()> {
    let mut driver = Driver::open()?;
    let connections: Result<Vec<Connection>> = (0..connection_count).map(|_| connect(address, export)).collect();
    let connections = connections.with_context(|| format!("connecting to {address}"))?;
    let first = connections.first().context("at least one connection")?;
    let (size_bytes, flags) = (first.size_bytes, first.flags);
    let mut streams: Vec<TcpStream> = connections.into_iter().map(|connection| connection.stream).collect();
    let sockets: Vec<_> = streams.iter().map(|stream| stream.as_fd()).collect();
    let (timeout_s, dead_timeout_s) = (TIMEOUT_S, DEAD_TIMEOUT_S);
    driver.connect(&Attachment { index, size_bytes, flags, timeout_s, dead_timeout_s, sockets: &sockets })?;
    println!("attached /dev/nbd{index}, {size_bytes} bytes, {connection_count} connections");
    loop {
        let dead = wait_for_hangup(&streams)?;
        let connection = connect_again(address, export)?;
        if connection.size_bytes != size_bytes {
            bail!("the export has {} bytes now, not {size_bytes}", connection.size_bytes);
        }
        // The kernel may notice later than this program that the old one is dead; until then it has no place for another.
        let start = Instant::now();
        while let Err(error) = driver.replace(index, connection.stream.as_fd()) {
            if start.elapsed().as_secs() > DEAD_TIMEOUT_S {
                return Err(error);
            }
            thread::sleep(RETRY);
        }
        streams[dead] = connection.stream;
        println!("connection {dead} replaced");
    }
}

/// Which connection is dead. The kernel shuts a socket down when it finds it broken, which this end sees too.
fn wait_for_hangup(streams: &[TcpStream]) -> Result<usize> {
    loop {
        let mut polled: Vec<PollFd<'_>> =
            streams.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::empty())).collect();
        poll(&mut polled, PollTimeout::NONE).context("waiting for a connection's end")?;
        let is_dead = |polled: &PollFd<'_>| polled.revents().is_some_and(|events| !events.is_empty());
        if let Some(dead) = polled.iter().position(is_dead) {
            return Ok(dead);
        }
    }
}
