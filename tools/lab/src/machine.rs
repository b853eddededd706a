//! One virtual machine: QEMU with software emulation, or a kernel in [user mode](user_mode), from start to end.
//!
//! Two virtual serial ports join it to the lab: `lab.log` takes what the payload prints, `lab.control` carries lines both ways (the guest's
//! events, the lab's answers). The kernel's console goes to a file, and so does the result, see [`console`].
//!
//! Nothing outlives the lab: a guest that is dropped is killed, and the kernel kills it when the lab's process dies. Every wait
//! has an end.

use crate::{
    console::{self, Outcome},
    host, user_mode,
};
use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// How often the lab looks whether QEMU lives.
const POLL: Duration = Duration::from_millis(50);
/// Longer, and QEMU itself has a problem: its ports are there before the guest's first instruction.
const PORTS_PATIENCE: Duration = Duration::from_secs(30);
/// No message of the kernel's on the console unless something is wrong; no reboot after a panic, so that QEMU ends.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr mitigations=off audit=0 random.trust_cpu=on";

/// Where an NVDIMM keeps what its namespaces are.
const NVDIMM_LABEL_BYTES: u64 = 2 << 20;

/// What a virtual machine is made of.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel: an ELF file or a compressed image.
    pub kernel: PathBuf,
    /// Whether it is a program, which needs no QEMU: see [`user_mode`].
    pub is_user_mode: bool,
    /// The archive made by [`crate::initramfs`].
    pub initramfs: PathBuf,
    /// QEMU's accelerator.
    pub accelerator: String,
    /// Memory.
    pub memory_mib: u32,
    /// Processors.
    pub processors: u32,
    /// Networks: this machine is 10.0.2.2 in the first, 10.0.3.2 in the second.
    pub networks: usize,
    /// Ports of the host's loopback that lead to ports of the guest.
    pub forwarded: Vec<(u16, u16)>,
    /// Whether PCI devices are confined by an IOMMU.
    pub has_iommu: bool,
    /// More of the kernel's arguments.
    pub kernel_arguments: String,
    /// More of QEMU's arguments: disks and other devices.
    pub devices: Vec<String>,
    /// Persistent memory.
    pub nvdimms: Option<Nvdimms>,
    /// For the guest's files: sockets, console, logs. Short, as the path of a Unix socket may have 107 bytes.
    pub folder: PathBuf,
}

/// NVDIMMs of one size. What the guest stores is in the files at once.
#[derive(Clone, Debug)]
pub struct Nvdimms {
    /// One for each.
    pub files: Vec<PathBuf>,
    /// Of each file.
    pub size_bytes: u64,
}

