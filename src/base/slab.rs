//! A table of things under way, each named by a number that no later thing will have.

/// The table. A key is slot + generation x 2^32.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

fn parts(key: u64) -> (usize, u32) {
    let slot = usize::try_from(key & u64::from(u32::MAX)).expect("32 bits");
    (slot, u32::try_from(key >> 32).expect("32 bits"))
}

impl<T> Slab<T> {
    /// Puts a thing into the table.
    pub fn insert(&mut self, thing: T) -> u64 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("bounded by the requests in flight")
        });
        let (generation, place) = &mut self.slots[slot as usize];
        *place = Some(thing);
        u64::from(*generation) << 32 | u64::from(slot)
    }

    /// The thing called `key`, if it is still there.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let (slot, generation) = parts(key);
        let (current, place) = self.slots.get_mut(slot)?;
        if *current == generation { place.as_mut() } else { None }
    }

    /// Takes the thing called `key` out.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let (slot, generation) = parts(key);
        let (current, place) = self.slots.get_mut(slot)?;
        if *current != generation {
            return None;
        }
        let thing = place.take()?;
        self.vacate(slot);
        Some(thing)
    }

    /// Drops the thing called `key` where it lies, if it is still there: a large one is not moved for its end.
    pub fn discard(&mut self, key: u64) {
        let (slot, generation) = parts(key);
        if let Some((current, place)) = self.slots.get_mut(slot)
            && *current == generation
            && place.is_some()
        {
            *place = None;
            self.vacate(slot);
        }
    }

    /// No later thing in `slot` has the key that the last one had.
    fn vacate(&mut self, slot: usize) {
        let (generation, _) = &mut self.slots[slot];
        *generation = generation.wrapping_add(1);
        self.free.push(u32::try_from(slot).expect("32 bits"));
    }

    /// Things in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys of the things that are so.
    pub fn keys_of(&self, is_so: impl Fn(&T) -> bool) -> Vec<u64> {
        let named = (0u64..).zip(&self.slots);
        let wanted = named.filter(|(_, (_, place))| place.as_ref().is_some_and(&is_so));
        wanted.map(|(slot, (generation, _))| u64::from(*generation) << 32 | slot).collect()
    }

    /// Takes everything out.
    pub fn drain(&mut self) -> Vec<T> {
        self.keys_of(|_| true).into_iter().filter_map(|key| self.remove(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_names_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_ne!(first, second);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!(slab.len(), 1);
        slab.discard(first);
        assert_eq!(slab.drain(), vec!['b']);
        assert!(slab.is_empty());
        let third = slab.insert('c');
        slab.discard(third);
        slab.discard(third);
        assert!(slab.is_empty() && slab.get_mut(third).is_none());
        assert!(slab.insert('d') != third && slab.insert('e') != third);
        assert_eq!(slab.len(), 2);
    }
}
