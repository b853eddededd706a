//! Names of changes that a node of a pair asks of the owner of a pool, and what a pool remembers of them.
//!
//! The asking node has a fixed number of **slots** for each lane. A change that it forwards takes a slot, and the slot is used again only after
//! the change was answered. So whoever remembers the newest name of each slot knows of every change that may be asked for again
//! whether it was performed, in a fixed space. Records carry the name, a lane notes it with the change, and the superblock holds what
//! its lanes have noted: image, log and names never contradict each other.

use super::limits::FORWARD_SLOTS;

/// Bits of a name that are its slot.
const SLOT_BITS: u32 = 8;
/// Marks a request id as the name of a forwarded change; those of a node's own clients do not have it.
const FORWARDED_BIT: u64 = 1 << 63;

/// The bits of a number that a name has room for.
const NUMBER_MASK: u64 = (FORWARDED_BIT - 1) >> SLOT_BITS;

const _: () = assert!(FORWARD_SLOTS <= 1 << SLOT_BITS);

/// Slots that a pool with `lane_count` lanes has for each of them.
#[must_use]
pub fn forward_slots(lane_count: usize) -> usize {
    FORWARD_SLOTS / lane_count.max(1)
}

/// The name of a forwarded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ForwardId(u64);

impl ForwardId {
    /// The `number`-th name, for `slot` of its lane. Numbers begin at random, so that two lives of a node have none in common.
    #[must_use]
    pub fn new(number: u64, slot: usize) -> Self {
        assert!(slot < FORWARD_SLOTS, "slot {slot} exists");
        Self(FORWARDED_BIT | number << SLOT_BITS | slot as u64)
    }

    /// The name that a request id is, if it is one.
    #[must_use]
    pub fn of(request_id: u64) -> Option<Self> {
        (request_id & FORWARDED_BIT != 0).then_some(Self(request_id))
    }

    /// A request id that is no name.
    #[must_use]
    pub fn unlike(request_id: u64) -> u64 {
        request_id & !FORWARDED_BIT
    }

    /// Whether it was given before `newer`, in the same life of a node: numbers go round, and far fewer than half of them are in use.
    #[must_use]
    pub fn is_older_than(self, newer: Self) -> bool {
        let number = |id: Self| (id.0 & !FORWARDED_BIT) >> SLOT_BITS;
        let distance = number(newer).wrapping_sub(number(self)) & NUMBER_MASK;
        distance != 0 && distance <= NUMBER_MASK / 2
    }

    /// As a request id.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Its slot, of [`forward_slots`] or beyond if a partner errs.
    #[must_use]
    pub fn slot(self) -> usize {
        (self.0 & ((1 << SLOT_BITS) - 1)) as usize
    }
}

/// The newest forwarded change of each slot of one lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedChanges(Vec<u64>);

impl ForwardedChanges {
    /// None yet, in a lane of a pool with `lane_count` of them.
    #[must_use]
    pub fn none(lane_count: usize) -> Self {
        Self(vec![0; forward_slots(lane_count)])
    }

    /// What `slots` say, each zero or the bits of a name; `None` if a name stands in the wrong place.
    #[must_use]
    pub fn from_slots(slots: Vec<u64>) -> Option<Self> {
        let stands =
            |(slot, &bits): (usize, &u64)| bits == 0 || ForwardId::of(bits).is_some_and(|id| id.slot() == slot);
        slots.iter().enumerate().all(stands).then_some(Self(slots))
    }

    /// By slot: zero, or the bits of a name.
    #[must_use]
    pub fn slots(&self) -> &[u64] {
        &self.0
    }

    /// A change with this request id was performed.
    pub fn note(&mut self, request_id: u64) {
        if let Some(id) = ForwardId::of(request_id)
            && let Some(place) = self.0.get_mut(id.slot())
        {
            *place = id.bits();
        }
    }

    /// Whether this very change was performed.
    #[must_use]
    pub fn contains(&self, id: ForwardId) -> bool {
        self.0.get(id.slot()) == Some(&id.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_knows_its_newest_change_and_no_other() {
        let mut changes = ForwardedChanges::none(4);
        assert_eq!(changes.slots().len(), FORWARD_SLOTS / 4);
        let (first, second, other) = (ForwardId::new(7, 5), ForwardId::new(8, 5), ForwardId::new(8, 6));
        changes.note(first.bits());
        assert!(changes.contains(first) && !changes.contains(second) && !changes.contains(other));
        changes.note(second.bits());
        changes.note(ForwardId::unlike(other.bits()));
        assert!(!changes.contains(first) && changes.contains(second) && !changes.contains(other));
        assert_eq!(ForwardedChanges::from_slots(changes.slots().to_vec()), Some(changes.clone()));
    }

    #[test]
    fn names_have_an_order_that_goes_round() {
        let name = |number| ForwardId::new(number, 5);
        for number in [7, u64::MAX, NUMBER_MASK] {
            let (older, newer) = (name(number), name(number.wrapping_add(1)));
            assert!(older.is_older_than(newer) && !newer.is_older_than(older) && !older.is_older_than(older));
        }
    }

    #[test]
    fn a_slot_that_does_not_exist_is_nobody_s() {
        let mut changes = ForwardedChanges::none(16);
        let beyond = ForwardId::new(u64::MAX, 16);
        changes.note(beyond.bits());
        assert!(!changes.contains(beyond));
        assert_eq!(ForwardedChanges::from_slots(vec![ForwardId::new(1, 1).bits()]), None, "the wrong place");
        assert_eq!(ForwardedChanges::from_slots(vec![7]), None, "no name");
    }
}
