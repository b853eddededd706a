//! NVMe controllers that this process drives: found by serial, opened once, shared by all reactors, shut down at the end.
//!
//! A serial is remembered by whoever bound the controller; what the controller says of itself decides, before a byte of its namespaces is touched.

use super::{
    reservation,
    storage::{QUEUE_DEPTH, patiently},
};
use crate::cli::{
    device::{Machine, place},
    output::{Exit, Failure},
    pause,
};
use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    time::Duration,
};
use twinlog::{
    base::limits::BLOCK_BYTES,
    control::config::{Fua, NvmeConfig, NvmeName},
    pair::reservation::Claim,
    reactor::IdlePolicy,
};
use twinlog_device::{BlockDevice, BlockPool, Nanos, Token};
use twinlog_nvme::{Clock, Controller, ControllerOptions, ControllerState, HostId, NvmeDisk, OpenError};
use twinlog_pci::PciError;
use twinlog_uring::monotonic;
use twinlog_vfio::VfioFunction;

/// Namespaces of one controller that a node has open; each reactor has a queue to each.
const NAMESPACES_MAX: u16 = 4;
/// How long a controller that another process has is tried again: that process may be ending.
const IN_USE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Between two looks at a controller that starts or stops, which takes it milliseconds to seconds.
const LOOK: Duration = Duration::from_millis(1);
/// Between two looks at a read that somebody waits for.
const READ_LOOK: Duration = Duration::from_micros(20);

/// A queue to a namespace.
pub(super) type NvmeQueue<C> = NvmeDisk<VfioFunction, C>;

/// The clock of whoever is no reactor.
pub(super) struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> Nanos {
        monotonic()
    }
}

/// A namespace of a controller that serves.
#[derive(Clone)]
pub(super) struct Namespace {
    name: NvmeName,
    controller: Controller<VfioFunction>,
}

impl Namespace {
    pub(super) fn new(name: NvmeName, controller: Controller<VfioFunction>) -> Self {
        Self { name, controller }
    }

    /// As a person has configured it.
    pub(super) fn name(&self) -> String {
        self.name.to_string()
    }

    /// One more queue to it.
    pub(super) fn queue<C: Clock>(&self, clock: C) -> Result<NvmeQueue<C>, Failure> {
        self.controller.open(self.name.namespace, clock).map_err(|error| refused(&self.name, &error))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.facts().map_or(0, |facts| facts.block_count * BLOCK_BYTES)
    }

    fn facts(&self) -> Option<twinlog_nvme::Namespace> {
        let found = self.controller.namespaces().into_iter().find(|(number, _)| *number == self.name.namespace);
        found.and_then(|(_, found)| found.ok())
    }

    /// Whether a pool's owner can keep everybody else from writing to it.
    pub(super) fn can_reserve(&self) -> bool {
        self.facts().is_some_and(|facts| facts.can_reserve(reservation::KIND))
    }

    /// Takes its reservation, as far as that is right. Waits for the controller.
    pub(super) fn hold(&self, claim: &Claim, host: HostId) -> Result<(), Failure> {
        let mut queue = self.queue(Monotonic)?;
        let held = reservation::hold(&mut queue, claim, host, || pause(READ_LOOK));
        held.map_err(|message| Failure::new(Exit::Refused, message, "twinlog pair explain"))
    }

    /// It, to be read by a thread that waits; with memory from `blocks`, which the controller can reach.
    pub(super) fn reader(&self, blocks: &BlockPool) -> Result<Reader, Failure> {
        Ok(Reader { queue: RefCell::new(self.queue(Monotonic)?), blocks: blocks.clone() })
    }
}

/// How controllers are used by so many reactors that wait so.
pub(super) fn options(
    reactor_count: u16,
    idle: IdlePolicy,
    host_id: Option<HostId>,
    config: NvmeConfig,
) -> ControllerOptions {
    ControllerOptions {
        // And one each for whoever reads a device before a reactor does, opens a pool, and fences the partner.
        disk_count: NAMESPACES_MAX * reactor_count + 3,
        queue_depth: u16::try_from(QUEUE_DEPTH).expect("small"),
        host_id,
        interrupts: idle == IdlePolicy::Adaptive,
        ignores_fua: config.fua == Fua::Flush,
        ..ControllerOptions::default()
    }
}

