//! A guest whose kernel is a process: user-mode Linux, at nearly native speed (Documentation/virt/uml/user_mode_linux_howto_v2.rst of the kernel).
//!
//! It has no emulated hardware, so only scenarios run with it that need none. In place of virtual serial ports the control line and the payload's output are
//! serial lines, joined to standard input and error; the console is standard output. Its networks are TAP devices in a network namespace that the lab makes for
//! itself and everything that it starts: this machine's own networks are not touched.

use crate::{
    host::{self, Missing},
    kernel::{self, Kernel, SOURCE},
    machine::Machine,
    scenarios::Scenario,
};
use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::geteuid,
};
use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command},
    thread,
};

/// Scenarios that need no device and no address of QEMU's.
const SCENARIOS: [&str; 1] = ["nvme-multipath"];
/// Networks that a guest may have.
const NETWORKS: usize = 2;
/// What the kernel has that its own defaults have not.
const CONFIG: &str = include_str!("../guest/user-mode.config");
const PROGRAM: &str = "linux";

/// Builds the kernel into `folder`; what is there already is kept.
///
/// # Errors
///
/// A program is missing, the package cannot be downloaded, or it does not build.
pub fn build(folder: &Path) -> Result<Kernel> {
    if let Ok(kernel) = find(folder) {
        return Ok(kernel);
    }
    host::programs(&["make", "gcc", "flex", "bison", "bc", "xz", "tar"])?;
    let download = kernel::download(&[SOURCE], folder)?;
    let archive = download.path().join("tree/usr/src").join(format!("{SOURCE}.tar.xz"));
    host::output(Command::new("tar").arg("-xf").arg(archive).current_dir(download.path()))?;
    let source = download.path().join(SOURCE);
    fs::write(source.join("lab.config"), CONFIG)?;
    make_room_for_registers(&source.join("arch/x86/um/user-offsets.c"))?;
    let make = |arguments: &[&str]| {
        host::output(Command::new("make").arg("ARCH=um").args(arguments).current_dir(&source)).map(drop)
    };
    make(&["defconfig"])?;
    host::output(
        Command::new("scripts/kconfig/merge_config.sh").args(["-m", ".config", "lab.config"]).current_dir(&source),
    )?;
    make(&["olddefconfig"])?;
    make(&["-j", &thread::available_parallelism()?.to_string(), PROGRAM])?;
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // Whole or not at all, on one file system: the source lies beside.
    fs::rename(source.join(PROGRAM), folder.join(PROGRAM))?;
    find(folder)
}

/// This kernel saves 2696 bytes of vector registers, and processors with AMX have 11008: then no process starts. Later kernels ask how many there are.
fn make_room_for_registers(source: &Path) -> Result<()> {
    let text = fs::read_to_string(source).with_context(|| format!("reading {}", source.display()))?;
    let (few, many) = ("HOST_FP_SIZE, 2696", "HOST_FP_SIZE, 16384");
    ensure!(text.contains(few), "{} does not say {few}", source.display());
    fs::write(source, text.replace(few, many)).with_context(|| format!("writing {}", source.display()))
}

/// The kernel that was built into `folder`.
///
/// # Errors
///
/// There is none.
pub fn find(folder: &Path) -> Result<Kernel> {
    let image = folder.join(PROGRAM);
    if !image.is_file() {
        let image = image.display();
        bail!(Missing(format!("no {image}: run `cargo run -p twinlog-lab -- kernel --user-mode`")));
    }
    let version = host::output(Command::new(&image).arg("--version"))?;
    Ok(Kernel { version: format!("{} in user mode", version.trim()), image, modules: None })
}

/// Whether these scenarios can run so.
///
/// # Errors
///
/// One cannot, or not so many at a time, or not as this user.
pub fn check(scenarios: &[&Scenario], jobs: u8) -> Result<()> {
    if let Some(other) = scenarios.iter().find(|scenario| !SCENARIOS.contains(&scenario.name)) {
        bail!(Missing(format!("{} needs QEMU; in user mode there is {}", other.name, SCENARIOS.join(", "))));
    }
    if jobs > 1 {
        bail!(Missing("guests in user mode share their networks: one at a time".to_owned()));
    }
    if !geteuid().is_root() {
        bail!(Missing("guests in user mode have networks that only root can make".to_owned()));
    }
    host::programs(&["ip"]).map(drop)
}

/// Moves this process, and what it starts from now on, to a network namespace of their own, with the guests' networks. The loopback addresses of that
/// namespace can be reached from them, as those of this machine can from QEMU's.
///
/// # Errors
///
/// The system does not let it.
pub fn join_networks() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
    ip(&["link", "set", "lo", "up"])?;
    for number in 0..NETWORKS {
        let device = device(number);
        ip(&["tuntap", "add", "dev", &device, "mode", "tap"])?;
        ip(&["addr", "add", &format!("10.0.{}.2/24", 2 + number), "dev", &device])?;
        ip(&["link", "set", &device, "up"])?;
        link(number, true)?;
    }
    Ok(())
}

/// Cuts a network, or mends it: packets for a loopback address, and from one, are dropped. The device stays up, as its driver in the guest does not get over an
/// error of it.
///
/// # Errors
///
/// The system does not do it.
pub(crate) fn link(number: usize, is_up: bool) -> Result<()> {
    let setting = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", device(number));
    fs::write(&setting, if is_up { "1" } else { "0" }).with_context(|| format!("writing {setting}"))
}

fn device(number: usize) -> String {
    format!("tap{number}")
}

fn ip(arguments: &[&str]) -> Result<()> {
    host::output(Command::new("ip").args(arguments)).map(drop)
}

/// Starts a guest: its process, and the control line.
pub(crate) fn start(machine: &Machine) -> Result<(Child, UnixStream)> {
    let Machine { folder, kernel, initramfs, memory_mib, networks, .. } = machine;
    ensure!(*networks <= NETWORKS && machine.devices.is_empty(), "a guest in user mode has no such devices");
    let (control, end) = UnixStream::pair()?;
    let mut command = host::mortal(kernel);
    command.args([format!("mem={memory_mib}M"), format!("initrd={}", initramfs.display())]);
    command.args([format!("uml_dir={}/", folder.display()), "umid=guest".to_owned()]);
    command.args(["con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:0,fd:0", "ssl1=null,fd:2"]);
    command.args(
        (0..*networks).map(|number| format!("vec{number}:transport=tap,ifname={},depth=128,gro=1", device(number))),
    );
    // What the kernel does not know is a variable of its first process.
    command.args(["quiet", "loglevel=4", "panic=-1", "user_mode=1"]);
    command.args(machine.kernel_arguments.split_whitespace());
    command.stdin(OwnedFd::from(end));
    command.stdout(File::create(folder.join("console.log"))?);
    command.stderr(File::create(folder.join("payload.log"))?);
    let process = command.spawn().context("starting a kernel in user mode")?;
    Ok((process, control))
}
