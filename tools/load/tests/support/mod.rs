//! An NBD server in a few threads that can do one thing wrong, and a way to run the program against it.
//!
//! The server keeps two copies of its content: what a client reads, and what a crash leaves. A flush or FUA makes the second follow
//! the first. Written for these tests alone: it trusts its client.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod nvme;

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

/// One thing that goes wrong. A number counts from 1: the change (write, zero, trim) at which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Acknowledged, not done.
    LoseWrite(u64),
    /// One bit of the data changes.
    FlipBit(u64),
    /// The data goes 4 KiB too low.
    Misdirect(u64),
    /// The last 512 bytes, or the last seven of a short or odd write, are not written.
    LoseTail(u64),
    /// A zero request leaves its last sector.
    ShortZero(u64),
    /// A trim or zero request takes one sector too many.
    LongZero(u64),
    /// Every read from then on sees the content of before that change.
    StaleReads(u64),
    /// All connections are cut; the content stays.
    Cut(u64),
    /// All connections are cut, and what was not durable is lost.
    Crash(u64),
    /// As `Crash`, by a server that never heeded FUA.
    CrashWithoutFua(u64),
    /// As `Crash`, by a server that never heeded a flush.
    CrashWithoutFlush(u64),
    /// From then on, cut at once whoever connects.
    Gone(u64),
    /// One change is answered with this error and not done.
    Refuse(u64, u32),
    /// One reply names another request.
    WrongCookie(u64),
    /// One reply has a wrong magic.
    WrongMagic(u64),
    /// One change is answered after so many milliseconds, and all others after it.
    Stall(u64, u64),
}

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN.
pub(crate) const ALL_FLAGS: u16 = 1 | 4 | 8 | 32 | 64 | 256;

struct State {
    current: Vec<u8>,
    durable: Vec<u8>,
    stale: Option<Vec<u8>>,
    fault: Fault,
    flags: u16,
    changes: u64,
    flushes: u64,
    gone: bool,
    connections: Vec<Stream>,
}

/// A running server. Its threads end with the test's process.
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    directory: tempfile::TempDir,
    uri: String,
}

impl Server {
    /// A server on a Unix socket.
    pub(crate) fn start(size: usize, fault: Fault) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the socket");
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let uri = format!("nbd+unix:///vol?socket={}", socket.display());
        let server = Self { state: State::shared(size, fault), directory, uri };
        let state = Arc::clone(&server.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve_in_thread(Stream::Unix(stream), &state);
            }
        });
        server
    }

    /// A server on a TCP port of the loopback interface, which answers several requests in reverse order.
    pub(crate) fn start_tcp(size: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let uri = format!("nbd://{}/vol", listener.local_addr().expect("bound"));
        let directory = tempfile::tempdir().expect("a directory");
        let server = Self { state: State::shared(size, Fault::None), directory, uri };
        let state = Arc::clone(&server.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve_in_thread(Stream::Tcp(stream), &state);
            }
        });
        server
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// A path for a file of the test.
    pub(crate) fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Changes what a client reads, behind its back.
    pub(crate) fn alter(&self, change: impl FnOnce(&mut [u8])) {
        change(&mut lock(&self.state).current);
    }

    /// Promises something else from now on.
    pub(crate) fn promise(&self, flags: u16) {
        lock(&self.state).flags = flags;
    }

    /// The flushes that came so far.
    pub(crate) fn flushes(&self) -> u64 {
        lock(&self.state).flushes
    }

    /// From now on nothing goes wrong.
    pub(crate) fn heal(&self) {
        let mut state = lock(&self.state);
        state.fault = Fault::None;
        state.gone = false;
    }

    /// Runs the program on this server.
    pub(crate) fn load(&self, arguments: &str) -> Run {
        load(&self.uri, arguments)
    }
}

/// What a run of the program said.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Run {
    /// The run, if it ended with `code`.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.out, self.error);
        self
    }

    /// The run, if it said `part`.
    #[track_caller]
    pub(crate) fn says(self, part: &str) -> Self {
        assert!(self.out.contains(part) || self.error.contains(part), "`{part}` in\n{}\n{}", self.out, self.error);
        self
    }

    /// The JSON that it printed.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).expect("JSON on standard output")
    }
}

