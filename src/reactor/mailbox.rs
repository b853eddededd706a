//! Bounded mailboxes between reactors, and from control threads to a reactor.
//!
//! # Invariants
//!
//! 1. A mailbox holds at most its bound; a full one gives the message back, nobody waits.
//! 2. The receiver's waker is called after every message that was put in, never before: a reactor that looks into its
//!    mailboxes before it sleeps, and whose waker ends a sleep that begins later, misses nothing.
//! 3. Messages of one sender arrive in the order in which they were sent; in one thread the order of all is that of the calls.
//!
//! # What it does not do
//!
//! It never blocks and never allocates after construction. Who may not lose a message keeps what comes back and tries again in a later turn.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use std::{fmt, sync::Arc};

/// Ends the sleep of one reactor, from any thread. The driver decides how (an eventfd, a message to the ring); the simulator sets a flag.
pub trait Waker: Send + Sync {
    /// Ends the sleep, or the next one if the reactor is awake. Cheap when it is awake.
    fn wake(&self);
}

/// Why a message came back.
#[derive(Debug, PartialEq, Eq)]
pub enum SendError<T> {
    /// The mailbox holds its bound.
    Full(T),
    /// The receiver is gone.
    Closed(T),
}

/// The end that puts messages in. Clones are further senders.
pub struct MailboxSender<T> {
    messages: Sender<T>,
    waker: Arc<dyn Waker>,
}

/// The end that takes messages out; owned by one reactor.
#[derive(Debug)]
pub struct Mailbox<T> {
    messages: Receiver<T>,
}

/// A mailbox for at most `bound` messages (at least one), whose receiver is woken by `waker`.
#[must_use]
pub fn mailbox<T>(bound: usize, waker: Arc<dyn Waker>) -> (MailboxSender<T>, Mailbox<T>) {
    assert!(bound > 0, "a mailbox holds at least one message");
    let (sender, receiver) = bounded(bound);
    (MailboxSender { messages: sender, waker }, Mailbox { messages: receiver })
}

impl<T> MailboxSender<T> {
    /// Puts `message` in and wakes the receiver.
    ///
    /// # Errors
    /// Gives the message back when there is no room (I1) or no receiver.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        match self.messages.try_send(message) {
            Ok(()) => {
                self.waker.wake();
                Ok(())
            }
            Err(TrySendError::Full(message)) => Err(SendError::Full(message)),
            Err(TrySendError::Disconnected(message)) => Err(SendError::Closed(message)),
        }
    }
}

impl<T> Clone for MailboxSender<T> {
    fn clone(&self) -> Self {
        Self { messages: self.messages.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<T> fmt::Debug for MailboxSender<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MailboxSender({} waiting)", self.messages.len())
    }
}

impl<T> Mailbox<T> {
    /// The oldest message, if there is one.
    #[must_use]
    pub fn receive(&self) -> Option<T> {
        // Nearly every look finds nothing, and to see that is cheaper than to try.
        if self.is_empty() { None } else { self.messages.try_recv().ok() }
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct CountingWaker(AtomicUsize);

    impl Waker for CountingWaker {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back_and_wakes_nobody() {
        let waker = Arc::new(CountingWaker::default());
        let (sender, receiver) = mailbox(2, Arc::clone(&waker) as Arc<dyn Waker>);
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.clone().send(2), Ok(()));
        assert_eq!(sender.send(3), Err(SendError::Full(3)));
        assert_eq!(waker.0.load(Ordering::Relaxed), 2);
        assert_eq!((receiver.receive(), receiver.receive(), receiver.receive()), (Some(1), Some(2), None));
        assert_eq!(sender.send(4), Ok(()), "room again");
        assert!(!receiver.is_empty());
    }

    #[test]
    fn a_mailbox_without_receiver_says_so() {
        let (sender, receiver) = mailbox(1, Arc::new(CountingWaker::default()));
        drop(receiver);
        assert_eq!(sender.send("lost"), Err(SendError::Closed("lost")));
    }
}
