//! The witness: keeps the registers of many pairs, and their nodes' beats, for nodes that connect to it.
//!
//! ```text
//! DIR/lock           held by the witness
//! DIR/NAME.key       the key of a pair, as its nodes have it; put there by a person
//! DIR/NAME.mailbox   that pair's registers and beats, as nodes that share a disk would keep them; made when a node of it first connects
//! ```
//!
//! # Invariants
//!
//! 1. A register is changed in the mailbox file, by comparison, one change at a time; it is durable before it is answered. A crash at any moment leaves what
//!    [`twinlog::format::register`] says. The witness keeps nothing else that matters: it may be killed and started again at any time.
//! 2. A node's beat is written before its partner's is read, and no other beat of the pair is in between. One that fences is durable before it is answered.
//! 3. Connections are bounded, those that have not shown that they know a key more tightly, and for a short time only. Whoever knows no key gets no answer.

use super::{mailbox_file::MailboxFile, pair::key, registers::now, witness_client::nonce};
use crate::cli::{
    layout::{ProcessLock, make_directory},
    output::{Exit, Failure},
    provision,
};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::Builder,
    time::Duration,
};
use twinlog::{
    base::{Incarnation, PairId},
    format::register::{Beat, NodeIndex, Register},
    pair::{
        arbiter::SwapOutcome,
        auth::PairKey,
        witness::{Answer, BeatRequest, HELLO_BYTES, Hello, PartnerBeat, REQUEST_BYTES, Request, Session},
    },
};

/// Pairs of one witness.
const PAIRS_MAX: usize = 64;
/// Connections of one witness: two nodes of each pair, and as many again that a node has lost and the witness does not know of yet.
const CONNECTIONS_MAX: usize = 4 * PAIRS_MAX;
/// Connections that have not shown that they know a key.
const STRANGERS_MAX: usize = 16;
/// Time that a connection has to show it.
const HELLO_WAIT_MAX: Duration = Duration::from_secs(5);
/// A node beats every quarter of its detection time, which is a minute at most.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A pair, as the witness knows it.
struct Pair {
    name: String,
    key: PairKey,
    mailbox: PathBuf,
    /// Open since a node of it first came.
    file: Mutex<Option<MailboxFile>>,
}

/// What all connections share.
struct Witness {
    pairs: BTreeMap<PairId, Pair>,
    connections: AtomicUsize,
    strangers: AtomicUsize,
}

/// A place among a bounded number; given back when dropped.
struct Seat<'a>(&'a AtomicUsize);