impl Nvdimms {
    fn arguments(&self) -> Vec<String> {
        let one = |(index, file): (usize, &PathBuf)| {
            let (file, size) = (file.display(), self.size_bytes);
            [
                "-object".to_owned(),
                format!("memory-backend-file,id=memory{index},share=on,mem-path={file},size={size},pmem=off"),
                "-device".to_owned(),
                format!("nvdimm,id=nvdimm{index},memdev=memory{index},label-size={NVDIMM_LABEL_BYTES}"),
            ]
        };
        self.files.iter().enumerate().flat_map(one).collect()
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    is_user_mode: bool,
    process: Arc<Mutex<Child>>,
    folder: PathBuf,
    lines: Receiver<String>,
    control: UnixStream,
}

/// The power switch of a guest.
#[derive(Clone, Debug)]
pub struct Switch(Arc<Mutex<Child>>);

impl Switch {
    /// Cuts the power, unless it is off: not one more instruction, and nothing is written out that QEMU still holds.
    ///
    /// # Errors
    ///
    /// The system cannot kill it.
    pub fn cut(&self) -> Result<()> {
        let mut process = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        process.kill().context("killing qemu")?;
        process.wait().context("waiting for qemu")?;
        Ok(())
    }
}

impl Machine {
    fn command(&self) -> Result<Command> {
        let qemu = &host::programs(&["qemu-system-x86_64", "setpriv"])?[0];
        let folder = self.folder.display();
        let mut command = host::mortal(qemu);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        // The IOMMU's interrupts are emulated with the rest, and it comes before what it confines.
        let mut machine = String::from(if self.has_iommu { "q35,kernel-irqchip=off" } else { "q35" });
        let mut memory = format!("{}M", self.memory_mib);
        if let Some(nvdimms) = &self.nvdimms {
            // What has reached the memory controller is safe (ADR).
            machine += ",nvdimm=on,nvdimm-persistence=mem-ctrl";
            let slots = nvdimms.files.len();
            let most = u64::from(self.memory_mib) + (nvdimms.size_bytes >> 20) * slots as u64;
            memory += &format!(",slots={slots},maxmem={}M", most.next_multiple_of(1024));
        }
        command.args(["-machine", &machine, "-m", &memory]);
        if self.has_iommu {
            command.args(["-device", "intel-iommu,intremap=on,caching-mode=on"]);
        }
        command.args(["-accel", &self.accelerator, "-cpu", "max,la57=off", "-smp", &self.processors.to_string()]);
        command.args(self.nvdimms.iter().flat_map(Nvdimms::arguments));
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        command.args(["-serial", &format!("file:{folder}/console.log")]);
        command.args(["-qmp", &format!("unix:{folder}/qmp,server=on,wait=off")]);
        command.args(["-device", "virtio-serial-pci"]);
        command.args(["-chardev", &format!("file,id=log,path={folder}/payload.log")]);
        command.args(["-device", "virtserialport,chardev=log,name=lab.log"]);
        command.args(["-chardev", &format!("socket,id=control,path={folder}/control")]);
        command.args(["-device", "virtserialport,chardev=control,name=lab.control"]);
        for number in 0..self.networks {
            let mut network = format!("user,id=net{number},net=10.0.{}.0/24", 2 + number);
            if number == 0 {
                let forward = |(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
                network.extend(self.forwarded.iter().copied().map(forward));
            }
            command.args(["-netdev", &network, "-device", &format!("virtio-net-pci,netdev=net{number}")]);
        }
        command.args(&self.devices);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        // On a loaded machine the timer that the kernel tries its interrupts with is late, and with an IOMMU it gives up.
        let iommu = if self.has_iommu { "intel_iommu=on no_timer_check" } else { "" };
        command.args(["-append", &format!("{KERNEL_ARGUMENTS} {iommu} {}", self.kernel_arguments)]);
        Ok(command)
    }

    /// Switches it on.
    ///
    /// # Errors
    ///
    /// QEMU is missing or refuses its arguments.
    pub fn boot(&self) -> Result<Guest> {
        fs::create_dir_all(&self.folder).with_context(|| format!("making {}", self.folder.display()))?;
        let (process, control) = if self.is_user_mode { user_mode::start(self)? } else { self.start()? };
        let (is_user_mode, folder) = (self.is_user_mode, self.folder.clone());
        let lines = listen(control.try_clone()?);
        Ok(Guest { is_user_mode, process: Arc::new(Mutex::new(process)), folder, lines, control })
    }

    /// Starts QEMU; the control line.
    fn start(&self) -> Result<(Child, UnixStream)> {
        let path = self.folder.join("control");
        // The last guest's, if this one has been switched off and on.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).with_context(|| format!("listening at {}", path.display()))?;
        listener.set_nonblocking(true)?;
        let output = File::create(self.folder.join("qemu.log"))?;
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut process = command.spawn().context("starting qemu")?;
        match accept(&listener, &mut process) {
            Ok(control) => Ok((process, control)),
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                let said = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
                Err(error.context(said.trim().to_owned()))
            }
        }
    }
}

/// QEMU's end of the control line.
fn accept(listener: &UnixListener, process: &mut Child) -> Result<UnixStream> {
    let start = Instant::now();
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            return Ok(stream);
        }
        if let Some(status) = process.try_wait()? {
            bail!("qemu ended at once: {status}");
        }
        if start.elapsed() > PORTS_PATIENCE {
            bail!("qemu does not open its ports");
        }
        thread::sleep(POLL);
    }
}

