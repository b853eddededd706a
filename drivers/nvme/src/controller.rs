//! A controller as its users see it.

use crate::{
    ControllerIdentity, Failure, Health, LoggedError, Namespace, NvmeDisk, Unsupported, Watch,
    admin::Admin,
    core::{ControllerOptions, ControllerState, Core, Next},
    health::Condition,
    lock::Lock,
    prp::PAGES_MAX,
    queue::{DISCARD_LBAS_MAX, Seat, ZERO_LBAS_MAX},
    registers::Controls,
};
use std::{
    cell::Cell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use thiserror::Error;
use twinlog_device::{BlockPool, DeviceError, DeviceHealth, DeviceInfo, DurabilityClass, Nanos};
use twinlog_pci::{PciError, PciFunction, PoolMap};

/// Where a disk's time comes from: the monotonic clock of its reactor.
pub trait Clock {
    /// Now.
    fn now(&self) -> Nanos;
}

impl Clock for Rc<Cell<Nanos>> {
    fn now(&self) -> Nanos {
        self.get()
    }
}

/// Why a controller or a namespace cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The function cannot be used.
    #[error(transparent)]
    Function(#[from] PciError),
    /// The controller does not serve.
    #[error("{0}: {1}")]
    Controller(String, Failure),
    /// The controller is still being brought up.
    #[error("{0}: the controller does not serve yet")]
    Starting(String),
    /// There is no such namespace.
    #[error("{0}: there is no active namespace {1}")]
    NoNamespace(String, u32),
    /// The namespace cannot be used.
    #[error("{0}: namespace {1} cannot be used: {2}")]
    Namespace(String, u32, Unsupported),
    /// As many disks are open as was said at the start.
    #[error("{0}: no further disk: the controller was opened for {1}")]
    NoSeat(String, u16),
}

pub(crate) struct Shared<F: PciFunction> {
    core: Lock<Core<F>>,
    /// Whether the core is live: other states want every poll.
    is_live: AtomicBool,
    /// For whoever asks how it is: held for moments only, whatever the controller is doing.
    condition: Lock<Told>,
}

/// How a controller is, and what it failed.
struct Told {
    condition: Condition,
    error_count: u64,
    newest_error: Option<DeviceError>,
}

impl<F: PciFunction> Shared<F> {
    pub(crate) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::Relaxed)
    }

    /// Lets the controller take one turn, unless another thread does so just now.
    pub(crate) fn look(&self, now: Nanos) {
        if let Some(mut core) = self.core.attempt() {
            core.poll(now);
            self.note(&core);
        }
    }

    fn note(&self, core: &Core<F>) {
        self.is_live.store(core.state() == ControllerState::Live, Ordering::Relaxed);
        self.condition.wait().condition = core.condition();
    }

    /// One of its operations has failed.
    pub(crate) fn note_error(&self, error: &DeviceError) {
        let mut told = self.condition.wait();
        told.error_count += 1;
        told.newest_error = Some(error.clone());
    }

    /// How it is.
    pub(crate) fn health(&self) -> DeviceHealth {
        let told = self.condition.wait();
        let (error_count, newest_error) = (told.error_count, told.newest_error.clone());
        DeviceHealth { error_count, newest_error, ..told.condition.tell() }
    }
}

/// One controller. Clones are the same; the last of them and of its disks to go resets it.
pub struct Controller<F: PciFunction>(pub(crate) Arc<Shared<F>>);

impl<F: PciFunction> Clone for Controller<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: PciFunction> Controller<F> {
    /// Takes and resets a function, makes `pools` known to it, and begins to bring the controller up; [`Self::poll`] goes on.
    ///
    /// # Errors
    /// When the function cannot be used, or is no controller that this driver knows.
    pub fn start(function: F, pools: &[&BlockPool], options: ControllerOptions, now: Nanos) -> Result<Self, OpenError> {
        let address = function.identity().address.clone();
        let refuse = |unsupported| OpenError::Controller(address.clone(), Failure::Unsupported(unsupported));
        let window = function.map_window(0)?;
        let controls = Controls::new(window).ok_or_else(|| refuse(Unsupported::Window))?;
        let capabilities = controls.capabilities();
        if controls.status().is_gone() {
            return Err(OpenError::Controller(address, Failure::Gone));
        }
        if !capabilities.has_nvm_commands() {
            return Err(refuse(Unsupported::CommandSet));
        }
        if capabilities.page_shift_min() != 0 {
            return Err(refuse(Unsupported::PageSize));
        }
        if capabilities.queue_entries_max() < 2 {
            return Err(refuse(Unsupported::QueueSize));
        }
        // What an earlier process left under way must not find our memory at its old addresses. Every controller has this reset (pcie 3.6).
        let is_idle = |controls: &Controls<_>| !controls.configuration().is_enabled() && !controls.status().is_ready();
        if function.reset().is_err() && !is_idle(&controls) {
            return Err(OpenError::Controller(address, Failure::Unstoppable));
        }
        let maps = pools.iter().map(|pool| function.map_pool(pool)).collect::<Result<Vec<PoolMap>, _>>()?;
        let admin = Admin::new(&function, controls.clone())?;
        let mut core = Core::new(function, controls, admin, maps.into(), options);
        core.stop(now, Next::Enable);
        let condition = Lock::new(Told { condition: core.condition(), error_count: 0, newest_error: None });
        Ok(Self(Arc::new(Shared { core: Lock::new(core), is_live: AtomicBool::new(false), condition })))
    }

