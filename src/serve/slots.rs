//! Requests in flight under small numbers, which come back with the engine's replies.

use crate::base::limits::REQUESTS_PER_CONNECTION_MAX;

/// A table whose entries keep their number until they are removed.
#[derive(Debug)]
pub(super) struct Slots<T> {
    entries: Vec<Option<T>>,
    free: Vec<u16>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry's number.
    pub(super) fn insert(&mut self, entry: T) -> u16 {
        if let Some(slot) = self.free.pop() {
            self.entries[usize::from(slot)] = Some(entry);
            return slot;
        }
        assert!(self.entries.len() < REQUESTS_PER_CONNECTION_MAX, "the caller bounds the requests in flight");
        self.entries.push(Some(entry));
        u16::try_from(self.entries.len() - 1).expect("bounded above")
    }

    /// The entry, if somebody else's number is one.
    pub(super) fn get(&self, slot: u16) -> Option<&T> {
        self.entries.get(usize::from(slot)).and_then(Option::as_ref)
    }

    pub(super) fn get_mut(&mut self, slot: u16) -> &mut T {
        self.entries.get_mut(usize::from(slot)).and_then(Option::as_mut).expect("the slot is in use")
    }

    /// The entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }

    /// Drops the entry where it lies.
    pub(super) fn discard(&mut self, slot: u16) {
        let entry = &mut self.entries[usize::from(slot)];
        assert!(entry.is_some(), "the slot is in use");
        *entry = None;
        self.free.push(slot);
    }

    pub(super) fn remove(&mut self, slot: u16) -> T {
        let entry = self.entries[usize::from(slot)].take().expect("the slot is in use");
        self.free.push(slot);
        entry
    }
}
