//! A pair in two guests: each drives an NVMe controller of its own, and both controllers have the same namespaces. Logs and mirrors lie on an NVDIMM in each
//! guest; the witness runs on this machine, and the lab itself is the switch that the fence command asks.
//!
//! In odd rounds the power of the one machine is cut, in even ones it stands still, so that its partner has to have it switched off.

use super::{
    Lab, nvme,
    station::{NODE, PATIENCE},
};
use crate::{
    host,
    initramfs::Contents,
    machine::{Guest, Machine, Nvdimms, Switch},
    node::free_port,
    random::Random,
};
use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

const PAYLOAD: &str = include_str!("../../guest/nvme-pair.sh");
const FENCE: &str = include_str!("../../guest/fence.sh");
const SERIAL: &str = "LAB0";
const NAMES: [&str; 2] = ["a", "b"];
const MODULES: [&str; 7] = ["nvme", "vfio_pci", "vfio_iommu_type1", "nfit", "nd_pmem", "crc32c_generic", "ext4"];
/// A multiple of 16 MiB, and 2 MiB for the label. Log and mirror have 16 MiB each, and headers.
const NVDIMM_BYTES: u64 = (64 + 2) << 20;
/// The load goes on for so long before a machine is lost, and again before it ends.
const PAUSE_MS: [usize; 2] = [1000, 3000];
const POLL: Duration = Duration::from_millis(20);
/// Of NBD, inside a guest.
const PORT: u16 = 10809;

/// The switches of both machines; none while one was never on.
type Switches = Arc<Mutex<[Option<Switch>; 2]>>;

/// What both guests have in common.
struct Site<'a> {
    lab: &'a Lab,
    /// Of this machine: witness, switch, the network between the guests, and the NBD server of each.
    witness: u16,
    switch: u16,
    network: u16,
    nbd: [u16; 2],
    switches: Switches,
}

pub(super) fn pair(lab: &Lab) -> Result<()> {
    if !lab.load.is_file() {
        bail!(host::Missing(format!("no {}: run `cargo build -p twinlog-load`", lab.load.display())));
    }
    let switches = Switches::default();
    let site = Site {
        lab,
        witness: free_port()?,
        switch: serve_switch(&switches)?,
        network: free_port()?,
        nbd: [free_port()?, free_port()?],
        switches,
    };
    let witness = site.start_witness()?;
    for name in NAMES {
        File::create(lab.folder.join(format!("nvdimm-{name}")))?.set_len(NVDIMM_BYTES)?;
        nvme::drive(lab, name)?;
    }
    let mut guests = [site.boot(0, true)?, site.boot(1, true)?];
    // Neither serves before both pools are made: each opens the other's too.
    guests.iter_mut().try_for_each(|guest| guest.event("created", PATIENCE).map(drop))?;
    guests.iter_mut().try_for_each(|guest| guest.tell("serve"))?;
    guests.iter_mut().try_for_each(|guest| guest.event("serving", PATIENCE).map(drop))?;
    guests.iter_mut().try_for_each(|guest| order(guest, "in-step"))?;
    order(&mut guests[0], "volume")?;
    let mut load = site.load()?;
    let mut random = Random::new(lab.seed);
    for round in 1..=lab.rounds {
        site.round(round, &mut random, &mut guests, &mut load)?;
    }
    load.end()?;
    for guest in &mut guests {
        order(guest, "check")?;
        guest.no_iommu_fault()?;
    }
    drop(witness);
    Ok(())
}

/// Has the guest do something, and waits until it is done.
fn order(guest: &mut Guest, word: &str) -> Result<()> {
    guest.tell(word)?;
    guest.event(word, PATIENCE).map(drop)
}