/// Starts the controller with a serial, for whoever has memory from `blocks`.
pub(super) fn start(
    name: &NvmeName,
    blocks: &BlockPool,
    options: ControllerOptions,
) -> Result<Controller<VfioFunction>, Failure> {
    let serial = &name.serial;
    let place = place(&Machine::this(), serial)?;
    let in_use =
        |error: &PciError| if kind(error) == ErrorKind::ResourceBusy { IN_USE_WAIT_MAX } else { Duration::ZERO };
    let function = patiently(|| VfioFunction::open(&place.address), in_use);
    let function = function.map_err(|error| refused(name, &OpenError::Function(error)))?;
    let controller =
        Controller::start(function, &[blocks], options, monotonic()).map_err(|error| refused(name, &error))?;
    loop {
        match controller.poll(monotonic()) {
            ControllerState::Starting => pause(LOOK),
            ControllerState::Live => break,
            ControllerState::Failed(failure) => {
                return Err(refused(name, &OpenError::Controller(place.address, failure)));
            }
        }
    }
    let says = controller.identity().map(|identity| identity.serial).unwrap_or_default();
    if says != *serial {
        let message = format!(
            "the controller at {} is {says}, and not {serial}: it was exchanged while it was bound",
            place.address
        );
        return Err(Failure::new(Exit::Refused, message, "twinlog device unbind SERIAL, then bind it again"));
    }
    Ok(controller)
}

/// Tells a controller that its power may go.
pub(super) fn shut_down(controller: &Controller<VfioFunction>) {
    controller.shut_down(monotonic());
    while !matches!(controller.poll(monotonic()), ControllerState::Failed(_)) {
        pause(LOOK);
    }
}

fn kind(error: &PciError) -> ErrorKind {
    match error {
        PciError::Refused { source, .. } => source.kind(),
        PciError::NoWindow { .. } | PciError::NoVector { .. } => ErrorKind::Other,
    }
}

/// Why a namespace cannot be had, with what mends it.
fn refused(name: &NvmeName, error: &OpenError) -> Failure {
    let serial = &name.serial;
    let (exit, hint) = match error {
        OpenError::Function(error) => match kind(error) {
            ErrorKind::PermissionDenied => (Exit::Error, format!("as root: twinlog device bind {serial} --user USER")),
            ErrorKind::ResourceBusy => (Exit::Refused, "`twinlog status`; stop the other program first".to_owned()),
            ErrorKind::OutOfMemory => {
                let unit = "LimitMEMLOCK=infinity in the systemd unit, or `ulimit -l unlimited`";
                (Exit::Error, format!("{unit}; or a smaller `limit` in [memory] of node.toml"))
            }
            _ => (Exit::Error, "twinlog doctor".to_owned()),
        },
        OpenError::NoSeat(..) => {
            (Exit::Error, format!("a node uses at most {NAMESPACES_MAX} namespaces of a controller"))
        }
        OpenError::NoNamespace(..) => (
            Exit::Error,
            format!("nvme:{serial}/NUMBER; which there are shows `twinlog device list`, before it is bound"),
        ),
        OpenError::Controller(..) | OpenError::Starting(_) | OpenError::Namespace(..) => {
            (Exit::Error, "twinlog device unbind SERIAL, and see what the kernel says of it: dmesg".to_owned())
        }
    };
    Failure::new(exit, format!("{name}: {error}"), hint)
}

/// A namespace that is read by a thread that waits.
pub(crate) struct Reader {
    queue: RefCell<NvmeQueue<Monotonic>>,
    blocks: BlockPool,
}

impl Reader {
    pub(super) fn size_bytes(&self) -> u64 {
        self.queue.borrow().info().block_count * BLOCK_BYTES
    }

    /// Fills `bytes` from `offset` on.
    pub(super) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let within = usize::try_from(at % BLOCK_BYTES).expect("less than a block");
            let block = self.read_block(at / BLOCK_BYTES)?;
            let part = &block[within..];
            let count = part.len().min(bytes.len() - done);
            bytes[done..done + count].copy_from_slice(&part[..count]);
            done += count;
        }
        Ok(())
    }

    fn read_block(&self, block: u64) -> io::Result<Vec<u8>> {
        let mut queue = self.queue.borrow_mut();
        let buffer = self.blocks.allocate().ok_or(ErrorKind::OutOfMemory)?;
        queue.read(Token(0), block, vec![buffer]);
        let mut completions = Vec::new();
        loop {
            // It ends: with an answer, or because the controller does not give one in time.
            queue.poll(&mut completions);
            match completions.pop() {
                Some(completion) => {
                    completion.result.map_err(io::Error::other)?;
                    return Ok(completion.blocks[0].to_vec());
                }
                None => pause(READ_LOOK),
            }
        }
    }
}
