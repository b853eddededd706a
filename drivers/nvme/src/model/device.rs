//! Registers, queues, and the answering of commands.

use super::{Mischief, ModelConfig, bus::Bus, medium::Subsystem, signals::Signals};
use crate::{
    HostId,
    spec::{CompletionEntry, Status, SubmissionEntry, USES_SGL, offset},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
};
use twinlog_device::Prng;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the register window.
pub(super) const WINDOW_BYTES: usize = 0x4000;

/// Turns that a late command takes at most.
const LATE_MAX: u64 = 400;

/// Turns that a pause takes at most, unless it has no end.
const PAUSE_MAX: u64 = 200;

/// Turns until the controller has followed a change of CC.EN, at most.
const CHANGE_MAX: u64 = 8;

/// Answers that are remembered.
const RECENT_MAX: usize = 16;

/// A submission queue.
pub(super) struct Submissions {
    pub(super) base: u64,
    pub(super) entries: u16,
    pub(super) head: u16,
    pub(super) tail: u16,
    pub(super) completions: u16,
}

/// A completion queue.
pub(super) struct Completions {
    pub(super) base: u64,
    pub(super) entries: u16,
    /// What the driver has taken.
    pub(super) head: u16,
    pub(super) tail: u16,
    pub(super) phase: bool,
    /// The interrupt vector that it signals.
    pub(super) vector: Option<u32>,
}

/// A command that was fetched.
pub(super) struct Pending {
    pub(super) queue: u16,
    pub(super) entry: SubmissionEntry,
    pub(super) due: u64,
    /// It was being processed when its host was preempted: no reservation that came later keeps it from what it does.
    pub(super) is_under_way: bool,
}

/// An answer that waits for room in its queue.
struct Answer {
    queue: u16,
    id: u16,
    status: Status,
    result: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    Stopped,
    Starting { at: u64 },
    Ready,
    Stopping { at: u64 },
}

pub(super) struct Device {
    pub(super) config: ModelConfig,
    pub(super) controller_id: u16,
    /// As the driver has told it; forgotten with a reset.
    pub(super) host_id: HostId,
    pub(super) prng: Prng,
    pub(super) bus: Rc<RefCell<Bus>>,
    pub(super) subsystem: Rc<RefCell<Subsystem>>,
    pub(super) mischief: Mischief,
    pub(super) complaints: Vec<String>,
    pub(super) is_gone: bool,
    pub(super) is_removed: bool,
    pub(super) is_fatal: bool,
    /// Whether the ready bit is not shown.
    pub(super) hides_ready: bool,
    power: Power,
    configuration: u32,
    shutdown: u32,
    admin_sizes: u32,
    admin_bases: [u64; 2],
    pub(super) turns: u64,
    pub(super) submissions: BTreeMap<u16, Submissions>,
    pub(super) completions: BTreeMap<u16, Completions>,
    pub(super) pending: Vec<Pending>,
    answers: Vec<Answer>,
    /// Queue and identifier of answers that were invented: a command that is named so is thought to be finished.
    disowned: BTreeSet<(u16, u16)>,
    /// Queue and identifier of the latest answers.
    recent: VecDeque<(u16, u16)>,
    /// Identifiers of event requests.
    pub(super) events: Vec<u16>,
    pub(super) critical_warning: u8,
    /// Whether an event waits for a request, and whether one was sent whose log page was not read.
    pub(super) has_event: bool,
    /// Events that were told of: the type, and the log page that was not read since.
    pub(super) unread: Vec<(u8, u8)>,
    /// Whether the namespaces were changed and no request was answered with that, and which notices the driver wants.
    pub(super) has_notice: bool,
    pub(super) notices: u32,
    /// How many turns the activation of a firmware will take, and until when it is under way.
    pub(super) activation: Option<u64>,
    pub(super) paused_until: Option<u64>,
    pub(super) firmware: u8,
    pub(super) signals: Signals,
    pub(super) performed_count: u64,
    pub(super) sgl_count: u64,
    /// Logarithm of the logical blocks that the driver was told of each namespace: where that was a lie, it moves as many bytes all the same.
    pub(super) told_shifts: BTreeMap<u32, u8>,
    /// Of each namespace, the preemptions that it has heeded.
    heeded: BTreeMap<u32, usize>,
}