/// The program with a target and arguments.
pub(crate) fn command(target: &str, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog-load"));
    command.arg(target).args(arguments.split_whitespace());
    command
}

/// Runs the program.
pub(crate) fn load(target: &str, arguments: &str) -> Run {
    let Output { status, stdout, stderr } = command(target, arguments).output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Run { code: status.code().expect("no signal"), out: text(stdout), error: text(stderr) }
}

/// The path of an installed program; without it a test is skipped aloud, or fails where CI is set.
pub(crate) fn foreign(program: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path: &PathBuf| Path::is_file(path));
    if found.is_none() {
        let hint = format!("{program} is not installed: apt-get install {package}");
        assert!(std::env::var_os("CI").is_none(), "{hint}");
        // The test runner would keep what `eprintln!` says of a test that passes.
        let _ = writeln!(io::stderr(), "SKIPPED: {hint}");
    }
    found
}

impl State {
    fn shared(size: usize, fault: Fault) -> Arc<Mutex<Self>> {
        let zeroes = vec![0; size];
        Arc::new(Mutex::new(Self {
            current: zeroes.clone(),
            durable: zeroes,
            stale: None,
            fault,
            flags: ALL_FLAGS,
            changes: 0,
            flushes: 0,
            gone: false,
            connections: Vec::new(),
        }))
    }

    /// Does a request; gives the error number and the data of a read, or nothing when the connection is to be cut.
    fn perform(&mut self, request: &Request) -> Option<(u32, Vec<u8>)> {
        let range = index(request.offset)..index(request.offset) + request.length;
        match request.kind {
            0 => {
                let content = self.stale.as_ref().unwrap_or(&self.current);
                return Some((0, content[range].to_vec()));
            }
            3 => {
                self.flushes += 1;
                if !matches!(self.fault, Fault::CrashWithoutFlush(_)) {
                    self.durable.clone_from(&self.current);
                }
                return Some((0, Vec::new()));
            }
            _ => {}
        }
        self.changes += 1;
        let changes = self.changes;
        match self.fault {
            Fault::Cut(at) | Fault::Gone(at) if at == changes => return self.cut(),
            Fault::Crash(at) | Fault::CrashWithoutFua(at) | Fault::CrashWithoutFlush(at) if at == changes => {
                self.current.clone_from(&self.durable);
                return self.cut();
            }
            Fault::Refuse(at, error) if at == changes => return Some((error, Vec::new())),
            Fault::LoseWrite(at) if at == changes => return Some((0, Vec::new())),
            Fault::StaleReads(at) if at == changes => self.stale = Some(self.current.clone()),
            Fault::Stall(at, milliseconds) if at == changes => thread::sleep(Duration::from_millis(milliseconds)),
            _ => {}
        }
        let (start, data) = self.spoil(request, range.start);
        let end = (start + data.len()).min(self.current.len());
        self.current[start..end].copy_from_slice(&data[..end - start]);
        if request.fua && !matches!(self.fault, Fault::CrashWithoutFua(_)) {
            self.durable[start..end].copy_from_slice(&data[..end - start]);
        }
        Some((0, Vec::new()))
    }

    /// Where a change really goes, and with which bytes.
    fn spoil(&self, request: &Request, mut start: usize) -> (usize, Vec<u8>) {
        let mut data = if request.kind == 1 { request.data.clone() } else { vec![0; request.length] };
        let now = self.changes;
        match self.fault {
            Fault::FlipBit(at) if at == now => data[request.length / 2] ^= 1,
            Fault::Misdirect(at) if at == now => start -= 4096,
            Fault::LoseTail(at) if at == now => {
                let tail = if request.length > 512 && request.length.is_multiple_of(512) { 512 } else { 7 };
                data.truncate(request.length - tail);
            }
            Fault::ShortZero(at) if now >= at && request.kind != 1 => data.truncate(request.length - 512),
            Fault::LongZero(at) if now >= at && request.kind != 1 => data.resize(request.length + 512, 0),
            _ => {}
        }
        (start, data)
    }

    fn cut(&mut self) -> Option<(u32, Vec<u8>)> {
        self.gone = matches!(self.fault, Fault::Gone(_));
        self.connections.drain(..).for_each(|stream| stream.shut());
        None
    }
}

