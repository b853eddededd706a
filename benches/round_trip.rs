//! The floor under mirroring: 4 KiB one way and 64 bytes back between two processes, as a record and its acknowledgement go, with nothing else
//! around them. `tools/bench/pair.py` runs both ends, each on its own core.
//!
//! ```text
//! round_trip serve ADDRESS [--spin]               answers until the other end leaves
//! round_trip measure ADDRESS SECONDS [--spin]     prints the round trip in microseconds: median, and its 99th percentile
//! ```
//!
//! An address is that of a TCP port, or the path of a Unix socket. An end sleeps in the kernel until its bytes are there; with `--spin` it asks
//! again and again, as a node does that has work.

#![expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::{
    error::Error,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

const RECORD_BYTES: usize = 4096;
const ACKNOWLEDGEMENT_BYTES: usize = 64;
/// Round trips before those that count.
const WARMUP: Duration = Duration::from_millis(300);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let spins = words.iter().any(|word| word == "--spin");
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address, ..] => serve(address, spins),
        ["measure", address, seconds, ..] => measure(address, Duration::from_secs_f64(seconds.parse()?), spins),
        _ => {
            println!("round_trip serve ADDRESS [--spin], then round_trip measure ADDRESS SECONDS [--spin]");
            Ok(())
        }
    }
}

fn over_tcp(stream: TcpStream, spins: bool) -> Result<Box<dyn Stream>> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(spins)?;
    Ok(Box::new(stream))
}

fn over_unix(stream: UnixStream, spins: bool) -> Result<Box<dyn Stream>> {
    stream.set_nonblocking(spins)?;
    Ok(Box::new(stream))
}

fn serve(address: &str, spins: bool) -> Result<()> {
    let mut stream = if address.starts_with('/') {
        over_unix(UnixListener::bind(address)?.accept()?.0, spins)?
    } else {
        over_tcp(TcpListener::bind(address)?.accept()?.0, spins)?
    };
    let mut record = [0; RECORD_BYTES];
    while receive(&mut *stream, &mut record)? {
        send(&mut *stream, &[0; ACKNOWLEDGEMENT_BYTES])?;
    }
    Ok(())
}

fn measure(address: &str, time: Duration, spins: bool) -> Result<()> {
    let mut stream = if address.starts_with('/') {
        over_unix(UnixStream::connect(address)?, spins)?
    } else {
        over_tcp(TcpStream::connect(address)?, spins)?
    };
    let mut trips_ns = Vec::new();
    let start = Instant::now();
    while start.elapsed() < WARMUP + time {
        let sent = Instant::now();
        send(&mut *stream, &[0; RECORD_BYTES])?;
        if !receive(&mut *stream, &mut [0; ACKNOWLEDGEMENT_BYTES])? {
            return Err("the other end has left".into());
        }
        if start.elapsed() >= WARMUP {
            trips_ns.push(sent.elapsed().as_nanos());
        }
    }
    trips_ns.sort_unstable();
    let part = |percent| trips_ns.get(trips_ns.len() * percent / 100).copied().unwrap_or_default();
    println!("{:.3} {:.3}", part(50) as f64 / 1e3, part(99) as f64 / 1e3);
    Ok(())
}

/// Reads exactly `bytes`; false where the other end has left instead.
fn receive(stream: &mut dyn Stream, bytes: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn send(stream: &mut dyn Stream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