impl Device {
    pub(super) fn new(config: &ModelConfig, subsystem: Rc<RefCell<Subsystem>>, controller_id: u16) -> Self {
        let mut prng = Prng::new(config.seed ^ u64::from(controller_id) << 48);
        let bus = Rc::new(RefCell::new(Bus::new(prng.fork())));
        Self {
            config: config.clone(),
            controller_id,
            host_id: HostId::default(),
            prng,
            bus,
            subsystem,
            mischief: config.mischief,
            complaints: Vec::new(),
            is_gone: false,
            is_removed: false,
            is_fatal: false,
            hides_ready: false,
            power: Power::Stopped,
            configuration: 0,
            shutdown: 0,
            admin_sizes: 0,
            admin_bases: [0; 2],
            turns: 0,
            submissions: BTreeMap::new(),
            completions: BTreeMap::new(),
            pending: Vec::new(),
            answers: Vec::new(),
            disowned: BTreeSet::new(),
            recent: VecDeque::new(),
            events: Vec::new(),
            critical_warning: 0,
            has_event: false,
            unread: Vec::new(),
            has_notice: false,
            notices: 0,
            activation: None,
            paused_until: None,
            firmware: 0,
            signals: Signals::default(),
            performed_count: 0,
            sgl_count: 0,
            told_shifts: BTreeMap::new(),
            heeded: BTreeMap::new(),
        }
    }

    /// The host that counts: without an identifier it is the controller's own.
    pub(super) fn host(&self) -> HostId {
        if self.host_id != HostId::default() {
            return self.host_id;
        }
        let mut own = HostId::default();
        own[..2].copy_from_slice(&self.controller_id.to_le_bytes());
        own
    }

    /// Whether something that happens `rate` times in a thousand happens now.
    pub(super) fn fails(&mut self, rate: u64) -> bool {
        rate > 0 && self.prng.chance(rate, 1000)
    }

    fn draw(&mut self, bound: u64) -> u16 {
        u16::try_from(self.prng.below(bound)).expect("sixteen bits at most are drawn")
    }

    pub(super) fn complain(&mut self, what: impl Into<String>) {
        self.complaints.push(what.into());
    }

    pub(super) fn refuses_reset(&mut self) -> bool {
        let rate = self.mischief.no_reset;
        self.is_removed || self.fails(rate)
    }

    /// As after power on: nothing is under way, the registers have their first values.
    pub(super) fn reset(&mut self) {
        self.stop();
        self.configuration = 0;
        self.shutdown = 0;
        self.is_fatal = false;
        (self.admin_sizes, self.admin_bases) = (0, [0; 2]);
    }

    fn stop(&mut self) {
        self.power = Power::Stopped;
        self.host_id = HostId::default();
        (self.is_fatal, self.hides_ready) = (false, false);
        self.paused_until = self.paused_until.filter(|_| self.config.pauses_over_resets);
        self.submissions.clear();
        self.completions.clear();
        self.pending.clear();
        self.answers.clear();
        self.disowned.clear();
        self.recent.clear();
        self.events.clear();
        self.has_event = false;
        self.unread.clear();
        self.signals.reset();
    }

    pub(super) fn power_cut(&mut self, prng: &mut Prng) {
        self.heed();
        // What was fetched may have been under way.
        for pending in std::mem::take(&mut self.pending) {
            if prng.chance(1, 2) {
                self.land(&pending, prng);
            }
        }
        for medium in &mut self.subsystem.borrow_mut().namespaces {
            medium.lose_power(prng);
        }
        self.reset();
    }

    pub(super) fn read_wide(&mut self, offset: usize) -> u64 {
        match offset {
            _ if self.is_gone => u64::MAX,
            offset::CAP => self.capabilities(),
            offset::ASQ => self.admin_bases[0],
            offset::ACQ => self.admin_bases[1],
            _ => 0,
        }
    }

    pub(super) fn read(&mut self, offset: usize) -> u64 {
        match offset {
            _ if self.is_gone => u32::MAX.into(),
            // Version 1.4.
            offset::VS => 0x0001_0400,
            offset::CC => self.configuration.into(),
            offset::CSTS => {
                let is_ready = matches!(self.power, Power::Ready | Power::Stopping { .. }) && !self.hides_ready;
                u64::from(is_ready)
                    | u64::from(self.is_fatal) << 1
                    | u64::from(self.shutdown) << 2
                    | u64::from(self.paused_until.is_some()) << 5
            }
            offset::AQA => self.admin_sizes.into(),
            _ => 0,
        }
    }

