//! An NVMe/TCP target in threads of the test: one namespace, several ports, and what can go wrong with them. It is no model of good code for a target: it trusts its
//! host, which the test is about.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

const BLOCK: usize = 4096;
/// Bytes of the namespace.
pub(crate) const SIZE: usize = 1 << 20;
const NAME: &str = "nqn.2014-08.test";

/// What happens at the n-th change that comes over a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// All connections of the port are closed, and no new ones accepted.
    Close(u64),
    /// Nothing is answered any more, and nothing read.
    Silence(u64),
    /// It and so many after it are answered with this status (code type and code; bit 14: do not retry), and not done.
    Refuse(u64, u64, u16),
    /// The access of the ports changes places; hosts are told, and what comes the old way is refused.
    Exchange(u64),
    /// One answer names another command.
    WrongId(u64),
}

struct Port {
    trouble: Trouble,
    changes: u64,
    /// 1 optimized, 2 non-optimized, 3 inaccessible.
    access: u8,
    is_gone: bool,
    is_silent: bool,
    connections: Vec<TcpStream>,
    /// The admin queue with an event request, and its id.
    event_request: Option<(TcpStream, u16)>,
}

struct State {
    data: Vec<u8>,
    ports: Vec<Port>,
    uuid: [u8; 16],
}

/// A running target. Its threads end with the test's process.
pub(crate) struct Target {
    state: Arc<Mutex<State>>,
    addresses: Vec<SocketAddr>,
}

impl Target {
    /// A target with a port for each of these: how it leads to the namespace, and its trouble.
    pub(crate) fn start(ports: &[(u8, Trouble)]) -> Self {
        let port = |&(access, trouble): &(u8, Trouble)| Port {
            trouble,
            changes: 0,
            access,
            is_gone: false,
            is_silent: false,
            connections: Vec::new(),
            event_request: None,
        };
        let state = State { data: vec![0; SIZE], ports: ports.iter().map(port).collect(), uuid: [7; 16] };
        let state = Arc::new(Mutex::new(state));
        let addresses = (0..ports.len()).map(|number| listen(&state, number)).collect();
        Self { state, addresses }
    }

    pub(crate) fn uri(&self, options: &str) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        format!("nvme-tcp://{}/{NAME}?{options}", addresses.join(","))
    }

    /// Changes that came over each port.
    pub(crate) fn changes(&self) -> Vec<u64> {
        lock(&self.state).ports.iter().map(|port| port.changes).collect()
    }
}

fn listen(state: &Arc<Mutex<State>>, number: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            {
                let mut state = lock(&state);
                let port = &mut state.ports[number];
                if port.is_gone {
                    continue;
                }
                port.connections.push(stream.try_clone().expect("a handle"));
            }
            let state = Arc::clone(&state);
            // A host that goes ends the thread.
            thread::spawn(move || serve(stream, &state, number));
        }
    });
    address
}

/// A command with its capsule's data.
struct Command {
    opcode: u8,
    kind: u8,
    id: u16,
    word: [u32; 6],
    /// Bytes that its descriptor names.
    length: usize,
    data: Vec<u8>,
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, number: usize) -> io::Result<()> {
    let request = take::<128>(&mut stream)?;
    assert_eq!((request[0], request[2], request[11]), (0, 128, 0), "an ICReq without digests");
    let mut response = request;
    (response[0], response[13]) = (1, 16);
    stream.write_all(&response)?;
    stream.set_nodelay(true)?;
    let (mut is_io, mut backlog) = (false, VecDeque::new());
    loop {
        let command = match backlog.pop_front() {
            Some(command) => command,
            None => receive(&mut stream)?,
        };
        while lock(state).ports[number].is_silent {
            // Nothing is read any more: the host waits for an answer that does not come.
            thread::park();
        }
        match command.opcode {
            0x7f => {
                is_io |= command.kind == 1 && command.word[0] >> 16 > 0;
                fabrics(&mut stream, &command)?;
            }
            _ if is_io => perform((&mut stream, &mut backlog), state, number, command)?,
            0x06 => identify(&mut stream, state, &command)?,
            0x02 => {
                let access = lock(state).ports[number].access;
                let mut log = vec![0; 16 + 32];
                (log[8], log[16], log[32]) = (1, 1, access);
                send_data(&mut stream, command.id, &log)?;
            }
            0x0c => {
                lock(state).ports[number].event_request = Some((stream.try_clone()?, command.id));
            }
            0x09 if command.word[0] == 7 => answer(&mut stream, command.id, 0, 31 << 16 | 31)?,
            _ => answer(&mut stream, command.id, 0, 0)?,
        }
    }
}

