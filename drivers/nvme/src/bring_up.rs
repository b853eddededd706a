//! The commands that make an enabled controller serve, one after the other.
//!
//! After a reset the same steps are taken again. What they find must be what was found before, as far as open disks depend on it.

use crate::{
    ControllerIdentity, Failure, Health, Namespace, Unsupported, Violation,
    admin::{Answer, Purpose},
    core::{Core, Next, Place},
    lock::Lock,
    prp::LIST_BYTES,
    queue::Queue,
    ring::{self, Rings},
    spec::{
        HealthLog, IdentifyController, IdentifyNamespace, NamespaceList, SubmissionEntry, admin_opcode, feature,
        identify_kind, log_page,
    },
};
use std::sync::Arc;
use twinlog_device::Nanos;
use twinlog_pci::{PciError, PciFunction};

/// Namespaces that are looked at; a controller may have more, which are not used.
const NAMESPACES_MAX: usize = 128;

/// Notices: namespace attributes, firmware activation (base figure 275, OAES).
const NOTICES: u32 = 1 << 8 | 1 << 9;

/// Where the bringing-up stands: the command that is not yet answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Controller,
    Namespaces {
        after: u32,
    },
    Namespace {
        index: usize,
    },
    /// Before anything that depends on who the host is.
    Host,
    QueueCount,
    Events,
    CreateCompletion {
        index: usize,
    },
    CreateSubmission {
        index: usize,
    },
    Health,
    /// Every command was answered.
    Live,
}

impl<F: PciFunction> Core<F> {
    /// Gives the controller the command of `step`.
    pub(crate) fn begin(&mut self, step: Step, now: Nanos) {
        self.set_step(step);
        let entry = match step {
            Step::Controller => {
                self.listed.clear();
                self.identify(identify_kind::CONTROLLER, 0)
            }
            Step::Namespaces { after } => self.identify(identify_kind::ACTIVE_NAMESPACES, after),
            Step::Namespace { index } => self.identify(identify_kind::NAMESPACE, self.listed[index]),
            Step::Host => {
                // An identifier of 128 bits (EXHID).
                SubmissionEntry::new(admin_opcode::SET_FEATURES, 0, [u32::from(feature::HOST_ID), 1, 0, 0, 0, 0])
                    .with_data([self.admin.data_address(), 0])
            }
            Step::QueueCount => {
                let count = u32::from(self.queues_wanted() - 1);
                let arguments = [u32::from(feature::QUEUES), count << 16 | count, 0, 0, 0, 0];
                SubmissionEntry::new(admin_opcode::SET_FEATURES, 0, arguments)
            }
            Step::Events => {
                // Every critical warning of the health log; of the notices those of namespaces and firmware that it has (base 5.27.1.8).
                let notices = self.identity.as_ref().map_or(0, |identity| identity.notices) & NOTICES;
                let arguments = [u32::from(feature::EVENTS), 0xFF | notices, 0, 0, 0, 0];
                SubmissionEntry::new(admin_opcode::SET_FEATURES, 0, arguments)
            }
            Step::CreateCompletion { index } => self.create_queue(index, true),
            Step::CreateSubmission { index } => self.create_queue(index, false),
            Step::Health => self.log_request(log_page::HEALTH),
            Step::Live => return self.set_live(now),
        };
        self.admin.clear_data();
        if step == Step::Host {
            self.admin.set_data(&self.options.host_id.unwrap_or_default());
        }
        let sent = self.admin.send(Purpose::Step, entry, now + self.options.admin_timeout);
        assert!(sent, "a step is alone on the queue");
    }

    /// Takes the answer to `step`, if it has come.
    pub(crate) fn receive_step(&mut self, step: Step, now: Nanos) {
        if step == Step::Live {
            return self.set_live(now);
        }
        match self.admin.receive() {
            Err(violation) => self.stop(now, Next::Fail(Failure::Violation(violation))),
            Ok(None) if self.admin.is_late(now) => self.recover(now),
            Ok(None) => {}
            Ok(Some(answer)) => match self.finish(step, answer, now) {
                Ok(next) => self.begin(next, now),
                Err(failure) => self.stop(now, Next::Fail(failure)),
            },
        }
    }