struct Request {
    fua: bool,
    kind: u16,
    cookie: [u8; 8],
    offset: u64,
    length: usize,
    data: Vec<u8>,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn again(&self) -> Self {
        match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone().expect("a handle")),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().expect("a handle")),
        }
    }

    fn shut(&self) {
        // The client may have gone first.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }

    /// Whether nothing more comes within a few milliseconds; a Unix socket never waits.
    fn is_idle(&self) -> bool {
        let Self::Tcp(stream) = self else { return true };
        stream.set_read_timeout(Some(Duration::from_millis(3))).expect("a time limit");
        let idle = stream.peek(&mut [0]).is_err();
        stream.set_read_timeout(None).expect("no time limit");
        idle
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        match self {
            Self::Unix(stream) => stream.read_exact(&mut bytes)?,
            Self::Tcp(stream) => stream.read_exact(&mut bytes)?,
        }
        Ok(bytes)
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.read_exact(bytes),
            Self::Tcp(stream) => stream.read_exact(bytes),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Tcp(stream) => stream.write_all(bytes),
        }
    }
}

fn serve_in_thread(stream: Stream, state: &Arc<Mutex<State>>) {
    let state = Arc::clone(state);
    thread::spawn(move || {
        {
            let mut state = lock(&state);
            if state.gone {
                return;
            }
            state.connections.push(stream.again());
        }
        // A client that goes ends the thread.
        let _ = serve(stream, &state);
    });
}

fn serve(mut stream: Stream, state: &Mutex<State>) -> io::Result<()> {
    negotiate(&mut stream, state)?;
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        let request = receive(&mut stream)?;
        if request.kind == 2 {
            return Ok(());
        }
        let (answer, changes, fault) = {
            let mut state = lock(state);
            (state.perform(&request), state.changes, state.fault)
        };
        let Some((error, data)) = answer else { return Ok(()) };
        let mut reply = [&[0x67, 0x44, 0x66, 0x98], error.to_be_bytes().as_slice(), &request.cookie, &data].concat();
        match fault {
            Fault::WrongCookie(at) if at == changes => reply[12] ^= 0x40,
            Fault::WrongMagic(at) if at == changes => reply[0] ^= 1,
            _ => {}
        }
        held.push(reply);
        if held.len() == 4 || stream.is_idle() {
            held.reverse();
            stream.send(&held.concat())?;
            held.clear();
        }
    }
}

fn receive(stream: &mut Stream) -> io::Result<Request> {
    let header: [u8; 28] = stream.take()?;
    let length = u32::from_be_bytes(header[24..].try_into().expect("four bytes"));
    let mut request = Request {
        fua: header[5] & 1 != 0,
        kind: u16::from_be_bytes([header[6], header[7]]),
        cookie: header[8..16].try_into().expect("eight bytes"),
        offset: u64::from_be_bytes(header[16..24].try_into().expect("eight bytes")),
        length: usize::try_from(length).expect("32 bits"),
        data: Vec::new(),
    };
    assert_eq!(header[..4], [0x25, 0x60, 0x95, 0x13], "the client speaks NBD");
    if request.kind == 1 {
        request.data = vec![0; request.length];
        stream.read(&mut request.data)?;
    }
    Ok(request)
}

fn negotiate(stream: &mut Stream, state: &Mutex<State>) -> io::Result<()> {
    stream.send(b"NBDMAGICIHAVEOPT\0\x03")?;
    assert_eq!(stream.take::<4>()?, [0, 0, 0, 3], "fixed newstyle without zeroes");
    let option: [u8; 16] = stream.take()?;
    assert_eq!(option[..12], *b"IHAVEOPT\0\0\0\x07", "NBD_OPT_GO");
    let mut data = vec![0; usize::from(option[15])];
    stream.read(&mut data)?;
    assert_eq!(data[..7], *b"\0\0\0\x03vol", "the export's name");
    let (size, flags) = {
        let state = lock(state);
        (u64::try_from(state.current.len()).expect("64 bits"), state.flags)
    };
    let reply = |kind: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).expect("short");
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        [magic.as_slice(), &7_u32.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), data].concat()
    };
    let export = [[0, 0].as_slice(), &size.to_be_bytes(), &flags.to_be_bytes()].concat();
    stream.send(&[reply(3, &export), reply(1, &[])].concat())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread of the server panics")
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("64-bit platforms only")
}
