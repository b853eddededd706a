//! What a controller's host is told of reservations (base 2.0, section 8.19.1): its queue of notifications, and what it does not want to hear.
//!
//! # Invariants
//!
//! 1. The oldest notification is read first, and leaves the queue when it was read.
//! 2. Nothing that waits is overwritten. What finds the queue full is lost, and the newest that waits gets the count of the lost one: the host sees that counts are missing.
//!    With nothing that waits, as when it was lost on its way from the partner, they are missing before the next one.
//! 3. Counts never are zero, which says that a page is empty.

use super::wire::log::{self, Notification, NotificationEntry};
use std::collections::{BTreeMap, VecDeque};

/// Notifications of one controller that wait to be read: a host is told of the first one, and can read them all at once.
pub(super) const NOTIFICATIONS_MAX: usize = 64;

/// The bits of feature Reservation Notification Mask (base 2.0, section 5.27.1.25): one for each kind of notification.
pub(super) const MASK_BITS: u32 = 0b1110;

/// Of one controller, from one reset to the next.
#[derive(Debug, Default)]
pub(super) struct Notices {
    queue: VecDeque<NotificationEntry>,
    /// Of the newest one that there was.
    count: u64,
    /// Kinds that the host does not want to hear of, by namespace.
    masks: BTreeMap<u32, u32>,
}

impl Notices {
    /// Something has become known. Returns whether the host has more to read.
    pub(super) fn add(&mut self, notification: Notification) -> bool {
        if self.mask(notification.namespace) & 1 << notification.kind != 0 {
            return false;
        }
        if self.queue.len() >= NOTIFICATIONS_MAX {
            self.lose(1);
            return false;
        }
        self.advance(1);
        self.queue.push_back(NotificationEntry { count: self.count, notification });
        true
    }

    /// So many were lost.
    pub(super) fn lose(&mut self, lost: u64) {
        if lost == 0 {
            return;
        }
        self.advance(lost);
        if let Some(newest) = self.queue.back_mut() {
            newest.count = self.count;
        }
    }

    /// Counts wrap, past the zero of the empty page.
    fn advance(&mut self, by: u64) {
        self.count = self.count.checked_add(by).unwrap_or(1);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The log page of the oldest one.
    pub(super) fn page(&self) -> Vec<u8> {
        log::reservation(self.queue.front(), self.queue.len().saturating_sub(1))
    }

    /// The host has read the oldest one.
    pub(super) fn pass(&mut self) {
        self.queue.pop_front();
    }

    pub(super) fn mask(&self, namespace: u32) -> u32 {
        self.masks.get(&namespace).copied().unwrap_or_default()
    }

    /// Sets the mask of these namespaces; of those that are not `there` any more nothing is kept.
    pub(super) fn set_masks(&mut self, there: &[u32], set: &[u32], mask: u32) {
        self.masks.retain(|namespace, _| there.contains(namespace));
        self.masks.extend(set.iter().map(|&namespace| (namespace, mask & MASK_BITS)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(namespace: u32) -> Notification {
        Notification { namespace, kind: 2 }
    }

    #[test]
    fn a_full_queue_keeps_what_waits_and_tells_that_something_was_lost() {
        let mut notices = Notices::default();
        assert!((0..NOTIFICATIONS_MAX).all(|_| notices.add(released(1))));
        assert!(!notices.add(released(2)));
        notices.lose(2);
        let waiting = u8::try_from(NOTIFICATIONS_MAX).expect("a few");
        for number in 1..waiting {
            assert_eq!(notices.page()[..16], [number, 0, 0, 0, 0, 0, 0, 0, 2, waiting - number, 0, 0, 1, 0, 0, 0]);
            notices.pass();
        }
        assert_eq!(notices.page()[..10], [waiting + 3, 0, 0, 0, 0, 0, 0, 0, 2, 0], "three are missing");
        notices.pass();
        assert_eq!(notices.page(), vec![0; 64]);
        assert!(notices.is_empty() && notices.add(released(1)));
        assert_eq!(notices.page()[0], waiting + 4);
    }

    #[test]
    fn what_was_lost_while_nothing_waits_is_missing_before_the_next_one() {
        let mut notices = Notices::default();
        notices.lose(0);
        notices.lose(2);
        assert!(notices.is_empty());
        assert_eq!(notices.page(), vec![0; 64]);
        assert!(notices.add(released(1)));
        assert_eq!(notices.page()[0], 3);
    }

    #[test]
    fn counts_wrap_past_zero() {
        let mut notices = Notices { count: u64::MAX, ..Notices::default() };
        assert!(notices.add(released(1)));
        assert_eq!(notices.page()[..8], 1_u64.to_le_bytes());
    }

    #[test]
    fn masks_are_of_a_namespace_and_a_kind() {
        let mut notices = Notices::default();
        notices.set_masks(&[1, 2], &[1, 2], 1 << 2 | 1);
        assert_eq!((notices.mask(1), notices.mask(2), notices.mask(3)), (1 << 2, 1 << 2, 0));
        assert!(!notices.add(released(1)) && notices.add(released(3)));
        assert!(notices.add(Notification { namespace: 1, kind: 1 }));
        notices.set_masks(&[2], &[2], 0);
        assert_eq!((notices.mask(1), notices.mask(2)), (0, 0));
        assert_eq!(notices.page()[..10], [1, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    }
}