    fn capabilities(&self) -> u64 {
        let entries = u64::from(self.config.queue_entries_max - 1) & 0xFFFF;
        // Contiguous queues are required (CQR); ready within 5 s (TO 10), which [`CHANGE_MAX`] turns of half a second are; NVM command set.
        entries | 1 << 16 | 10 << 24 | u64::from(self.config.doorbell_shift) << 32 | 1 << 37
    }

    pub(super) fn write(&mut self, offset: usize, value: u64) {
        if self.is_gone {
            return;
        }
        match offset {
            offset::CC => self.configure(u32::try_from(value).expect("a register of four bytes")),
            offset::AQA | offset::ASQ | offset::ACQ => {
                if self.configuration & 1 == 1 {
                    self.complain("admin queues were set while the controller was enabled");
                }
                match offset {
                    offset::AQA => self.admin_sizes = u32::try_from(value).expect("a register of four bytes"),
                    offset::ASQ => self.admin_bases[0] = value,
                    _ => self.admin_bases[1] = value,
                }
            }
            offset::INTMS if self.signals.is_used() => {
                self.complain("interrupts by message were masked by the pin's register")
            }
            offset::INTMS => {}
            _ if offset >= offset::DOORBELLS => self.ring(offset - offset::DOORBELLS, value),
            _ => self.complain(format!("a write to register {offset:#x}")),
        }
    }

    fn configure(&mut self, value: u32) {
        let at = self.turns + self.prng.below(CHANGE_MAX);
        let was_enabled = self.configuration & 1 == 1;
        self.configuration = value;
        match (was_enabled, value & 1 == 1) {
            (false, true) => {
                if self.power != Power::Stopped {
                    self.complain("enabled while it was not stopped");
                }
                let rate = self.mischief.never_ready;
                let at = if self.fails(rate) { u64::MAX } else { at };
                self.power = Power::Starting { at };
                self.shutdown = 0;
            }
            (true, false) => {
                if matches!(self.power, Power::Starting { .. })
                    && !self.is_fatal
                    && self.mischief == Mischief::default()
                {
                    self.complain("disabled before it was ready");
                }
                let rate = self.mischief.never_stops;
                let at = if self.fails(rate) { u64::MAX } else { at };
                self.power = match self.power {
                    Power::Ready => Power::Stopping { at },
                    _ => Power::Stopped,
                };
                self.shutdown = 0;
            }
            (true, true) if value >> 14 & 3 != 0 => self.shutdown = 2,
            _ => {}
        }
    }

    fn ring(&mut self, offset: usize, value: u64) {
        let stride = 4 << self.config.doorbell_shift;
        if !offset.is_multiple_of(stride) {
            return self.complain("a write between doorbells");
        }
        let number = offset / stride;
        let (id, index) = (u16::try_from(number / 2), u16::try_from(value));
        let (Ok(id), Ok(index)) = (id, index) else { return self.complain("a doorbell with too large a value") };
        let entries = match number % 2 {
            0 => self.submissions.get_mut(&id).map(|queue| {
                queue.tail = index;
                queue.entries
            }),
            _ => self.completions.get_mut(&id).map(|queue| {
                queue.head = index;
                queue.entries
            }),
        };
        // A doorbell may still be rung when the controller has just lost its queues by itself.
        if entries.is_none_or(|entries| index >= entries) && self.power == Power::Ready {
            self.complain(format!("doorbell {number} with {value}"));
        }
    }

