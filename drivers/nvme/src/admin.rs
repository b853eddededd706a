//! The admin queue pair: few commands, each with a purpose.

use crate::{
    Violation,
    deadline::Deadline,
    registers::Controls,
    ring::{self, Rings},
    spec::{PAGE_BYTES, Status, SubmissionEntry},
};
use std::{sync::Arc, time::Duration};
use twinlog_device::Nanos;
use twinlog_pci::{DmaMemory, PciError, PciFunction, Registers};
use zerocopy::{FromBytes, little_endian::U16};

/// Commands in flight at the same time: one step or log page, asynchronous events, aborts.
const SLOTS: usize = 15;

/// Entries of the rings.
const ENTRIES: u16 = 16;

const _: () = assert!(SLOTS + 1 == ENTRIES as usize);

/// Bits of an identifier that are the slot's number.
const SLOT_BITS: u32 = 4;

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The present step of bringing the controller up.
    Step,
    /// A log page, which comes into the data page.
    Log(u8),
    /// What the controller is, into the data page: asked again when its firmware may have become another, for the so-manieth time.
    Identity(u64),
    /// An asynchronous event request: answered when something happens.
    Event,
    /// An abort.
    Abort,
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    pub(crate) purpose: Purpose,
    pub(crate) status: Status,
    pub(crate) result: u32,
}

pub(crate) struct Admin<R, M> {
    rings: Rings<R, M>,
    /// Purpose of each command in flight, and until when it is to be answered.
    slots: [Option<(Purpose, Deadline)>; SLOTS],
    sequences: [u16; SLOTS],
    data: Arc<M>,
    memory: [Arc<M>; 2],
}

impl<R: Registers, M: DmaMemory> Admin<R, M> {
    pub(crate) fn new<F>(function: &F, controls: Controls<R>) -> Result<Self, PciError>
    where
        F: PciFunction<Registers = R, Memory = M>,
    {
        let submissions = Arc::new(function.allocate(ring::submission_bytes(ENTRIES))?);
        let completions = Arc::new(function.allocate(ring::completion_bytes(ENTRIES))?);
        let data = Arc::new(function.allocate(PAGE_BYTES)?);
        let memory = [submissions.clone(), completions.clone()];
        let rings = Rings::new(0, ENTRIES, controls, submissions, completions);
        Ok(Self { rings, slots: [None; SLOTS], sequences: [0; SLOTS], data, memory })
    }

    /// Forgets every command and tells the controller, which is not enabled, where the queues are.
    pub(crate) fn reset(&mut self, controls: &Controls<R>) {
        self.slots = [None; SLOTS];
        self.rings.reset();
        let [submissions, completions] = self.rings.addresses();
        controls.set_admin_queues(ENTRIES, submissions, completions);
    }

    /// Where the data page lies on the bus.
    pub(crate) fn data_address(&self) -> u64 {
        self.data.bus_address()
    }

    /// A structure that the controller wrote to the front of the data page.
    pub(crate) fn data<T: FromBytes>(&self) -> T {
        let mut bytes = [0; PAGE_BYTES];
        self.data.read(0, &mut bytes);
        T::read_from_prefix(&bytes).expect("a structure is not larger than a page").0
    }

    /// What a command takes from the front of the data page.
    pub(crate) fn set_data(&self, bytes: &[u8]) {
        self.data.write(0, bytes);
    }

    /// Zeroes the data page, so that what a controller does not write is known.
    pub(crate) fn clear_data(&self) {
        self.data.clear(0, PAGE_BYTES);
    }

    /// Commands in flight of a purpose.
    pub(crate) fn count(&self, purpose: impl Fn(Purpose) -> bool) -> usize {
        self.slots.iter().flatten().filter(|(what, _)| purpose(*what)).count()
    }

    /// Gives the controller a command; false while every slot is in use.
    pub(crate) fn send(&mut self, purpose: Purpose, mut entry: SubmissionEntry, deadline: Nanos) -> bool {
        let Some(index) = self.slots.iter().position(Option::is_none) else { return false };
        self.sequences[index] = self.sequences[index].wrapping_add(1);
        self.slots[index] = Some((purpose, Deadline::new(deadline)));
        entry.command_id = U16::new(identifier(index, self.sequences[index]));
        self.rings.push(&entry);
        self.rings.tell();
        true
    }

    /// The next answer.
    ///
    /// # Errors
    /// When it is none that a controller may give.
    pub(crate) fn receive(&mut self) -> Result<Option<Answer>, Violation> {
        let Some(entry) = self.rings.pop()? else {
            self.rings.tell();
            return Ok(None);
        };
        let id = entry.command_id.get();
        let index = usize::from(id & ((1 << SLOT_BITS) - 1));
        let is_latest = self.sequences.get(index).is_some_and(|&sequence| identifier(index, sequence) == id);
        let flight = if is_latest { self.slots[index].take() } else { None };
        let (purpose, _) = flight.ok_or(Violation::UnknownCommand)?;
        Ok(Some(Answer { purpose, status: entry.status(), result: entry.result.get() }))
    }

    /// Answers that one turn takes at most.
    pub(crate) fn batch(&self) -> u16 {
        self.rings.entries()
    }

    /// Whether a command other than an event request has not been answered in time.
    pub(crate) fn is_late(&self, now: Nanos) -> bool {
        self.slots.iter().flatten().any(|&(purpose, deadline)| purpose != Purpose::Event && deadline.is_over(now))
    }

    /// Gives every command more time.
    pub(crate) fn postpone(&mut self, by: Duration) {
        self.slots.iter_mut().flatten().for_each(|(_, deadline)| deadline.postpone(by));
    }

    /// Leaves the memory to a controller that may still use it.
    pub(crate) fn leak(&self) {
        std::mem::forget((self.memory.clone(), self.data.clone()));
    }
}

fn identifier(index: usize, sequence: u16) -> u16 {
    u16::try_from(index).expect("a slot's number has four bits") | sequence << SLOT_BITS
}