impl Site<'_> {
    /// One machine is lost under load, its partner serves its pool; it comes back, and gets it back.
    fn round(&self, round: u32, random: &mut Random, guests: &mut [Guest; 2], load: &mut Load) -> Result<()> {
        let [a, b] = guests;
        let pause = PAUSE_MS[0] + random.below(PAUSE_MS[1]);
        load.goes_on(pause)?;
        order(b, "in-step")?;
        let hangs = round.is_multiple_of(2);
        if hangs {
            a.hang()?
        } else {
            a.cut()?
        }
        a.no_iommu_fault()?;
        let lost = Instant::now();
        order(b, "has-taken-over")?;
        let taken = lost.elapsed();
        if a.is_alive()? {
            bail!("the pool was taken over from a machine that is on");
        }
        load.goes_on(PAUSE_MS[0])?;
        *a = self.boot(0, false)?;
        a.event("serving", PATIENCE)?;
        guests.iter_mut().try_for_each(|guest| order(guest, "in-step"))?;
        load.goes_on(PAUSE_MS[0])?;
        let how = if hangs { "stood still" } else { "lost its power" };
        self.lab.say(format_args!(
            "round {round}: a {how} after {pause} ms of load, b had its pool after {taken:.1?}, and gave it back"
        ));
        Ok(())
    }

    fn start_witness(&self) -> Result<Mortal> {
        let folder = self.lab.folder.join("witness");
        fs::create_dir(&folder)?;
        let key = folder.join("ab.key");
        fs::write(&key, self.key())?;
        host::output(Command::new("chmod").arg("600").arg(&key))?;
        let output = File::create(self.lab.folder.join("witness.log"))?;
        let mut command = host::mortal(&self.lab.twinlog);
        command.args(["witness", "--listen", &format!("127.0.0.1:{}", self.witness), "--dir"]).arg(&folder);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Ok(Mortal(command.spawn().context("starting the witness")?))
    }

    /// A secret that is none.
    fn key(&self) -> String {
        format!("{:064x}\n", self.lab.seed)
    }

    fn boot(&self, node: usize, first: bool) -> Result<Guest> {
        let guest = self.machine(node, first)?.boot()?;
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)[node] = Some(guest.switch());
        Ok(guest)
    }

    fn machine(&self, node: usize, first: bool) -> Result<Machine> {
        let lab = self.lab;
        let (name, partner) = (NAMES[node], NAMES[1 - node]);
        let address = |node: usize| format!("192.168.7.{}", node + 1);
        let settings = format!(
            "name={name}\npartner={partner}\naddress={}\npartner_address={}\nown={}\ntheirs={}\nfirst={}\n\
             controller={SERIAL}\nwitness={}\nswitch={}\n",
            address(node),
            address(1 - node),
            node + 1,
            2 - node,
            if first { "yes" } else { "no" },
            self.witness,
            self.switch
        );
        let files = [
            ("lab/settings", settings),
            ("lab/node.sh", NODE.to_owned()),
            ("lab/fence.sh", FENCE.to_owned()),
            ("lab/pair.key", self.key()),
        ];
        let contents = Contents {
            payload: PAYLOAD,
            modules: MODULES.to_vec(),
            programs: vec!["ndctl", "mkfs.ext4"],
            binaries: vec![lab.twinlog.clone()],
            files: files.map(|(path, text)| (path.to_owned(), text.into_bytes())).into(),
        };
        let mut machine = lab.machine(&format!("{name}{}", if first { "" } else { "-again" }), &contents)?;
        machine.memory_mib = 640;
        machine.has_iommu = true;
        machine.forwarded = vec![(self.nbd[node], PORT)];
        machine.nvdimms =
            Some(Nvdimms { files: vec![lab.folder.join(format!("nvdimm-{name}"))], size_bytes: NVDIMM_BYTES });
        machine.devices = vec!["-device".to_owned(), format!("nvme,id={SERIAL},serial={SERIAL}")];
        for (number, disk) in (1..).zip(NAMES) {
            machine.devices.extend(shared(&lab.folder, disk, (SERIAL, number), number));
        }
        machine.devices.extend(network(self.network, node));
        Ok(machine)
    }

    /// Verifying load on the first node's volume, which goes on over whichever node serves it.
    fn load(&self) -> Result<Load> {
        let journal = self.lab.folder.join("journal");
        let log = File::create(self.lab.folder.join("load.log"))?;
        let [first, second] = self.nbd.map(|port| format!("nbd://127.0.0.1:{port}/vol-a"));
        let mut command = Command::new(&self.lab.load);
        command.arg(first).args(["--alternate", &second, "--reconnect", "300", "--timeout", "300s", "--verify"]);
        command.args([
            "--rw",
            "randrw",
            "--bs",
            "512-16k",
            "--qd",
            "4",
            "--connections",
            "2",
            "--zero",
            "5",
            "--trim",
            "5",
        ]);
        command.args(["--warmup", "0", "--time", "3600", "--seed", &self.lab.seed.to_string(), "--journal"]);
        command.arg(&journal).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Mortal(command.spawn().context("starting twinlog-load")?);
        Ok(Load { process, journal, log: self.lab.folder.join("load.log") })
    }
}

