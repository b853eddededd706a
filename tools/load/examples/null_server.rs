//! An NBD server that does nothing, as fast as that goes: it shows where the load tool's own limit lies.
//!
//! ```text
//! cargo run --release -p twinlog-load --example null_server -- /tmp/null.sock &
//! twinlog-load 'nbd+unix:///?socket=/tmp/null.sock'
//! ```
//!
//! One thread, one connection after the other; reads give zeroes, writes are dropped. It trusts its client and is for loopback only.

use std::{
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
};

const REQUEST_BYTES: usize = 28;
const EXPORT_BYTES: u64 = 1 << 40;
const BUFFER_BYTES: usize = 1 << 20;

fn main() -> io::Result<()> {
    let socket = std::env::args().nth(1).ok_or_else(|| io::Error::other("usage: null_server SOCKET"))?;
    for stream in UnixListener::bind(socket)?.incoming() {
        if let Err(error) = serve(stream?) {
            eprintln!("connection ended: {error}");
        }
    }
    Ok(())
}

fn serve(mut stream: UnixStream) -> io::Result<()> {
    negotiate(&mut stream)?;
    let mut received = vec![0; BUFFER_BYTES];
    let mut replies = Vec::with_capacity(BUFFER_BYTES);
    let (mut tail, mut skip) = (0, 0_usize);
    loop {
        let count = stream.read(&mut received[tail..])?;
        if count == 0 {
            return Ok(());
        }
        tail += count;
        let mut head = 0;
        loop {
            let skipped = skip.min(tail - head);
            head += skipped;
            skip -= skipped;
            let Some(request) = received[head..tail].first_chunk::<REQUEST_BYTES>().filter(|_| skip == 0) else {
                break;
            };
            head += REQUEST_BYTES;
            match answer(request, &mut replies) {
                Some(payload) => skip = payload,
                None => return Ok(()),
            }
        }
        received.copy_within(head..tail, 0);
        tail -= head;
        stream.write_all(&replies)?;
        replies.clear();
    }
}

/// Appends the reply to one request; gives the bytes of payload that follow it, or nothing when the client goes.
fn answer(request: &[u8; REQUEST_BYTES], replies: &mut Vec<u8>) -> Option<usize> {
    let length = u32::from_be_bytes(std::array::from_fn(|byte| request[24 + byte]));
    let length = usize::try_from(length).expect("64-bit platforms only");
    let kind = request[7];
    if kind == 2 {
        return None;
    }
    replies.extend([0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
    replies.extend(&request[8..16]);
    if kind == 0 {
        replies.resize(replies.len() + length, 0);
    }
    Some(if kind == 1 { length } else { 0 })
}

/// Opens the one export there is, whatever its name.
fn negotiate(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    // The client's flags, the option's magic, number and length, of which the last byte counts.
    let mut option = [0; 20];
    stream.read_exact(&mut option)?;
    stream.read_exact(&mut vec![0; usize::from(option[19])])?;
    let reply = |kind: u8, length: u8| {
        [b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0".as_slice(), &[kind, 0, 0, 0, length]].concat()
    };
    // Size, and flags: HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES.
    let export = [[0, 0].as_slice(), &EXPORT_BYTES.to_be_bytes(), &[0, 1 | 4 | 8 | 32 | 64]].concat();
    stream.write_all(&[reply(3, 12), export, reply(1, 0)].concat())
}
