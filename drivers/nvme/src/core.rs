//! One controller's life: stopped, enabled, brought up, watched, reset, failed.
//!
//! # Life cycle
//!
//! ```text
//!   start ------------+      +--- time-out, fatal status, not ready: recover, at most RESETS_MAX times in RESETS_WINDOW
//!                     v      v
//!   AwaitReady --> Disabling --> Settling --> Enabling --> BringUp --> Live --shut_down--> ShuttingDown
//!   (EN=1, RDY=0)     |             |  ^                                                       |
//!                     | late        |  +-- function reset                                      v
//!                     +-------------|---^                                     Disabling --> Settling --> Failed(ShutDown)
//!                                   v
//!                                Failed: gone, broken protocol, refused, unstable, changed, unstoppable
//! ```
//!
//! **Settling** is the one place where operations in flight are taken from a controller. It is entered when CSTS.RDY has gone from one to
//! zero after CC.EN was cleared (base 3.7.2: every queue is gone), when the function was reset, or when neither worked; in the last
//! case the queues keep what the controller has.

use crate::{
    ControllerIdentity, Failure, Health, HostId, LoggedError, Namespace, Unsupported,
    admin::{Admin, Purpose},
    bring_up::Step,
    deadline::PAUSE_MAX,
    health::Condition,
    lock::Lock,
    queue::{Patience, Queue, SLOTS_MAX},
    registers::Controls,
    spec::{
        AsynchronousEvent, Configuration, ErrorEntry, HealthLog, SubmissionEntry, admin_opcode, identify_kind, log_page,
    },
};
use std::{
    collections::{BTreeSet, VecDeque},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};
use twinlog_device::{DeviceErrorKind, Nanos};
use twinlog_pci::{PciFunction, PoolMap};

/// Resets in [`RESETS_WINDOW`], or since it served last, after which a controller is given up.
const RESETS_MAX: usize = 5;

/// See [`RESETS_MAX`].
const RESETS_WINDOW: Duration = Duration::from_secs(1200);

// One that pauses without an end, or does not say afterwards what it is, whenever it serves again, is given up.
const _: () = assert!(2 * PAUSE_MAX.as_secs() * (RESETS_MAX as u64) <= RESETS_WINDOW.as_secs());

/// The unit of CAP.TO.
const READY_UNIT: Duration = Duration::from_millis(500);

/// What a controller gets on top of the time it asks for.
const READY_SLACK: Duration = Duration::from_secs(1);

/// Least time for a shutdown, as the kernel's driver gives.
const SHUTDOWN_MIN: Duration = Duration::from_secs(5);

/// How often the health log is read without being asked for.
const HEALTH_INTERVAL: Duration = Duration::from_secs(60);

/// Event requests, and aborts, that this driver keeps in flight at most.
const EVENTS_MAX: u16 = 4;

/// See [`EVENTS_MAX`].
const ABORTS_MAX: u16 = 4;

/// How a controller is used.
#[derive(Clone, Copy, Debug)]
pub struct ControllerOptions {
    /// Disks that will be opened on it: namespaces times reactors. When the controller grants fewer queue pairs, disks share them.
    pub disk_count: u16,
    /// Operations in flight of each disk; fewer when the controller's queues are shorter.
    pub queue_depth: u16,
    /// Whether answers are to be signalled, where the way to the function has interrupts ([`crate::Watch`]). For reactors that never sleep, no.
    pub interrupts: bool,
    /// Until an operation is aborted.
    pub command_timeout: Duration,
    /// From the abort until the controller is reset.
    pub abort_timeout: Duration,
    /// Until an admin command that is not answered leads to a reset.
    pub admin_timeout: Duration,
    /// Who the host is, for reservations; none: the controller takes itself for a host of its own.
    pub host_id: Option<HostId>,
    /// Whether it is taken to ignore FUA, whatever its model: see [`ControllerIdentity::ignores_fua`].
    pub ignores_fua: bool,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            disk_count: 1,
            queue_depth: 128,
            interrupts: false,
            command_timeout: Duration::from_secs(10),
            abort_timeout: Duration::from_secs(2),
            admin_timeout: Duration::from_secs(10),
            host_id: None,
            ignores_fua: false,
        }
    }
}