/// A namespace of a controller, by its number there, whose content both guests have. `number` is in its identity.
pub(super) fn shared(folder: &Path, disk: &str, (controller, namespace): (&str, usize), number: usize) -> [String; 4] {
    let image = folder.join(format!("{disk}.img"));
    [
        "-drive".to_owned(),
        format!("file={},if=none,id=disk-{disk},format=raw,file.locking=off", image.display()),
        "-device".to_owned(),
        format!(
            "nvme-ns,drive=disk-{disk},bus={controller},nsid={namespace},share-rw=on,uuid=00000000-0000-4000-8000-00000000000{number}"
        ),
    ]
}

/// A network that guests have among themselves, at that port of this machine's.
pub(super) fn network(port: u16, guest: usize) -> [String; 4] {
    [
        "-netdev".to_owned(),
        format!("socket,id=pair,mcast=230.77.0.1:{port},localaddr=127.0.0.1"),
        "-device".to_owned(),
        format!("virtio-net-pci,netdev=pair,mac=52:54:00:77:00:0{}", guest + 1),
    ]
}

/// A process that ends with its handle.
struct Mortal(Child);

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `twinlog-load`, and its journal, which grows with every answer.
struct Load {
    process: Mortal,
    journal: std::path::PathBuf,
    log: std::path::PathBuf,
}

impl Load {
    fn journal_bytes(&self) -> u64 {
        fs::metadata(&self.journal).map_or(0, |metadata| metadata.len())
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until there were answers, and for some time.
    fn goes_on(&mut self, pause_ms: usize) -> Result<()> {
        let (before, start) = (self.journal_bytes(), Instant::now());
        while self.journal_bytes() < before + 4096 {
            if let Some(status) = self.process.0.try_wait()? {
                bail!("twinlog-load ended with {status}\n{}", self.said());
            }
            if start.elapsed() > PATIENCE {
                bail!("the load does not go on\n{}", self.said());
            }
            thread::sleep(POLL);
        }
        thread::sleep(Duration::from_millis(u64::try_from(pause_ms)?));
        Ok(())
    }

    /// Ends it; it reads everything back, and all of it must be there.
    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.process.0.id())?), Signal::SIGINT)?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.process.0.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("twinlog-load found what must not be: {status}\n{}", self.said()),
                None => thread::sleep(POLL),
            }
        }
        bail!("twinlog-load does not end\n{}", self.said())
    }
}

/// Serves the switch of both machines; returns its port. The thread ends with the lab.
fn serve_switch(switches: &Switches) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("making a switch")?;
    let port = listener.local_addr()?.port();
    let switches = Arc::clone(switches);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = obey(&stream, &switches).unwrap_or_else(|error| format!("{error:#}"));
            // Who has asked may have lost its power too.
            let _ = writeln!(&stream, "{answer}");
        }
    });
    Ok(port)
}

/// `off b`
fn obey(stream: &TcpStream, switches: &Switches) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let (action, plug) = line.trim().split_once(' ').context("an action and a machine")?;
    let node = NAMES.iter().position(|name| *name == plug).context("no such machine")?;
    match action {
        "monitor" => {}
        "off" => {
            let switch = switches.lock().unwrap_or_else(PoisonError::into_inner)[node].clone();
            switch.context("it was never on")?.cut()?;
        }
        _ => bail!("no such action"),
    }
    Ok("done".to_owned())
}
