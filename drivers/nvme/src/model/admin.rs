//! Admin commands.

use super::{
    device::{Completions, Device, Submissions},
    mischief,
};
use crate::spec::{
    HealthLog, IdentifyController, IdentifyNamespace, NamespaceList, Status, SubmissionEntry, admin_opcode, attribute,
    feature, identify_kind, log_page, once,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Notices that it has: attributes of namespaces, activation of a firmware.
const NOTICES: u32 = 1 << 8 | 1 << 9;

/// Types of events.
const HEALTH_EVENT: u8 = 1;
const NOTICE_EVENT: u8 = 2;

impl Device {
    /// Status and result of a command; none if it is not answered now.
    pub(super) fn perform_admin(&mut self, entry: &SubmissionEntry) -> Option<(Status, u32)> {
        let [first, second] = [entry.arguments[0].get(), entry.arguments[1].get()];
        let status = match entry.opcode {
            admin_opcode::IDENTIFY => self.identify(entry, first),
            admin_opcode::GET_LOG_PAGE => self.read_log(entry, first),
            admin_opcode::CREATE_COMPLETION => self.create_completions(entry, first, second),
            admin_opcode::CREATE_SUBMISSION => self.create_submissions(entry, first, second),
            admin_opcode::SET_FEATURES if first.to_le_bytes()[0] == feature::QUEUES => {
                let granted = u32::from(self.config.queues_max - 1);
                let [submissions, completions] = [second & 0xFFFF, second >> 16].map(|wanted| wanted.min(granted));
                return Some((Status::SUCCESS, completions << 16 | submissions));
            }
            admin_opcode::SET_FEATURES if first.to_le_bytes()[0] == feature::HOST_ID => match self.gather(entry, 16) {
                Some(bytes) if second & 1 == 1 => {
                    self.host_id = bytes.try_into().expect("as many bytes as asked for");
                    Status::SUCCESS
                }
                _ => Status::INVALID_FIELD,
            },
            admin_opcode::SET_FEATURES => {
                if first.to_le_bytes()[0] == feature::EVENTS {
                    self.notices = second & !0xFF;
                    if self.notices & !NOTICES != 0 {
                        self.complain("notices that the controller does not have");
                    }
                }
                Status::SUCCESS
            }
            admin_opcode::ABORT => return Some((Status::SUCCESS, self.abort(first))),
            admin_opcode::EVENT => {
                self.events.push(entry.command_id.get());
                return None;
            }
            _ => Status::INVALID_OPCODE,
        };
        Some((status, 0))
    }

    /// Writes the data of an admin command, lying where it does.
    fn give(&mut self, entry: &SubmissionEntry, mut bytes: Vec<u8>) -> Status {
        let rate = self.mischief.lie;
        if self.fails(rate) {
            mischief::lie(&mut self.prng, &mut bytes);
        }
        if entry.opcode == admin_opcode::IDENTIFY && entry.arguments[0].get() == identify_kind::NAMESPACE.into() {
            let raw = IdentifyNamespace::read_from_bytes(&bytes).expect("as many bytes as a namespace");
            let index = usize::from(raw.format & 0xF) | usize::from(raw.format >> 5 & 3) << 4;
            self.told_shifts.insert(entry.namespace.get(), raw.formats[index & 63].data_shift);
        }
        self.bus.borrow_mut().write(entry.data[0].get(), &bytes);
        Status::SUCCESS
    }

    fn identify(&mut self, entry: &SubmissionEntry, first: u32) -> Status {
        let id = entry.namespace.get();
        let bytes = match first.to_le_bytes()[0] {
            identify_kind::CONTROLLER => self.identity().as_bytes().to_vec(),
            identify_kind::ACTIVE_NAMESPACES => {
                let mut list = NamespaceList::new_zeroed();
                let above = self.config.namespaces.iter().filter(|namespace| namespace.id > id);
                for (place, namespace) in list.0.iter_mut().zip(above) {
                    place.set(namespace.id);
                }
                list.as_bytes().to_vec()
            }
            identify_kind::NAMESPACE => self.namespace(id).as_bytes().to_vec(),
            _ => return Status::INVALID_FIELD,
        };
        self.give(entry, bytes)
    }

    fn identity(&self) -> IdentifyController {
        let mut raw = IdentifyController::new_zeroed();
        raw.serial = *b"MODEL-0001          ";
        raw.model.fill(b' ');
        raw.model[..self.config.model.len()].copy_from_slice(self.config.model.as_bytes());
        raw.firmware = *b"1.0     ";
        raw.firmware[2] += self.firmware;
        // Another one differs in what no disk depends on: here ANA's notice.
        let ana = u32::from(self.firmware.min(1)) << 11;
        raw.activation_units = self.config.activation_units.into();
        raw.transfer_shift_max = self.config.transfer_shift_max;
        raw.controller_id = self.controller_id.into();
        raw.version = 0x0001_0400.into();
        raw.attributes = attribute::WIDE_HOST_ID.into();
        raw.events = (NOTICES | ana).into();
        raw.aborts_max = 3 + self.firmware;
        raw.events_max = 1 + self.firmware;
        raw.entry_shifts = [0x66, 0x44];
        raw.namespace_max = 1024.into();
        raw.commands = (once::DATASET | once::WRITE_ZEROES | once::RESERVATIONS).into();
        raw.write_cache = u8::from(self.config.has_write_cache);
        raw.atomic_power_fail = u16::from(7_u8.saturating_sub(self.firmware)).into();
        raw.sgls = u32::from(self.config.has_sgls).into();
        raw
    }

    /// Zeroes for a namespace that is not active (base 5.17.2.1).
    fn namespace(&self, id: u32) -> IdentifyNamespace {
        let mut raw = IdentifyNamespace::new_zeroed();
        let subsystem = self.subsystem.borrow();
        let Some(medium) = subsystem.namespaces.iter().find(|medium| medium.shape.id == id) else { return raw };
        for size in [&mut raw.size, &mut raw.capacity, &mut raw.used] {
            size.set(medium.lba_count());
        }
        // The second of two formats is the one in use.
        (raw.format_max, raw.format) = (1, 1);
        raw.formats[0].data_shift = 9;
        raw.formats[1].data_shift = medium.shape.lba_shift;
        raw.sharing = 1;
        raw.reservations = 0x7F;
        raw.guid = [u8::try_from(id & 0xFF).expect("a byte"); 16];
        raw
    }

    fn read_log(&mut self, entry: &SubmissionEntry, first: u32) -> Status {
        let length_bytes = (usize::try_from(first >> 16).expect("small") + 1) * 4;
        if length_bytes > 4096 {
            return Status::INVALID_FIELD;
        }
        let page = first.to_le_bytes()[0];
        self.unread.retain(|&(_, of)| of != page);
        let mut bytes = Vec::new();
        if page == log_page::HEALTH {
            let mut log = HealthLog::new_zeroed();
            log.critical_warning = self.critical_warning;
            log.temperature_k = 310.into();
            log.spare_percent = if self.critical_warning & 1 == 1 { 3 } else { 100 };
            log.spare_threshold_percent = 10;
            log.media_errors = 2.into();
            bytes.extend_from_slice(log.as_bytes());
        }
        bytes.resize(length_bytes, 0);
        self.give(entry, bytes)
    }

    fn create_completions(&mut self, entry: &SubmissionEntry, first: u32, second: u32) -> Status {
        let [id, size] = halves(first);
        if id == 0 || id > self.config.queues_max || self.completions.contains_key(&id) {
            return Status::INVALID_QUEUE;
        }
        if size == 0 || u32::from(size) >= self.config.queue_entries_max {
            return Status::INVALID_QUEUE_SIZE;
        }
        let vector = (second & 2 == 2).then_some(second >> 16);
        if second & 1 == 0 || (second >> 2) & 0x3FFF != 0 || (vector.is_none() && second != 1) {
            self.complain("a completion queue that is scattered, or whose reserved bits are not zero");
        }
        if vector.is_some_and(|vector| vector >= self.config.vector_count) {
            return Status::INVALID_VECTOR;
        }
        let (base, entries) = (entry.data[0].get(), size + 1);
        self.completions.insert(id, Completions { base, entries, head: 0, tail: 0, phase: true, vector });
        Status::SUCCESS
    }

    fn create_submissions(&mut self, entry: &SubmissionEntry, first: u32, second: u32) -> Status {
        let [id, size] = halves(first);
        let [flags, completions] = halves(second);
        let is_known = self.completions.contains_key(&completions) && completions != 0;
        if id == 0 || id > self.config.queues_max || self.submissions.contains_key(&id) || !is_known {
            return Status::INVALID_QUEUE;
        }
        if size == 0 || u32::from(size) >= self.config.queue_entries_max {
            return Status::INVALID_QUEUE_SIZE;
        }
        if flags != 1 {
            self.complain("a submission queue that is scattered");
        }
        let (base, entries) = (entry.data[0].get(), size + 1);
        self.submissions.insert(id, Submissions { base, entries, head: 0, tail: 0, completions });
        Status::SUCCESS
    }

    /// Zero if the command was aborted (base 5.1).
    fn abort(&mut self, first: u32) -> u32 {
        let [queue, id] = halves(first);
        let rate = self.mischief.ignored_abort;
        if self.fails(rate) {
            return 1;
        }
        let is_it = |pending: &super::device::Pending| {
            pending.queue == queue && pending.entry.command_id.get() == id && pending.queue != 0
        };
        let Some(index) = self.pending.iter().position(is_it) else { return 1 };
        self.pending.swap_remove(index);
        self.answer(queue, id, Status::ABORTED, 0);
        0
    }

    pub(super) fn warn(&mut self) {
        self.critical_warning |= 1;
        self.has_event = true;
    }

    /// Answers event requests when something has happened.
    pub(super) fn report_event(&mut self) {
        if self.activation.is_some() && self.notices & 1 << 9 != 0 {
            // Firmware activation starting.
            self.tell(NOTICE_EVENT, 1, log_page::FIRMWARE);
        }
        if self.has_notice && self.notices & 1 << 8 != 0 {
            // Namespace attribute changed.
            self.has_notice = !self.tell(NOTICE_EVENT, 0, log_page::CHANGED_NAMESPACES);
        }
        if self.has_event {
            // Health status, spare below threshold.
            self.has_event = !self.tell(HEALTH_EVENT, 2, log_page::HEALTH);
        }
    }

    /// Tells of an event, if somebody wants to hear, and has read the log page of the last one of its type: until then the type is masked (base 5.2).
    fn tell(&mut self, kind: u8, which: u32, page: u8) -> bool {
        if self.unread.iter().any(|&(of, _)| of == kind) {
            return false;
        }
        let Some(id) = self.events.pop() else { return false };
        self.unread.push((kind, page));
        self.answer(0, id, Status::SUCCESS, u32::from(kind) | which << 8 | u32::from(page) << 16);
        true
    }
}

fn halves(value: u32) -> [u16; 2] {
    [value & 0xFFFF, value >> 16].map(|half| u16::try_from(half).expect("sixteen bits"))
}