    /// What follows `step`.
    fn finish(&mut self, step: Step, answer: Answer, now: Nanos) -> Result<Step, Failure> {
        let require = |what| {
            if answer.status.is_success() { Ok(()) } else { Err(Failure::Refused(what, answer.status)) }
        };
        match step {
            Step::Controller => {
                require("identify itself")?;
                self.take_identity()?;
                Ok(Step::Namespaces { after: 0 })
            }
            Step::Namespaces { after } => {
                require("list its namespaces")?;
                self.take_namespaces(after)
            }
            Step::Namespace { index } => {
                require("identify a namespace")?;
                self.take_namespace(self.listed[index])?;
                Ok(if index + 1 < self.listed.len() { Step::Namespace { index: index + 1 } } else { self.compare()? })
            }
            Step::Host => {
                require("know its host")?;
                Ok(Step::QueueCount)
            }
            Step::QueueCount => {
                require("grant queues")?;
                let [low, high] = [answer.result & 0xFFFF, answer.result >> 16];
                let granted = u16::try_from(low.min(high)).expect("sixteen bits").saturating_add(1);
                self.make_queues(granted.min(self.queues_wanted()))?;
                Ok(Step::Events)
            }
            // Without events the health log is read now and then all the same.
            Step::Events => Ok(Step::CreateCompletion { index: 0 }),
            Step::CreateCompletion { index } => {
                require("create a completion queue")?;
                Ok(Step::CreateSubmission { index })
            }
            Step::CreateSubmission { index } => {
                require("create a submission queue")?;
                let is_last = index + 1 == self.queues.len();
                Ok(if is_last { Step::Health } else { Step::CreateCompletion { index: index + 1 } })
            }
            Step::Health => {
                if answer.status.is_success() {
                    self.health = Some(Health::new(&self.admin.data::<HealthLog>(), now));
                }
                Ok(Step::Live)
            }
            Step::Live => Ok(Step::Live),
        }
    }

    pub(crate) fn identify(&self, kind: u8, namespace: u32) -> SubmissionEntry {
        SubmissionEntry::new(admin_opcode::IDENTIFY, namespace, [u32::from(kind), 0, 0, 0, 0, 0])
            .with_data([self.admin.data_address(), 0])
    }

    pub(crate) fn take_identity(&mut self) -> Result<(), Failure> {
        let mut identity =
            ControllerIdentity::verify(&self.admin.data::<IdentifyController>()).map_err(Failure::Unsupported)?;
        identity.ignores_fua |= self.options.ignores_fua;
        match &self.identity {
            Some(known) => self.identity = Some(known.renewed(identity).ok_or(Failure::Changed)?),
            None => self.identity = Some(identity),
        }
        Ok(())
    }

    fn take_namespaces(&mut self, after: u32) -> Result<Step, Failure> {
        let list = self.admin.data::<NamespaceList>();
        let mut last = after;
        for id in list.0.iter().map(|id| id.get()).take_while(|&id| id != 0) {
            if id <= last {
                return Err(Failure::Violation(Violation::NamespaceOrder));
            }
            last = id;
            self.listed.push(id);
        }
        let is_full = list.0.last().is_some_and(|id| id.get() != 0);
        let is_enough = self.listed.len() >= NAMESPACES_MAX;
        self.listed.truncate(NAMESPACES_MAX);
        Ok(match self.listed.is_empty() {
            _ if is_full && !is_enough => Step::Namespaces { after: last },
            true => self.compare()?,
            false => Step::Namespace { index: 0 },
        })
    }

    fn take_namespace(&mut self, id: u32) -> Result<(), Failure> {
        let identity = self.identity.as_ref().expect("identified before its namespaces");
        let namespace = Namespace::verify(id, &self.admin.data::<IdentifyNamespace>(), identity);
        match self.namespaces.iter_mut().find(|(known, _)| *known == id) {
            Some((_, known)) => {
                let is_same = matches!((&*known, &namespace), (Ok(known), Ok(found)) if known.is_same(found));
                if !is_same && self.opened.contains(&id) {
                    return Err(Failure::Changed);
                }
                *known = namespace;
            }
            None => self.namespaces.push((id, namespace)),
        }
        Ok(())
    }