/// Where a controller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// Being brought up, for the first time or after a reset; operations wait.
    Starting,
    /// Serves.
    Live,
    /// Does not serve any more: every operation ends with `Gone`.
    Failed(Failure),
}

/// What follows when the controller has stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    Enable,
    Fail(Failure),
}

#[derive(Debug)]
enum Phase {
    AwaitReady { deadline: Nanos, next: Next },
    Disabling { deadline: Nanos, next: Next },
    Settling { index: usize, has_stopped: bool, next: Next },
    Enabling { deadline: Nanos },
    BringUp(Step),
    Live,
    ShuttingDown { deadline: Nanos },
    Failed(Failure),
}

type QueueOf<F> = Queue<<F as PciFunction>::Registers, <F as PciFunction>::Memory>;

/// A queue that several disks may use, each from its own thread.
pub(crate) type SharedQueue<F> = Arc<Lock<QueueOf<F>>>;

/// What the controller must be told of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) id: u16,
    pub(crate) entries: u16,
    /// Where submissions and completions lie on the bus.
    pub(crate) addresses: [u64; 2],
    /// The interrupt vector of its answers.
    pub(crate) vector: Option<u16>,
}

pub(crate) struct Core<F: PciFunction> {
    pub(crate) function: F,
    pub(crate) controls: Controls<F::Registers>,
    pub(crate) admin: Admin<F::Registers, F::Memory>,
    pub(crate) maps: Arc<[PoolMap]>,
    pub(crate) options: ControllerOptions,
    phase: Phase,
    pub(crate) queues: Vec<SharedQueue<F>>,
    /// Of each queue.
    pub(crate) places: Vec<Place>,
    /// Event counters of the interrupt vectors in use, and the first of these vectors; none where nothing is signalled.
    pub(crate) events: Vec<Arc<OwnedFd>>,
    pub(crate) vector_first: u16,
    /// Disks of one queue, and operations of one disk.
    pub(crate) seats_per_queue: u16,
    pub(crate) depth: u16,
    pub(crate) opened: Vec<u32>,
    pub(crate) identity: Option<ControllerIdentity>,
    pub(crate) namespaces: Vec<(u32, Result<Namespace, Unsupported>)>,
    /// Namespaces found by the present bringing-up.
    pub(crate) listed: Vec<u32>,
    pub(crate) health: Option<Health>,
    pub(crate) latest_error: Option<LoggedError>,
    /// Event requests to keep in flight; none after one was refused.
    events_max: u16,
    /// Log pages to read: until they are, the controller is silent about events of their type.
    logs_wanted: BTreeSet<u8>,
    health_at: Nanos,
    resets: VecDeque<Nanos>,
    reset_count: u64,
    timeout_count: u64,
    change_count: u64,
    /// Since when it has paused.
    paused_at: Option<Nanos>,
    /// How often its firmware may have become another: after a pause, or as it has announced. And until when it must have been identified after that.
    doubt_count: u64,
    doubt: Option<Nanos>,
    /// For how long it has had its oldest command, at the last look.
    oldest: Duration,
}

impl<F: PciFunction> Core<F> {
    pub(crate) fn new(
        function: F,
        controls: Controls<F::Registers>,
        admin: Admin<F::Registers, F::Memory>,
        maps: Arc<[PoolMap]>,
        options: ControllerOptions,
    ) -> Self {
        Self {
            function,
            controls,
            admin,
            maps,
            options,
            phase: Phase::BringUp(Step::Controller),
            queues: Vec::new(),
            places: Vec::new(),
            events: Vec::new(),
            vector_first: 0,
            seats_per_queue: 1,
            depth: 0,
            opened: Vec::new(),
            identity: None,
            namespaces: Vec::new(),
            listed: Vec::new(),
            health: None,
            latest_error: None,
            events_max: EVENTS_MAX,
            logs_wanted: BTreeSet::new(),
            health_at: Nanos(0),
            resets: VecDeque::new(),
            reset_count: 0,
            timeout_count: 0,
            change_count: 0,
            paused_at: None,
            doubt_count: 0,
            doubt: None,
            oldest: Duration::ZERO,
        }
    }