/// The guest's lines, until its end.
fn listen(stream: UnixStream) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Guest {
    /// Waits for the payload's event `word` and returns what follows the word.
    ///
    /// # Errors
    ///
    /// The guest ends, reaches another event, or takes longer than `patience`.
    pub fn event(&mut self, word: &str, patience: Duration) -> Result<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => {
                let (found, rest) = line.split_once(' ').unwrap_or((&line, ""));
                if found != word {
                    bail!("the guest reached '{line}' and not '{word}'");
                }
                Ok(rest.to_owned())
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest did not reach '{word}' within {patience:?}\n{}", self.logs())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.process().wait()?;
                bail!("the guest ended before '{word}': {:?}\n{}", self.outcome(status), self.logs())
            }
        }
    }

    /// Sends the payload a word that it awaits.
    ///
    /// # Errors
    ///
    /// The guest is gone.
    pub fn tell(&mut self, word: &str) -> Result<()> {
        writeln!(self.control, "{word}").with_context(|| format!("telling the guest '{word}'"))
    }

    /// Whether it runs.
    ///
    /// # Errors
    ///
    /// The system cannot say.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.process().try_wait()?.is_none())
    }

    /// Has a device taken out, as by the button of a hot-plug slot: QEMU asks the guest for it.
    ///
    /// # Errors
    ///
    /// QEMU does not do it.
    pub fn unplug(&self, device: &str) -> Result<()> {
        self.order("device_del", &json!({ "id": device }))
    }

    /// Cuts one of its networks, or mends it. Nobody is told.
    ///
    /// # Errors
    ///
    /// QEMU, or the system, does not do it.
    pub fn link(&self, network: usize, is_up: bool) -> Result<()> {
        if self.is_user_mode {
            return user_mode::link(network, is_up);
        }
        self.order("set_link", &json!({ "name": format!("net{network}"), "up": is_up }))
    }

    /// Gives QEMU an order over its monitor (QMP).
    ///
    /// # Errors
    ///
    /// QEMU does not do it.
    pub fn order(&self, command: &str, arguments: &Value) -> Result<()> {
        let mut monitor = UnixStream::connect(self.folder.join("qmp")).context("connecting to qemu")?;
        monitor.set_read_timeout(Some(PORTS_PATIENCE))?;
        writeln!(monitor, "{}", json!({ "execute": "qmp_capabilities" }))?;
        writeln!(monitor, "{}", json!({ "execute": command, "arguments": arguments }))?;
        // A greeting, and two answers; events come between.
        let mut answers =
            BufReader::new(monitor).lines().map_while(Result::ok).filter(|line| !line.contains("\"event\""));
        for _ in 0..3 {
            let answer = answers.next().context("qemu does not answer")?;
            if answer.contains("\"error\"") {
                bail!("qemu: {command} {arguments}: {answer}");
            }
        }
        Ok(())
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// The system cannot say.
    pub fn finish(&mut self, patience: Duration) -> Result<Outcome> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process().try_wait()? {
                return Ok(self.outcome(status));
            }
            if start.elapsed() > patience {
                self.cut()?;
                return Ok(Outcome::Timeout);
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for the end, which must be the payload's with exit code 0.
    ///
    /// # Errors
    ///
    /// Any other end, with the tail of the logs.
    pub fn succeed(&mut self, patience: Duration) -> Result<()> {
        match self.finish(patience)? {
            Outcome::Exit(0) => Ok(()),
            outcome => bail!("the guest ended with {outcome:?}\n{}", self.logs()),
        }
    }

    /// Cuts its power: not one more instruction, and nothing is written out that QEMU still holds.
    ///
    /// # Errors
    ///
    /// The system cannot kill it.
    pub fn cut(&mut self) -> Result<()> {
        self.switch().cut()
    }

    /// What cuts its power, for another thread.
    #[must_use]
    pub fn switch(&self) -> Switch {
        Switch(Arc::clone(&self.process))
    }

    /// Has it stand still while time goes on: as a machine that hangs.
    ///
    /// # Errors
    ///
    /// The system cannot.
    pub fn hang(&self) -> Result<()> {
        let process = i32::try_from(self.process().id())?;
        kill(Pid::from_raw(process), Signal::SIGSTOP).context("stopping qemu")
    }

    fn process(&self) -> MutexGuard<'_, Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that no device has reached for memory that is not its own: the kernel would have said so.
    ///
    /// # Errors
    ///
    /// One has; or there is no console.
    pub fn no_iommu_fault(&self) -> Result<()> {
        let console = fs::read(self.folder.join("console.log")).context("reading the console")?;
        let console = String::from_utf8_lossy(&console);
        match console.lines().find(|line| line.contains("DMAR:") && line.contains("fault addr")) {
            Some(line) => bail!("the IOMMU has stopped a device: {line}"),
            None => Ok(()),
        }
    }

    fn outcome(&self, status: ExitStatus) -> Outcome {
        let console = fs::read(self.folder.join("console.log")).unwrap_or_default();
        match (console::outcome(&console), status.code()) {
            // isa-debug-exit makes odd numbers; anything else is an end that the guest did not ask for.
            (Some(Outcome::Exit(code)), Some(number)) if self.is_user_mode || number % 2 == 1 => Outcome::Exit(code),
            (Some(Outcome::Panic(words)), _) => Outcome::Panic(words),
            _ => Outcome::Died(format!("{status}, signal {:?}", status.signal())),
        }
    }

    /// The tails of what the guest said, for an error message.
    #[must_use]
    pub fn logs(&self) -> String {
        let tail = |name: &str| {
            let text = fs::read(self.folder.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n  ");
            if tail.is_empty() {
                String::new()
            } else {
                format!("--- {}\n  {tail}\n", self.folder.join(name).display())
            }
        };
        ["payload.log", "console.log", "qemu.log"].map(tail).concat()
    }

    /// The guest's files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.cut();
    }
}
