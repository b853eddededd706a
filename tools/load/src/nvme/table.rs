//! What the slots are doing, whichever path and queue has their commands.

use super::wire::Status;
use crate::{
    engine::{Buffers, Completion, Kind, Request},
    units::index,
};

/// How often a command is sent again that failed for a while; as often as Linux does.
const RETRIES_LIMIT: u8 = 5;
/// Slots are counted in these bits of a command's id, their requests in the bits above.
const SLOT_BITS: u32 = 12;
const _: () = assert!(1 << SLOT_BITS == crate::engine::SLOTS_LIMIT);
/// Generations in turn; with one less than fit, no id is 0xffff.
const GENERATIONS: u8 = 15;

/// A queue of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) seat: usize,
    pub(super) queue: usize,
}

/// A request, and its command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) request: Request,
    /// Which queue has its command; `None`: it is to be sent.
    pub(super) place: Option<Place>,
    /// Bytes of its data that have come.
    pub(super) received: u64,
    /// Bytes of its data that were asked for; `None`: they were in its capsule, or there are none.
    pub(super) granted: Option<u64>,
    /// Units of data that were asked for and are not with the kernel yet.
    pub(super) unsent: u32,
    retries: u8,
}

/// What becomes of a request whose command was answered.
pub(super) enum Verdict {
    Done(Completion),
    /// It is sent once more, because of this.
    Again(Status),
}

/// All slots.
pub(super) struct Table {
    pub(super) buffers: Buffers,
    flights: Vec<Option<Flight>>,
    generations: Vec<u8>,
    /// Whether what is read is wanted.
    pub(super) keep_data: bool,
}

impl Table {
    pub(super) fn new(buffers: Buffers, count: usize, keep_data: bool) -> Self {
        Self { buffers, flights: vec![None; count], generations: vec![0; count], keep_data }
    }

    pub(super) fn is_free(&self, slot: usize) -> bool {
        self.flights[slot].is_none()
    }

    /// Takes a request into its slot.
    pub(super) fn add(&mut self, request: Request) {
        assert!(self.is_free(request.slot), "a slot carries one request");
        let flight = Flight { request, place: None, received: 0, granted: None, unsent: 0, retries: 0 };
        self.flights[request.slot] = Some(flight);
    }

    /// Gives the slot's request to a queue, with `granted` as in [`Flight`]; its command's id.
    pub(super) fn start(&mut self, slot: usize, place: Place, granted: Option<u64>) -> u16 {
        self.generations[slot] = (self.generations[slot] + 1) % GENERATIONS;
        let id = self.id(slot);
        let flight = self.flights[slot].as_mut().expect("it was added");
        (flight.place, flight.received, flight.granted, flight.unsent) = (Some(place), 0, granted, 0);
        id
    }

    fn id(&self, slot: usize) -> u16 {
        u16::try_from(slot).expect("at most 4096") | u16::from(self.generations[slot]) << SLOT_BITS
    }

    /// The request whose command has this id in this queue.
    pub(super) fn find(&mut self, id: u16, place: Place) -> Option<&mut Flight> {
        let slot = usize::from(id & ((1 << SLOT_BITS) - 1));
        let is_current = slot < self.flights.len() && self.id(slot) == id;
        self.flights.get_mut(slot)?.as_mut().filter(|flight| is_current && flight.place == Some(place))
    }

    /// The request in a slot, if there is one.
    pub(super) fn flight(&mut self, slot: usize) -> Option<&mut Flight> {
        self.flights[slot].as_mut()
    }

    /// Takes the answer to the slot's command.
    pub(super) fn finish(&mut self, slot: usize, status: Status) -> Verdict {
        let flight = self.flights[slot].as_mut().expect("the caller has found it");
        flight.place = None;
        if status.is_path_error() {
            return Verdict::Again(status);
        }
        if !status.is_success() && status.may_retry() && flight.retries < RETRIES_LIMIT {
            flight.retries += 1;
            return Verdict::Again(status);
        }
        self.flights[slot] = None;
        Verdict::Done(Completion { slot, errno: status.errno() })
    }

    /// The path is gone: takes from it what was not answered, and gives those slots.
    pub(super) fn evict(&mut self, seat: usize) -> Vec<usize> {
        let mut evicted = Vec::new();
        for (slot, flight) in self.flights.iter_mut().enumerate() {
            if let Some(flight) = flight.as_mut().filter(|flight| flight.place.is_some_and(|place| place.seat == seat))
            {
                flight.place = None;
                evicted.push(slot);
            }
        }
        evicted
    }

    /// Bytes of the data that a write sends.
    pub(super) fn payload(&self, slot: usize, from: u64, length: u64) -> &[u8] {
        &self.buffers.slot(slot)[index(from)..][..index(length)]
    }

    /// Where the next `length` bytes of a read belong, if they are wanted.
    pub(super) fn room(&mut self, slot: usize, from: u64, length: u64) -> Option<&mut [u8]> {
        let is_read = self.flights[slot].is_some_and(|flight| flight.request.kind == Kind::Read);
        (self.keep_data && is_read).then(|| &mut self.buffers.slot_mut(slot)[index(from)..][..index(length)])
    }
}