    pub(crate) fn state(&self) -> ControllerState {
        match self.phase {
            Phase::Live => ControllerState::Live,
            Phase::Failed(failure) => ControllerState::Failed(failure),
            _ => ControllerState::Starting,
        }
    }

    /// The event counter of a queue's interrupts.
    pub(crate) fn event_of(&self, id: u16) -> Option<Arc<OwnedFd>> {
        let place = self.places.iter().find(|place| place.id == id)?;
        self.events.get(usize::from(place.vector? - self.vector_first)).cloned()
    }

    /// Resets since it was opened.
    pub(crate) fn reset_count(&self) -> u64 {
        self.reset_count
    }

    /// How it is.
    pub(crate) fn condition(&self) -> Condition {
        Condition {
            state: self.state(),
            health: self.health,
            reset_count: self.reset_count,
            timeout_count: self.timeout_count,
            change_count: self.change_count,
            oldest: self.oldest,
            is_paused: self.paused_at.is_some() || !self.is_known(),
            confined_by: self.function.confined_by(),
            flushes_writes: self.identity.as_ref().is_some_and(ControllerIdentity::flushes_writes),
        }
    }

    fn ready_timeout(&self) -> Duration {
        READY_UNIT * u32::from(self.controls.capabilities().timeout_units().max(1)) + READY_SLACK
    }

    /// One bounded turn.
    pub(crate) fn poll(&mut self, now: Nanos) {
        if let Phase::Settling { .. } = self.phase {
            return self.settle(now);
        }
        if let Phase::Failed(_) = self.phase {
            return;
        }
        let status = self.controls.status();
        if status.is_gone() {
            return self.lose();
        }
        if self.function.is_removed() && !self.is_ending() {
            // The kernel wants it back: it is still there, and may be writing.
            return self.stop(now, Next::Fail(Failure::Gone));
        }
        let is_given = matches!(self.phase, Phase::Enabling { .. } | Phase::BringUp(_) | Phase::Live);
        if is_given && status.is_ready() && !status.is_fatal() && status.is_paused() {
            return self.pause(now);
        }
        self.resume(now);
        match self.phase {
            Phase::AwaitReady { deadline, next } => {
                if status.is_ready() || status.is_fatal() || deadline <= now {
                    self.disable(now, next);
                }
            }
            Phase::Disabling { deadline, next } => {
                if !status.is_ready() {
                    self.phase = Phase::Settling { index: 0, has_stopped: true, next };
                } else if deadline <= now {
                    self.reset_function(next);
                }
            }
            Phase::Enabling { deadline } => {
                if status.is_ready() && !status.is_fatal() {
                    self.begin(Step::Controller, now);
                } else if status.is_fatal() || deadline <= now {
                    self.recover(now);
                }
            }
            Phase::BringUp(_) | Phase::Live if status.is_fatal() || !status.is_ready() => self.recover(now),
            Phase::BringUp(step) => self.receive_step(step, now),
            Phase::Live => self.watch(now),
            Phase::ShuttingDown { deadline } => {
                if status.is_shut_down() || status.is_fatal() || deadline <= now {
                    self.stop(now, Next::Fail(Failure::ShutDown));
                }
            }
            Phase::Settling { .. } | Phase::Failed(_) => {}
        }
    }

    /// Stops the controller, whatever it is doing, and goes on with `next`.
    pub(crate) fn stop(&mut self, now: Nanos, next: Next) {
        let status = self.controls.status();
        if status.is_gone() {
            return self.lose();
        }
        let is_enabled = self.controls.configuration().is_enabled();
        if !is_enabled && !status.is_ready() {
            self.phase = Phase::Settling { index: 0, has_stopped: true, next };
        } else if is_enabled && !status.is_ready() && !status.is_fatal() {
            // To clear EN before RDY is set has undefined results (base 3.1.3.5).
            self.phase = Phase::AwaitReady { deadline: now + self.ready_timeout(), next };
        } else {
            self.disable(now, next);
        }
    }