fn receive(stream: &mut TcpStream) -> io::Result<Command> {
    let head = take::<8>(stream)?;
    capsule(stream, head)
}

/// The rest of a command's capsule.
fn capsule(stream: &mut TcpStream, head: [u8; 8]) -> io::Result<Command> {
    assert_eq!((head[0], head[2]), (4, 72), "a capsule");
    let entry = take::<64>(stream)?;
    let in_capsule = if head[3] == 0 { 0 } else { number(&head[4..]) - usize::from(head[3]) };
    let mut data = vec![0; in_capsule];
    stream.read_exact(&mut data)?;
    let word = |at: usize| u32::try_from(number(&entry[40 + 4 * at..])).expect("32 bits");
    Ok(Command {
        opcode: entry[0],
        kind: entry[4],
        id: u16::from_le_bytes([entry[2], entry[3]]),
        word: std::array::from_fn(word),
        length: number(&entry[32..]),
        data,
    })
}

fn fabrics(stream: &mut TcpStream, command: &Command) -> io::Result<()> {
    let result = match (command.kind, command.word[1]) {
        (1, _) => {
            assert_eq!(command.data.len(), 1024, "a Connect has its data in its capsule");
            1
        }
        // CAP: 128 entries, a second to become ready; CSTS: ready.
        (4, 0) => 127 | 2 << 24,
        (4, 0x1c) => 1,
        _ => 0,
    };
    answer(stream, command.id, 0, result)
}

fn identify(stream: &mut TcpStream, state: &Mutex<State>, command: &Command) -> io::Result<()> {
    let mut page = vec![0; 4096];
    match command.word[0] {
        // Several controllers with asymmetric access in one group, 64 KiB for a transfer, 8 KiB in a capsule.
        1 => {
            (page[76], page[77], page[93], page[348], page[520]) = (0b1010, 4, 8, 1, 0b1100);
            page[1792..1794].copy_from_slice(&((64_u16 + 8192) / 16).to_le_bytes());
            // IORCSZ, which is no offset of data in a capsule.
            page[1796] = 1;
        }
        0 => {
            page[..8].copy_from_slice(&u64::try_from(SIZE / BLOCK).expect("small").to_le_bytes());
            (page[92], page[130]) = (1, 12);
        }
        3 => {
            page[..4].copy_from_slice(&[3, 16, 0, 0]);
            page[4..20].copy_from_slice(&lock(state).uuid);
        }
        _ => page[0] = 1,
    }
    send_data(stream, command.id, &page)
}