    /// Whether every namespace that disks are open on was found again.
    fn compare(&mut self) -> Result<Step, Failure> {
        if !self.opened.iter().all(|id| self.listed.contains(id)) {
            return Err(Failure::Changed);
        }
        let listed = &self.listed;
        self.namespaces.retain(|(id, _)| listed.contains(id));
        let has_reservations = self.identity.as_ref().is_some_and(|identity| identity.has_reservations);
        Ok(if has_reservations && self.options.host_id.is_some() { Step::Host } else { Step::QueueCount })
    }

    fn queues_wanted(&self) -> u16 {
        self.options.disk_count.clamp(1, self.controls.queue_max())
    }

    /// Makes the queues, or checks that there are as many as before.
    fn make_queues(&mut self, granted: u16) -> Result<(), Failure> {
        if !self.queues.is_empty() {
            let is_enough = self.queues.len() <= usize::from(granted);
            return if is_enough { Ok(()) } else { Err(Failure::Changed) };
        }
        let (seats, depth, entries) = self.shares(granted).ok_or(Failure::Unsupported(Unsupported::QueueSize))?;
        (self.seats_per_queue, self.depth) = (seats, depth);
        // With several disks on each queue, fewer queues may be needed than were granted.
        let count = self.options.disk_count.max(1).div_ceil(seats);
        self.take_vectors(count);
        for id in 1..=count {
            let queue = self.make_queue(id, entries).map_err(|_| Failure::NoMemory)?;
            let vector = u16::try_from(self.events.len()).ok().filter(|&count| count > 0);
            let vector = vector.map(|count| self.vector_first + (id - 1) % count);
            self.places.push(Place { id, entries, addresses: queue.rings().addresses(), vector });
            self.queues.push(Arc::new(Lock::new(queue)));
        }
        Ok(())
    }

    /// Takes an interrupt vector for each of `queue_count` queues, or as many as there are. Where the kernel refuses one, answers are looked for.
    fn take_vectors(&mut self, queue_count: u16) {
        if !self.options.interrupts {
            return;
        }
        let vectors = u16::try_from(self.function.vector_count()).unwrap_or(u16::MAX);
        // The admin queue signals vector 0, which is its own if there are others.
        self.vector_first = u16::from(vectors > 1);
        let count = queue_count.min(vectors - self.vector_first);
        let vectors = self.vector_first..self.vector_first + count;
        let events = vectors.map(|vector| self.function.interrupt(vector.into()).map(Arc::new));
        self.events = events.collect::<Result<_, _>>().unwrap_or_default();
    }

    fn make_queue(&self, id: u16, entries: u16) -> Result<Queue<F::Registers, F::Memory>, PciError> {
        let submissions = Arc::new(self.function.allocate(ring::submission_bytes(entries))?);
        let completions = Arc::new(self.function.allocate(ring::completion_bytes(entries))?);
        let lists = Arc::new(self.function.allocate(usize::from(entries - 1) * LIST_BYTES)?);
        let rings = Rings::new(id, entries, self.controls.clone(), submissions, completions);
        Ok(Queue::new(rings, lists, self.maps.clone(), self.patience()))
    }

    /// Create I/O completion, or submission, queue (base 5.4, 5.5): contiguous; both have one number.
    fn create_queue(&self, index: usize, is_completion: bool) -> SubmissionEntry {
        let Place { id, entries, addresses: [submissions, completions], vector } = self.places[index];
        let interrupts = vector.map_or(0, |vector| 1 << 1 | u32::from(vector) << 16);
        let (opcode, address, second) = match is_completion {
            true => (admin_opcode::CREATE_COMPLETION, completions, 1 | interrupts),
            false => (admin_opcode::CREATE_SUBMISSION, submissions, 1 | u32::from(id) << 16),
        };
        let first = u32::from(id) | u32::from(entries - 1) << 16;
        SubmissionEntry::new(opcode, 0, [first, second, 0, 0, 0, 0]).with_data([address, 0])
    }
}