    /// Whether it is being stopped for good.
    fn is_ending(&self) -> bool {
        matches!(
            self.phase,
            Phase::AwaitReady { next: Next::Fail(_), .. } | Phase::Disabling { next: Next::Fail(_), .. }
        )
    }

    fn disable(&mut self, now: Nanos, next: Next) {
        let was_ready = self.controls.status().is_ready();
        self.controls.configure(Configuration::DISABLED);
        if was_ready || self.queues.is_empty() {
            self.phase = Phase::Disabling { deadline: now + self.ready_timeout(), next };
        } else {
            // Ready that goes away says that it has stopped; of one that was not ready nothing does.
            self.reset_function(next);
        }
    }

    fn reset_function(&mut self, next: Next) {
        self.phase = match self.function.reset() {
            Ok(()) => Phase::Settling { index: 0, has_stopped: true, next },
            Err(_) => Phase::Settling { index: 0, has_stopped: false, next: Next::Fail(Failure::Unstoppable) },
        };
    }

    /// The controller is not there any more.
    fn lose(&mut self) {
        // One that only does not answer has to be stopped. Of one that the kernel took away, too, there is nothing left to stop.
        let has_stopped = self.function.reset().is_ok() || self.function.is_removed();
        self.phase = Phase::Settling { index: 0, has_stopped, next: Next::Fail(Failure::Gone) };
    }

    /// Resets the controller, unless that was done too often.
    pub(crate) fn recover(&mut self, now: Nanos) {
        // Those after which it did not serve count, however long each took.
        let is_old = |then: &Nanos| now.since(*then) > RESETS_WINDOW;
        while matches!(self.phase, Phase::Live) && self.resets.front().is_some_and(is_old) {
            self.resets.pop_front();
        }
        if self.resets.len() >= RESETS_MAX {
            return self.stop(now, Next::Fail(Failure::Unstable));
        }
        self.resets.push_back(now);
        self.reset_count += 1;
        self.stop(now, Next::Enable);
    }

    fn settle(&mut self, now: Nanos) {
        let Phase::Settling { index, has_stopped, next } = &mut self.phase else { return };
        while let Some(queue) = self.queues.get(*index) {
            // Another thread is at this queue: it will be free at the next turn.
            let Some(mut queue) = queue.attempt() else { return };
            match next {
                Next::Enable => queue.rewind(now),
                Next::Fail(_) => queue.fail(DeviceErrorKind::Gone, *has_stopped),
            }
            *index += 1;
        }
        match *next {
            Next::Enable => self.enable(now),
            Next::Fail(failure) => {
                if !*has_stopped {
                    self.leak();
                }
                self.phase = Phase::Failed(failure);
            }
        }
    }

    fn enable(&mut self, now: Nanos) {
        self.logs_wanted.clear();
        (self.paused_at, self.doubt) = (None, None);
        self.events_max = EVENTS_MAX;
        self.admin.reset(&self.controls);
        if self.events.is_empty() {
            // With MSI-X in use the register has no meaning and must not be touched (base 3.1.3.3).
            self.controls.mask_interrupts();
        }
        self.controls.configure(Configuration::ENABLED);
        self.phase = Phase::Enabling { deadline: now + self.ready_timeout() };
    }

    pub(crate) fn set_step(&mut self, step: Step) {
        self.phase = Phase::BringUp(step);
    }

    /// Every step is done.
    pub(crate) fn set_live(&mut self, now: Nanos) {
        for index in 0..self.queues.len() {
            let Some(mut queue) = self.queues[index].attempt() else {
                // The step is taken again at the next turn: queues that are live already stay so.
                return self.set_step(Step::Live);
            };
            queue.set_live();
            if !self.is_known() {
                queue.pause(now);
            }
        }
        self.health_at = now;
        // It is asked from now on.
        self.doubt = self.doubt.map(|_| now + self.doubt_max());
        self.phase = Phase::Live;
    }