/// An I/O command. Others that come while its data is awaited wait behind it.
fn perform(
    (stream, backlog): (&mut TcpStream, &mut VecDeque<Command>),
    state: &Mutex<State>,
    port: usize,
    mut command: Command,
) -> io::Result<()> {
    let first = usize::try_from(u64::from(command.word[1]) << 32 | u64::from(command.word[0])).expect("64 bits");
    let count = usize::try_from(command.word[2] & 0xffff).expect("16 bits") + 1;
    let range = first * BLOCK..(first + count) * BLOCK;
    if command.opcode == 2 {
        let data = lock(state).data[range].to_vec();
        return send_data(stream, command.id, &data);
    }
    if command.opcode == 1 && command.data.is_empty() {
        command.data = ask((stream, backlog), command.id, command.length)?;
    }
    let mut held = lock(state);
    held.ports[port].changes += 1;
    let (changes, trouble) = (held.ports[port].changes, held.ports[port].trouble);
    let mut id = command.id;
    match trouble {
        Trouble::Close(at) if changes >= at => {
            held.ports[port].is_gone = true;
            held.ports[port].connections.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
            return Ok(());
        }
        Trouble::Silence(at) if changes >= at => {
            held.ports[port].is_silent = true;
            return Ok(());
        }
        Trouble::Refuse(at, count, status) if (at..at + count).contains(&changes) => {
            drop(held);
            return answer(stream, id, status, 0);
        }
        Trouble::Exchange(at) if changes >= at => {
            held.ports.iter_mut().for_each(|port| port.access = 4 - port.access);
            held.ports[port].trouble = Trouble::None;
            for port in &mut held.ports {
                if let Some((mut admin, id)) = port.event_request.take() {
                    // Notice, access change, its log page.
                    answer(&mut admin, id, 0, 0x000c_0302)?;
                }
            }
            drop(held);
            return answer(stream, id, 0x303, 0);
        }
        Trouble::WrongId(at) if changes == at => id ^= 1 << 15,
        _ => {}
    }
    match command.opcode {
        1 => held.data[range].copy_from_slice(&command.data),
        8 => held.data[range].fill(0),
        9 => {
            let (count, first) = (number(&command.data[4..]), number(&command.data[8..]));
            held.data[first * BLOCK..(first + count) * BLOCK].fill(0);
        }
        _ => {}
    }
    drop(held);
    answer(stream, id, 0, 0)
}

/// Asks for the data of a write in two parts.
fn ask((stream, backlog): (&mut TcpStream, &mut VecDeque<Command>), id: u16, length: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    let half = (length / 2).next_multiple_of(BLOCK);
    for part in [half, length - half].into_iter().filter(|part| *part > 0) {
        let mut unit = vec![9, 0, 24, 0, 24, 0, 0, 0];
        unit.extend(id.to_le_bytes());
        unit.extend([5, 0]);
        unit.extend(bytes(data.len()));
        unit.extend(bytes(part));
        unit.extend([0; 4]);
        stream.write_all(&unit)?;
        let wanted = data.len() + part;
        while data.len() < wanted {
            let head = take::<8>(stream)?;
            if head[0] == 4 {
                backlog.push_back(capsule(stream, head)?);
                continue;
            }
            let rest = take::<16>(stream)?;
            assert_eq!((head[0], rest[..4].to_vec()), (6, [&id.to_le_bytes()[..], &[5, 0]].concat()), "H2CData");
            assert_eq!(number(&rest[4..]), data.len(), "in order");
            let start = data.len();
            data.resize(start + number(&rest[8..]), 0);
            stream.read_exact(&mut data[start..])?;
        }
    }
    Ok(data)
}

fn answer(stream: &mut TcpStream, id: u16, status: u16, result: u32) -> io::Result<()> {
    let mut unit = vec![5, 0, 24, 0, 24, 0, 0, 0];
    unit.extend(result.to_le_bytes());
    unit.extend([0; 8]);
    unit.extend(id.to_le_bytes());
    unit.extend((status << 1).to_le_bytes());
    stream.write_all(&unit)
}

/// Data of a command in one unit, which is its success.
fn send_data(stream: &mut TcpStream, id: u16, data: &[u8]) -> io::Result<()> {
    let mut unit = vec![7, 12, 24, 24];
    unit.extend(bytes(24 + data.len()));
    unit.extend(id.to_le_bytes());
    unit.extend([0; 6]);
    unit.extend(bytes(data.len()));
    unit.extend([0; 4]);
    unit.extend(data);
    stream.write_all(&unit)
}

fn take<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).map(|()| bytes)
}

fn number(bytes: &[u8]) -> usize {
    usize::try_from(u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))).expect("64-bit platforms only")
}

fn bytes(number: usize) -> [u8; 4] {
    u32::try_from(number).expect("small").to_le_bytes()
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no thread of the target panics")
}