impl<'a> Seat<'a> {
    fn take(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        let seat = Self(count);
        // The seat of one that is too many is given back at once.
        (count.fetch_add(1, Ordering::AcqRel) < max).then_some(seat)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A witness that listens.
pub(crate) struct RunningWitness {
    pub(crate) address: SocketAddr,
    pub(crate) pairs: Vec<String>,
    _lock: ProcessLock,
}

/// Serves the pairs whose keys are in `directory`, on threads of its own, until the process ends.
pub(crate) fn serve(listen: SocketAddr, directory: &Path) -> Result<RunningWitness, Failure> {
    make_directory(directory)?;
    let lock = ProcessLock::acquire(&directory.join("lock"), "a witness of this directory")?;
    let pairs = pairs(directory)?;
    let names = pairs.values().map(|pair| pair.name.clone()).collect();
    let failed = |error: &io::Error| Failure::system("listen at", listen, error);
    let listener = TcpListener::bind(listen).map_err(|error| failed(&error))?;
    let address = listener.local_addr().map_err(|error| failed(&error))?;
    let witness = Witness { pairs, connections: AtomicUsize::new(0), strangers: AtomicUsize::new(0) };
    let witness = Arc::new(witness);
    let accept = move || {
        for stream in listener.incoming().flatten() {
            let witness = Arc::clone(&witness);
            // Without a thread the connection ends; the node tries again.
            let _thread = Builder::new().name("connection".to_owned()).spawn(move || witness.accompany(stream));
        }
    };
    Builder::new().name("listener".to_owned()).spawn(accept).map_err(|error| failed(&error))?;
    Ok(RunningWitness { address, pairs: names, _lock: lock })
}

/// The pairs of a directory, by the ids of their keys.
fn pairs(directory: &Path) -> Result<BTreeMap<PairId, Pair>, Failure> {
    let failed = |error: &io::Error| Failure::system("read", directory.display(), error);
    let mut pairs = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(|error| failed(&error))? {
        let path = entry.map_err(|error| failed(&error))?.path();
        if path.extension().is_none_or(|extension| extension != "key") {
            continue;
        }
        let (key, mailbox) = (key(&path)?, path.with_extension("mailbox"));
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(other) = pairs.insert(key.id(), Pair { name, key, mailbox, file: Mutex::new(None) }) {
            let message = format!("{} holds the same key as that of pair {}", path.display(), other.name);
            return Err(Failure::new(Exit::Usage, message, "each pair has a key of its own: openssl rand -hex 32"));
        }
    }
    if pairs.is_empty() || pairs.len() > PAIRS_MAX {
        let message = format!("{} holds {} keys; 1 to {PAIRS_MAX} are possible", directory.display(), pairs.len());
        return Err(Failure::new(Exit::Usage, message, "copy the pair's key file to DIR/NAME.key"));
    }
    Ok(pairs)
}

impl Witness {
    /// Serves one connection until it ends.
    fn accompany(&self, stream: TcpStream) {
        let Some(_seat) = Seat::take(&self.connections, CONNECTIONS_MAX) else { return };
        let peer = stream.peer_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string());
        if let Err(error) = self.serve(stream, &peer) {
            tracing::info!(peer, %error, "a connection has ended");
        }
    }

    fn serve(&self, mut stream: TcpStream, peer: &str) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HELLO_WAIT_MAX))?;
        stream.set_write_timeout(Some(HELLO_WAIT_MAX))?;
        let (pair, hello) = {
            let Some(_seat) = Seat::take(&self.strangers, STRANGERS_MAX) else { return Ok(()) };
            let mut bytes = [0; HELLO_BYTES];
            read_all(&mut stream, &mut bytes, HELLO_WAIT_MAX)?;
            let id = Hello::key_id(&bytes).map_err(io::Error::other)?;
            let pair = self.pairs.get(&id).ok_or_else(|| io::Error::other("it names a key that is not known here"))?;
            (pair, Hello::verify(&bytes, &pair.key).map_err(io::Error::other)?)
        };
        let refusal = pair.admit(&hello).err().map(|error| error.to_string());
        let (mut session, welcome) = Session::welcome(&pair.key, &hello, nonce()?, refusal.as_deref());
        stream.write_all(&welcome)?;
        if let Some(refusal) = refusal {
            return Err(io::Error::other(format!("refused: {refusal}")));
        }
        tracing::info!(pair = pair.name, node = hello.name, peer, "a node is there");
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        loop {
            let mut bytes = [0; REQUEST_BYTES];
            read_all(&mut stream, &mut bytes, SILENCE_MAX)?;
            let request = session.asked(&bytes).map_err(io::Error::other)?;
            let answer = pair.perform(&hello, request);
            stream.write_all(&session.answer(&answer))?;
        }
    }
}