    /// The controller processes nothing for a while (base 3.1.3.6, CSTS.PP): it is given nothing, and nothing is late, for as long as it says that this may
    /// take at most, and at least as long as a command. Then it is reset.
    fn pause(&mut self, now: Nanos) {
        let since = *self.paused_at.get_or_insert(now);
        for queue in &self.queues {
            // Of a queue that another thread is at, at the next turn.
            if let Some(mut queue) = queue.attempt() {
                queue.pause(now);
            }
        }
        let said = self.identity.as_ref().map_or(Duration::ZERO, |identity| identity.activation);
        let patience = said.min(PAUSE_MAX).max(self.options.command_timeout + self.options.abort_timeout);
        if now.since(since) > patience {
            self.recover(now);
        }
    }

    /// The controller goes on, if it had paused; each queue does when it is watched for the first time.
    fn resume(&mut self, now: Nanos) {
        if let Some(since) = self.paused_at.take() {
            self.admin.postpone(now.since(since));
            self.suspect(now);
        }
    }

    /// Its firmware may have become another. What it has said of itself so far does not count; the time in which it must say so again goes on.
    fn suspect(&mut self, now: Nanos) {
        self.doubt_count += 1;
        self.doubt.get_or_insert(now + self.doubt_max());
    }

    /// How long it may take to say so: it is asked, pauses once more, and is asked again.
    fn doubt_max(&self) -> Duration {
        PAUSE_MAX + 2 * self.options.admin_timeout
    }

    /// Whether its identity is that of the firmware that it has. If not, the queues stay as they are in a pause: durable writes depend on it.
    fn is_known(&self) -> bool {
        self.doubt.is_none()
    }

    fn watch(&mut self, now: Nanos) {
        for _ in 0..self.admin.batch() {
            match self.admin.receive() {
                Err(violation) => return self.stop(now, Next::Fail(Failure::Violation(violation))),
                Ok(None) => break,
                Ok(Some(answer)) => match answer.purpose {
                    Purpose::Event if answer.status.is_success() => {
                        let event = AsynchronousEvent(answer.result);
                        self.change_count += u64::from(event.kind() == AsynchronousEvent::NAMESPACES_CHANGED);
                        // The pause that follows may be too short to be seen.
                        if event.kind() == AsynchronousEvent::FIRMWARE_STARTING && self.is_known() {
                            self.suspect(now);
                        }
                        self.logs_wanted.insert(event.log_page());
                    }
                    // It does not want so many, or none.
                    Purpose::Event => self.events_max = 0,
                    Purpose::Identity(count) if answer.status.is_success() => match self.take_identity() {
                        Ok(()) => self.doubt = self.doubt.filter(|_| count != self.doubt_count),
                        Err(failure) => return self.stop(now, Next::Fail(failure)),
                    },
                    // After a reset it has to say.
                    Purpose::Identity(_) => return self.recover(now),
                    Purpose::Log(log_page::HEALTH) if answer.status.is_success() => {
                        self.health = Some(Health::new(&self.admin.data::<HealthLog>(), now));
                    }
                    Purpose::Log(log_page::ERROR) if answer.status.is_success() => {
                        self.latest_error = LoggedError::new(&self.admin.data::<ErrorEntry>());
                    }
                    Purpose::Log(_) | Purpose::Abort | Purpose::Step => {}
                },
            }
        }
        let mut aborts = Vec::new();
        let mut is_hopeless = self.admin.is_late(now) || self.doubt.is_some_and(|until| until <= now);
        self.oldest = Duration::ZERO;
        let is_known = self.is_known();
        for queue in &self.queues {
            let Some(mut queue) = queue.attempt() else { continue };
            if is_known {
                queue.resume(now);
                self.oldest = self.oldest.max(queue.oldest(now));
                is_hopeless |= queue.watch(now, &mut aborts);
            } else {
                queue.pause(now);
            }
            if let Some(violation) = queue.violation() {
                drop(queue);
                return self.stop(now, Next::Fail(Failure::Violation(violation)));
            }
        }
        self.timeout_count += aborts.len() as u64;
        if is_hopeless {
            return self.recover(now);
        }
        self.ask(now, &aborts);
    }