    pub(super) fn turn(&mut self) {
        self.turns += 1;
        let now = self.turns;
        self.misbehave();
        match self.power {
            Power::Starting { at } if at <= now && !self.is_fatal => self.start(),
            Power::Stopping { at } if at <= now => self.stop(),
            _ => {}
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        if self.paused_until.is_some() {
            return;
        }
        // What does not answer any more may still have access to memory, unless it was pulled out.
        let is_there = !(self.is_gone && self.is_removed);
        if matches!(self.power, Power::Ready | Power::Stopping { .. }) && is_there && !self.is_fatal {
            self.heed();
            if self.power == Power::Ready {
                self.fetch();
            }
            self.perform();
            self.report_event();
            self.post();
            self.activate();
            self.signals.turn(&mut self.prng);
        }
    }

    /// Begins the activation of a firmware, once that was announced or nobody wants to hear of it.
    fn activate(&mut self) {
        if let Some(turns) = self.activation.take() {
            self.paused_until = Some(self.turns.saturating_add(turns));
            // A digit of its name.
            self.firmware = (self.firmware + 1) % 10;
        }
    }

    fn misbehave(&mut self) {
        let Mischief { fatal, not_ready, vanish, removed, wanted_back, hides_ready, event, pause, .. } = self.mischief;
        if self.fails(fatal) {
            self.is_fatal = true;
        }
        if self.fails(not_ready) && self.power == Power::Ready {
            self.stop();
        }
        if self.fails(vanish) {
            self.is_gone = true;
        }
        if self.fails(removed) {
            (self.is_gone, self.is_removed) = (true, true);
        }
        self.is_removed |= self.fails(wanted_back);
        // While it stops, its ready bit is all that says so: nothing could tell then.
        self.hides_ready |= self.power == Power::Ready && self.fails(hides_ready);
        if self.fails(event) {
            self.has_event = true;
        }
        if self.fails(pause) {
            let turns = if self.prng.chance(1, 4) { u64::MAX } else { self.prng.below(PAUSE_MAX) };
            self.activation = Some(turns);
        }
    }

    fn start(&mut self) {
        self.power = Power::Ready;
        let sizes = [self.admin_sizes & 0xFFF, self.admin_sizes >> 16 & 0xFFF];
        let [submissions, completions] = sizes.map(|size| u16::try_from(size + 1).expect("twelve bits"));
        let [base, completion_base] = self.admin_bases;
        let admin = Submissions { base, entries: submissions, head: 0, tail: 0, completions: 0 };
        self.submissions.insert(0, admin);
        let answers =
            Completions { base: completion_base, entries: completions, head: 0, tail: 0, phase: true, vector: Some(0) };
        self.completions.insert(0, answers);
    }

    fn fetch(&mut self) {
        let ids: Vec<u16> = self.submissions.keys().copied().collect();
        for id in ids {
            loop {
                let queue = self.submissions.get_mut(&id).expect("listed above");
                if queue.head == queue.tail {
                    break;
                }
                let place = queue.base + u64::from(queue.head) * size_of::<SubmissionEntry>() as u64;
                queue.head = (queue.head + 1) % queue.entries;
                let Some(bytes) = self.bus.borrow_mut().read(place, size_of::<SubmissionEntry>()) else { break };
                let entry = SubmissionEntry::read_from_bytes(&bytes).expect("as many bytes as an entry");
                self.accept(id, entry);
            }
        }
    }

    fn accept(&mut self, queue: u16, entry: SubmissionEntry) {
        let is_same = |other: &Pending| other.queue == queue && other.entry.command_id == entry.command_id;
        if self.pending.iter().any(is_same) {
            self.complain("an identifier that is in use");
        }
        // Admin commands have PRPs (pcie 3.1).
        let has_usual_flags = entry.flags == 0 || (entry.flags == USES_SGL && queue != 0);
        if !has_usual_flags || entry.metadata.get() != 0 {
            self.complain("a command with flags or metadata");
        }
        let Mischief { no_answer, late, .. } = self.mischief;
        if self.disowned.contains(&(queue, entry.command_id.get())) || self.fails(no_answer) {
            return;
        }
        let delay_max = if self.fails(late) { LATE_MAX } else { self.config.delay_max };
        let due = self.turns + self.prng.below(delay_max + 1);
        self.pending.push(Pending { queue, entry, due, is_under_way: false });
    }

    /// Heeds preemptions of this controller's host that came since it looked last: commands that it has fetched are aborted, or go on.
    fn heed(&mut self) {
        let (subsystem, host) = (self.subsystem.clone(), self.host());
        for medium in &subsystem.borrow().namespaces {
            let id = medium.shape.id;
            let preemptions = &medium.reservations.preemptions;
            let heeded = self.heeded.insert(id, preemptions.len()).unwrap_or(0);
            for preemption in preemptions.iter().skip(heeded).filter(|preemption| preemption.host == host) {
                self.end_pending(id, preemption.aborts);
            }
        }
    }

    fn end_pending(&mut self, namespace: u32, aborts: bool) {
        for mut pending in std::mem::take(&mut self.pending) {
            let is_meant = pending.queue != 0 && pending.entry.namespace.get() == namespace;
            if is_meant && aborts {
                self.answer(pending.queue, pending.entry.command_id.get(), Status::PREEMPTED, 0);
                continue;
            }
            pending.is_under_way |= is_meant && self.prng.chance(1, 2);
            self.pending.push(pending);
        }
    }

    /// Performs what is due, in any order.
    fn perform(&mut self) {
        let now = self.turns;
        let mut due: Vec<usize> = (0..self.pending.len()).filter(|&index| self.pending[index].due <= now).collect();
        while !due.is_empty() {
            let drawn = usize::try_from(self.prng.below(due.len() as u64)).expect("small");
            let index = due.swap_remove(drawn);
            let last = self.pending.len() - 1;
            let Pending { queue, entry, is_under_way, .. } = self.pending.swap_remove(index);
            if let Some(moved) = due.iter_mut().find(|other| **other == last) {
                *moved = index;
            }
            let answer =
                if queue == 0 { self.perform_admin(&entry) } else { Some((self.perform_io(&entry, is_under_way), 0)) };
            if let Some((status, result)) = answer {
                self.answer(queue, entry.command_id.get(), status, result);
            }
            // An abort may have taken others.
            due.retain(|&index| index < self.pending.len() && self.pending[index].due <= now);
        }
    }

    pub(super) fn answer(&mut self, queue: u16, id: u16, status: Status, result: u32) {
        self.answers.push(Answer { queue, id, status, result });
    }

    /// Writes answers as far as there is room.
    fn post(&mut self) {
        let mut waiting = Vec::new();
        for answer in std::mem::take(&mut self.answers) {
            let Mischief { lost_answer, duplicate, invented, stale, .. } = self.mischief;
            if self.fails(lost_answer) {
                continue;
            }
            if self.fails(invented) {
                let id = if self.prng.chance(1, 2) { answer.id ^ (1 << self.prng.below(16)) } else { self.draw(64) };
                self.post_false(answer.queue, id);
            }
            let earlier = self.recent.iter().rfind(|(queue, _)| *queue == answer.queue).copied();
            if let (Some((queue, id)), true) = (earlier, self.fails(stale)) {
                self.post_false(queue, id);
            }
            let twice = self.fails(duplicate);
            if !self.post_one(&answer) {
                waiting.push(answer);
            } else if twice {
                self.post_one(&answer);
            }
        }
        self.answers.append(&mut waiting);
    }

    /// Posts an answer to a command that was not performed: whatever is named so is thought to be finished.
    fn post_false(&mut self, queue: u16, id: u16) {
        self.pending.retain(|other| other.queue != queue || other.entry.command_id.get() != id);
        self.disowned.insert((queue, id));
        self.post_one(&Answer { queue, id, status: Status::SUCCESS, result: 0 });
    }

    fn post_one(&mut self, answer: &Answer) -> bool {
        let Mischief { foreign_queue, wrong_head, wrong_phase, bad_status, lost_signal, .. } = self.mischief;
        let Some(submissions) = self.submissions.get(&answer.queue) else { return true };
        let (mut head, id) = (submissions.head, submissions.completions);
        let Some(queue) = self.completions.get_mut(&id) else { return true };
        let next = (queue.tail + 1) % queue.entries;
        if next == queue.head {
            return false;
        }
        let is_first = queue.head == queue.tail;
        let vector = queue.vector.filter(|_| is_first || !self.config.spares_signals);
        let place = queue.base + u64::from(queue.tail) * size_of::<CompletionEntry>() as u64;
        let mut phase = u16::from(queue.phase);
        queue.tail = next;
        queue.phase ^= next == 0;
        let mut named = answer.queue;
        let mut status = answer.status;
        if self.fails(foreign_queue) {
            named ^= 1 << self.prng.below(4);
        }
        if self.fails(wrong_head) {
            head = self.draw(1 << 16);
        }
        if self.fails(wrong_phase) {
            phase ^= 1;
        }
        if self.fails(bad_status) {
            status = Status(self.draw(1 << 15));
        }
        let entry = CompletionEntry {
            result: answer.result.into(),
            result_high: 0.into(),
            submission_head: head.into(),
            submission_id: named.into(),
            command_id: answer.id.into(),
            status_and_phase: (status.0 << 1 | phase).into(),
        };
        self.bus.borrow_mut().write(place, entry.as_bytes());
        if let (Some(vector), false) = (vector, self.fails(lost_signal)) {
            self.signals.raise(vector);
        }
        self.recent.push_back((answer.queue, answer.id));
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
        true
    }
}