/// Reads a whole message in a bounded time, however slowly its bytes come.
fn read_all(stream: &mut TcpStream, mut bytes: &mut [u8], limit: Duration) -> io::Result<()> {
    let since = now();
    while !bytes.is_empty() {
        let count = match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        bytes = &mut bytes[count..];
        if since.elapsed() > limit {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

impl Pair {
    /// Whether a node belongs to the pair; the first one that comes says who the two are.
    fn admit(&self, hello: &Hello) -> io::Result<()> {
        let mut place = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *place {
            Some(file) => file,
            None => {
                if !self.mailbox.exists() {
                    let made = provision::make_mailbox(&self.mailbox, [&hello.name, &hello.partner]);
                    made.map_err(|failure| io::Error::other(failure.message))?;
                }
                place.insert(MailboxFile::open(&self.mailbox)?)
            }
        };
        let mut names = [hello.name.as_str(), hello.partner.as_str()];
        names.sort_unstable();
        let [first, second] = file.nodes();
        if names == [first.as_str(), second.as_str()] {
            return Ok(());
        }
        Err(io::Error::other(format!("the pair with this key is that of {first} and {second}")))
    }

    fn perform(&self, hello: &Hello, request: Request) -> Answer {
        let mut place = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = place.as_mut().expect("a node that was admitted has it open");
        let failed = |error: io::Error| error.to_string();
        match request {
            Request::Read(pool) => file.read(pool).map_or_else(|error| Answer::Failed(failed(error)), Answer::Register),
            Request::Swap(old, new) => Answer::Swapped(swap(file, old, new)),
            Request::Beat(request) => {
                let node = if hello.name < hello.partner { NodeIndex::First } else { NodeIndex::Second };
                beat(file, node, hello.incarnation, request).unwrap_or_else(|error| Answer::Failed(failed(error)))
            }
        }
    }
}

fn swap(file: &mut MailboxFile, old: Option<Register>, new: Register) -> SwapOutcome {
    match file.try_swap(old, new) {
        Ok(Some(outcome)) => outcome,
        Ok(None) => SwapOutcome::Unknown("another process changes the registers of this witness".to_owned()),
        Err(error) => SwapOutcome::Unknown(error.to_string()),
    }
}

fn beat(file: &mut MailboxFile, node: NodeIndex, life: Incarnation, request: BeatRequest) -> io::Result<Answer> {
    let BeatRequest { count, fences, time_ns } = request;
    file.write_beat(&Beat { node, incarnation: life, count, fences, time_ns })?;
    if fences.is_some() {
        file.sync()?;
    }
    Ok(Answer::Beat(file.read_beat(node.other())?.as_ref().map(PartnerBeat::from)))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            registers::{
                self, ArbiterFences, Registers,
                conformance::{self, NoWaker},
            },
            witness_client::{WitnessConfig, WitnessWorker},
        },
        *,
    };
    use std::os::unix::fs::PermissionsExt;
    use tempfile::TempDir;

    fn witness(keys: &[(&str, u8)]) -> (TempDir, RunningWitness) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, byte) in keys {
            let digits = format!("{byte:02x}").repeat(32);
            let file = directory.path().join(name).with_extension("key");
            fs::write(&file, digits).expect("written");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is ours");
        }
        let running = serve("127.0.0.1:0".parse().expect("an address"), directory.path()).expect("it listens");
        (directory, running)
    }

    fn node(address: SocketAddr, key: u8, nodes: [&str; 2], life: u128, lease: Duration) -> (Registers, ArbiterFences) {
        let worker = WitnessWorker::new(WitnessConfig {
            address: address.to_string(),
            key: PairKey::new([key; 32]),
            nodes: nodes.map(str::to_owned),
            incarnation: Incarnation(life),
            limit: Duration::from_secs(10),
            lease,
        });
        registers::start(worker, Arc::new(NoWaker)).expect("a thread")
    }

    #[test]
    fn it_does_what_every_arbiter_does_for_each_of_its_pairs() {
        let (_directory, witness) = witness(&[("first", 1), ("second", 2)]);
        assert_eq!(witness.pairs.len(), 2);
        for key in [1, 2] {
            conformance::all(&|nodes, life, lease| node(witness.address, key, nodes, life, lease));
        }
    }

    #[test]
    fn who_does_not_belong_to_a_pair_is_refused() {
        let (_directory, witness) = witness(&[("first", 1)]);
        let asks = |key, nodes, life| {
            let (mut registers, _) = node(witness.address, key, nodes, life, HELLO_WAIT_MAX);
            twinlog::pair::arbiter::Arbiter::beat(&mut registers, 0);
            match conformance::answer(&mut registers) {
                twinlog::pair::arbiter::Answer::Beat(outcome) => outcome,
                other => panic!("{other:?} is no answer to a beat"),
            }
        };
        assert_eq!(asks(1, ["a", "b"], 1), Ok(false));
        assert!(asks(1, ["b", "a"], 2).is_ok());
        let why = asks(1, ["a", "c"], 3).expect_err("another pair");
        assert!(why.contains("the pair with this key is that of a and b"), "{why}");
        asks(9, ["a", "b"], 4).expect_err("another key");
    }

    #[test]
    fn strangers_do_not_keep_nodes_out_for_long() {
        let (_directory, witness) = witness(&[("first", 1)]);
        let strangers: Vec<TcpStream> =
            (0..2 * STRANGERS_MAX).map(|_| TcpStream::connect(witness.address).expect("it listens")).collect();
        for mut stranger in &strangers {
            // It may have been sent away already.
            let _ = stranger.write_all(b"GET / HTTP/1.1\r\n");
        }
        let (mut registers, _) = node(witness.address, 1, ["a", "b"], 1, HELLO_WAIT_MAX);
        loop {
            twinlog::pair::arbiter::Arbiter::beat(&mut registers, 0);
            if conformance::answer(&mut registers) == twinlog::pair::arbiter::Answer::Beat(Ok(false)) {
                break;
            }
        }
        drop(strangers);
    }
}