    /// Sends what is due on the admin queue.
    fn ask(&mut self, now: Nanos, aborts: &[[u16; 2]]) {
        let deadline = now + self.options.admin_timeout;
        let identity = self.identity.as_ref().expect("a live controller was identified");
        let events_max = usize::from(identity.events_max.min(self.events_max));
        let aborts_max = usize::from(identity.aborts_max.min(ABORTS_MAX));
        for [queue, command] in aborts {
            if self.admin.count(|purpose| purpose == Purpose::Abort) >= aborts_max {
                break;
            }
            let which = u32::from(*queue) | u32::from(*command) << 16;
            self.admin.send(
                Purpose::Abort,
                SubmissionEntry::new(admin_opcode::ABORT, 0, [which, 0, 0, 0, 0, 0]),
                deadline,
            );
        }
        let has_data = |purpose| matches!(purpose, Purpose::Log(_) | Purpose::Identity(_));
        if self.admin.count(has_data) > 0 {
            // One after the other.
        } else if !self.is_known() {
            self.admin.clear_data();
            let entry = self.identify(identify_kind::CONTROLLER, 0);
            self.admin.send(Purpose::Identity(self.doubt_count), entry, deadline);
        } else {
            if now.since(self.health_at) >= HEALTH_INTERVAL {
                self.logs_wanted.insert(log_page::HEALTH);
            }
            if let Some(page) = self.logs_wanted.pop_first() {
                if page == log_page::HEALTH {
                    self.health_at = now;
                }
                self.admin.clear_data();
                let entry = self.log_request(page);
                self.admin.send(Purpose::Log(page), entry, deadline);
            }
        }
        while self.admin.count(|purpose| purpose == Purpose::Event) < events_max {
            let entry = SubmissionEntry::new(admin_opcode::EVENT, 0, [0; 6]);
            if !self.admin.send(Purpose::Event, entry, deadline) {
                break;
            }
        }
    }

    /// Asks for the first 512 bytes of a log page, which re-arms its event (RAE = 0).
    pub(crate) fn log_request(&self, page: u8) -> SubmissionEntry {
        const DWORDS: u32 = 512 / 4;
        let first = u32::from(page) | (DWORDS - 1) << 16;
        SubmissionEntry::new(admin_opcode::GET_LOG_PAGE, u32::MAX, [first, 0, 0, 0, 0, 0])
            .with_data([self.admin.data_address(), 0])
    }

    pub(crate) fn shut_down(&mut self, now: Nanos) {
        if let Phase::Live = self.phase {
            let asked = self.identity.as_ref().map_or(0, |identity| identity.shutdown_us);
            let patience = Duration::from_micros(asked.into()).max(SHUTDOWN_MIN);
            for queue in &self.queues {
                queue.wait().hold();
            }
            self.controls.configure(Configuration::ENABLED.shutting_down());
            self.phase = Phase::ShuttingDown { deadline: now + patience };
        } else if !matches!(self.phase, Phase::Failed(_) | Phase::ShuttingDown { .. }) {
            self.stop(now, Next::Fail(Failure::ShutDown));
        }
    }

    /// Shares of the queues, for `granted` of them: disks of one queue, operations of one disk, entries of a ring.
    pub(crate) fn shares(&self, granted: u16) -> Option<(u16, u16, u16)> {
        let seats = self.options.disk_count.max(1).div_ceil(granted);
        let slots = u32::from(self.options.queue_depth.max(1)) * u32::from(seats);
        let slots = slots.min(self.controls.capabilities().queue_entries_max() - 1).min(u32::from(SLOTS_MAX));
        let slots = u16::try_from(slots).expect("at most SLOTS_MAX");
        let depth = slots / seats;
        (depth > 0).then_some((seats, depth, depth * seats + 1))
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience { command: self.options.command_timeout, abort: self.options.abort_timeout }
    }

    /// Leaves all memory to a controller that may still use it.
    fn leak(&self) {
        self.admin.leak();
        std::mem::forget(self.queues.clone());
    }
}

impl<F: PciFunction> Drop for Core<F> {
    fn drop(&mut self) {
        if let Phase::Failed(_) = self.phase {
            // Settled: it has stopped, or has the memory for ever.
            return;
        }
        let has_stopped = self.function.reset().is_ok();
        for queue in &self.queues {
            if let Some(mut queue) = queue.attempt() {
                queue.fail(DeviceErrorKind::Gone, has_stopped);
            }
        }
        if !has_stopped {
            self.leak();
        }
    }
}