    /// One bounded turn of the controller, and where it stands then. Polled disks do the same.
    pub fn poll(&self, now: Nanos) -> ControllerState {
        self.0.look(now);
        self.state()
    }

    /// Where the controller stands.
    #[must_use]
    pub fn state(&self) -> ControllerState {
        self.0.core.wait().state()
    }

    /// What it says of itself, once it was asked.
    #[must_use]
    pub fn identity(&self) -> Option<ControllerIdentity> {
        self.0.core.wait().identity.clone()
    }

    /// Its active namespaces, in order, and which of them cannot be used.
    #[must_use]
    pub fn namespaces(&self) -> Vec<(u32, Result<Namespace, Unsupported>)> {
        self.0.core.wait().namespaces.clone()
    }

    /// What its health log said last.
    #[must_use]
    pub fn health(&self) -> Option<Health> {
        self.0.core.wait().health
    }

    /// The newest entry of its error log, if an event asked to read it.
    #[must_use]
    pub fn latest_error(&self) -> Option<LoggedError> {
        self.0.core.wait().latest_error
    }

    /// How often it had to be reset.
    #[must_use]
    pub fn reset_count(&self) -> u64 {
        self.0.core.wait().reset_count()
    }

    /// Announces to a controller that serves that its power may go (base 3.6.1). Operations in flight should have ended; those that
    /// have not end with `Gone`. [`Self::poll`] says `Failed(ShutDown)` when it is done.
    pub fn shut_down(&self, now: Nanos) {
        let mut core = self.0.core.wait();
        core.shut_down(now);
        self.0.note(&core);
    }

    /// Opens a disk on a namespace, for the reactor of `clock`.
    ///
    /// # Errors
    /// When the controller does not serve, has no such namespace, or has as many disks as it was opened for.
    pub fn open<C: Clock>(&self, namespace: u32, clock: C) -> Result<NvmeDisk<F, C>, OpenError> {
        let mut core = self.0.core.wait();
        let address = core.function.identity().address.clone();
        match core.state() {
            ControllerState::Live => {}
            ControllerState::Starting => return Err(OpenError::Starting(address)),
            ControllerState::Failed(failure) => return Err(OpenError::Controller(address, failure)),
        }
        let identity = core.identity.clone().expect("a live controller was identified");
        let found = match core.namespaces.iter().find(|(id, _)| *id == namespace) {
            None => return Err(OpenError::NoNamespace(address, namespace)),
            Some((_, Err(unsupported))) => return Err(OpenError::Namespace(address, namespace, *unsupported)),
            Some((_, Ok(found))) => found.clone(),
        };
        let transfer_max = u32::try_from(PAGES_MAX).expect("a small number");
        let info = DeviceInfo {
            name: format!("{}/{namespace}", if identity.serial.is_empty() { &address } else { &identity.serial }),
            block_count: found.block_count,
            sector_bytes: found.sector_bytes(),
            transfer_blocks_max: identity.transfer_blocks_max.min(transfer_max),
            queue_depth: core.depth.into(),
            can_discard: identity.can_deallocate,
            durability: DurabilityClass::Durable,
        };
        let seat = |info: &DeviceInfo| Seat {
            name: info.name.clone(),
            namespace,
            lba_shift: found.lba_shift,
            discard_lbas_max: DISCARD_LBAS_MAX,
            // What controllers allow beyond a transfer's size (WZSL, nvm 4.1.5.4) is not asked for.
            zero_lbas_max: (u64::from(identity.transfer_blocks_max) << found.lba_shift).min(ZERO_LBAS_MAX),
            has_write_cache: identity.has_write_cache,
            ignores_fua: identity.ignores_fua,
            has_sgls: identity.has_sgls,
            is_open: true,
            is_fenced: false,
            finished: Vec::new(),
            report: None,
        };
        // The queue with the fewest disks; where the controller granted one for each disk, that is an empty one.
        let queue = core.queues.iter().min_by_key(|queue| queue.wait().seat_count()).cloned();
        let queue = queue.expect("a live controller has a queue");
        let place = queue.wait().sit(seat(&info), core.seats_per_queue);
        let Some(place) = place else {
            return Err(OpenError::NoSeat(address, core.options.disk_count));
        };
        core.opened.push(namespace);
        let event = core.event_of(queue.wait().rings().id());
        drop(core);
        let watch = Watch::new(&self.0, &queue, event);
        Ok(NvmeDisk::new(self, (queue, place), (info, found, watch), &identity, clock))
    }
}
