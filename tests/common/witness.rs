//! A pair of `twinlog up`, moved from its mailbox to a witness as an operator would: both nodes stopped, mailbox and key copied into the witness'
//! directory, `node.toml` changed. The interconnect goes through a proxy of the test, which can be cut.

use super::{PATIENCE, pair::Pair, pause_ms};
use std::{
    fs::{self, File},
    io,
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// A running `twinlog witness`; it is killed when dropped.
pub(crate) struct Witness {
    directory: PathBuf,
    address: String,
    process: Child,
}

impl Witness {
    fn start(directory: PathBuf) -> Self {
        let (process, address) = Self::spawn(&directory, "127.0.0.1:0");
        Self { directory, address, process }
    }

    fn spawn(directory: &Path, listen: &str) -> (Child, String) {
        let place = directory.join("out");
        let out = File::create(&place).expect("a folder of ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinlog"));
        command.args(["witness", "--listen", listen, "--dir"]).arg(directory).stdin(Stdio::null());
        command.stdout(out.try_clone().expect("a handle")).stderr(out);
        let mut process = command.spawn().expect("the program under test starts");
        let start = Instant::now();
        loop {
            let said = fs::read_to_string(&place).expect("made above");
            let line = said.lines().find(|line| line.contains("listens at"));
            if let Some(address) = line.and_then(|line| line.split_whitespace().last()) {
                return (process, address.to_owned());
            }
            let is_gone = !matches!(process.try_wait(), Ok(None));
            assert!(!is_gone && start.elapsed() < PATIENCE, "the witness does not listen: {said}");
            pause_ms(10);
        }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("a child of ours");
        self.process.wait().expect("a child of ours");
    }

    pub(crate) fn restart(&mut self) {
        let (process, address) = Self::spawn(&self.directory, &self.address);
        assert_eq!(address, self.address);
        self.process = process;
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The way from node a to node b.
pub(crate) struct Cable {
    address: String,
    is_cut: Arc<AtomicBool>,
}

impl Cable {
    fn new(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if let (false, Ok(far)) = (cut.load(Ordering::Acquire), UnixStream::connect(&socket)) {
                    Self::carry(near, far, Arc::clone(&cut));
                }
            }
        });
        Self { address, is_cut }
    }

    fn carry(near: TcpStream, far: UnixStream, cut: Arc<AtomicBool>) {
        let (mut near_in, mut far_in) = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        let (mut near_out, mut far_out) = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        let end = |near: &TcpStream, far: &UnixStream| {
            // Either end may have gone already.
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        };
        let ends = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        std::thread::spawn(move || {
            let _ = io::copy(&mut near_in, &mut far_out);
            end(&ends.0, &ends.1);
        });
        let ends = (near.try_clone().expect("a handle"), far.try_clone().expect("a handle"));
        std::thread::spawn(move || {
            let _ = io::copy(&mut far_in, &mut near_out);
            end(&ends.0, &ends.1);
        });
        std::thread::spawn(move || {
            while !cut.load(Ordering::Acquire) {
                pause_ms(10);
            }
            end(&near, &far);
        });
    }

    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Release);
    }
}

/// A pair that was moved to a witness, with the way between its nodes. `keys`: what else changes in each `node.toml`, old and new text.
pub(crate) fn moved(options: &[&str], keys: &[(&str, &str)]) -> (Pair, Witness, Cable) {
    let folder = Pair::start().stop();
    let data = folder.path().join("data");
    let directory = folder.path().join("witness");
    fs::create_dir(&directory).expect("a folder of ours");
    fs::copy(data.join("pair.key"), directory.join("ab.key")).expect("copied");
    fs::rename(data.join("disks/mailbox"), directory.join("ab.mailbox")).expect("moved");
    let witness = Witness::start(directory);
    let cable = Cable::new(data.join("b/pair.sock"));
    for node in ["a", "b"] {
        let path = data.join(node).join("node.toml");
        let mut text = fs::read_to_string(&path).expect("up has made it");
        let mut replace = |from: &str, to: &str| {
            assert!(text.contains(from), "{from} in {text}");
            text = text.replace(from, to);
        };
        replace("mailbox = \"../disks/mailbox\"", &format!("witness = \"{}\"", witness.address));
        replace("fence = [\"lock\", \"process\"]", "fence = [\"lease\"]");
        keys.iter().for_each(|(from, to)| replace(from, to));
        if node == "a" {
            replace("partner_unix = [\"../b/pair.sock\"]", &format!("partner_tcp = [\"{}\"]", cable.address));
        }
        fs::write(&path, text).expect("written");
    }
    (Pair::start_in(folder, options), witness, cable)
}
