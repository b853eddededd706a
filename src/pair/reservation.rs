//! The fence in the devices themselves: who holds the reservation of a namespace, and what a node does next to hold it.
//!
//! A node that serves a pool holds a Write Exclusive reservation on every namespace of it (why that kind: `docs/decisions/0015-*`). The
//! controller refuses every write of anybody else, also one that was on its way. Here is only what follows from a report; who asks controllers
//! is `cli/compose`.
//!
//! # Keys
//!
//! ```text
//! 63      48 47   46          45        0
//! | of pool | node | unproven |  epoch |      the pool's bits are never all zero
//! ```
//!
//! A key names the epoch at which its node was entitled: the owner's claim, or the epoch at which its partner was fenced. So the device itself
//! knows which of two nodes came later, whatever they believe.
//!
//! It also says whether its node may still have a preemption to hear of. Only the answer to a preemption says that everything is ended that the other host had in
//! flight; a report says who holds the namespace, and that from the moment in which the controller begins with it. So who takes away does it with an *unproven* key, and
//! replaces it when the answer has come. Who finds the namespace its own with such a key, because the answer was lost or it is the next life of who has asked, has fenced nobody.
//!
//! # Invariants
//!
//! 1. Only a lower epoch is taken away from: to open a pool, one below the epoch of the grant; to fence, one that is not above the epoch that the
//!    fence was asked for. A node that was entitled long ago and goes on late finds a later key, and gives up.
//! 2. A node's own key never falls to an earlier epoch.
//! 3. Every step names the key that it replaces or takes away, so it fails if that has changed since the report: it is a compare-and-swap.
//! 4. A reservation that no node of the pair made is never touched.
//! 5. A node that holds a namespace with a key that is not unproven has heard the end of its last preemption of it.
//! 6. Nothing is released. Whoever is entitled later takes it over, so a hand-over needs no step of the node that gives, which may have died.
//!
//! # Steps, and a crash after each
//!
//! To **open** at epoch g, on each namespace of the pool, one after the other:
//!
//! | step | a crash of this node here |
//! |---|---|
//! | 1 register (node, g), unproven if another holds it; or replace the own earlier key by it | the holder is as before. If it was this node, it holds with the newer key |
//! | 2 acquire; or preempt the holder's earlier key, whose commands in flight are aborted | this namespace is this node's, the next one still the former owner's. That one is fenced: it stops at its next write. Whoever opens next has a later epoch and takes all |
//! | 3 when the preemption is answered: replace the key by one that is not unproven | the key stays unproven |
//! | 4 report: it holds (node, g) | the same |
//! | 5 all namespaces are held; the pool is opened | the next life of this node finds itself the holder, by its host identifier |
//!
//! An opening does not ask whether its preemption was heard: what entitles it says that the former owner has ended, or was fenced.
//!
//! To **fence** the partner at epoch e, the register's:
//!
//! | step | a crash of this node here |
//! |---|---|
//! | 1 the partner's lease has ended, and cannot be renewed | nothing has happened; the partner claims its pools again |
//! | 2 the steps above with (node, e), until no key is unproven | the partner, if it lives, meets a conflict, stops, and claims the pool at e+1, which is later than e: it takes the namespaces back |
//! | 3 the fence is confirmed | the same |
//! | 4 the register is swapped from e to e+1 | if the partner's claim was first, the swap fails and the partner takes the namespaces back; else it is fenced for good, and this node's next life opens at e+1 |
//! | 5 the pool is opened at e+1: the own key is replaced | as above |
//!
//! # What it does not do
//!
//! It keeps nobody from reading or answering: that is what the end of the lease is for. Where the device loses its power and cannot keep
//! reservations over that (PTPL), nobody holds it until the next opening or fence; what was in flight is lost with the power.
//!
//! It cannot prove a preemption whose answer was lost: the victim is no registrant any more, and nothing can be asked of a controller that ends its commands. Such a
//! fence fails until the partner opens the pool again, which takes the namespace back, or another fence confirms (decision 0015).

use crate::{
    base::{Epoch, PoolId, checksum, planted},
    format::register::NodeIndex,
};
use std::{
    fmt,
    ops::ControlFlow::{self, Break, Continue},
};

const EPOCH_BITS: u32 = 46;
const UNPROVEN: u64 = 1 << EPOCH_BITS;
const NODE_BIT: u32 = EPOCH_BITS + 1;

/// What a node registers with a namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// That of a node for a pool, entitled at `epoch`.
    ///
    /// # Panics
    /// When the epoch is beyond every real one.
    #[must_use]
    pub fn new(pool: PoolId, node: NodeIndex, epoch: Epoch) -> Self {
        assert!(epoch.0 < 1 << EPOCH_BITS, "an epoch grows by one with each change of a pool's mode");
        let node = match node {
            NodeIndex::First => 0,
            NodeIndex::Second => 1 << NODE_BIT,
        };
        Self(tag(pool) | node | epoch.0)
    }

    /// The same, as long as its node may have a preemption to hear of.
    #[must_use]
    fn unproven(self) -> Self {
        Self(self.0 | UNPROVEN)
    }

    /// As the device keeps it.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Since when the node with the key `bits` was entitled; `None`: it is none of this pool.
    fn epoch_of(pool: PoolId, bits: u64) -> Option<Epoch> {
        let is_ours = bits >> (NODE_BIT + 1) == tag(pool) >> (NODE_BIT + 1);
        is_ours.then_some(Epoch(bits & ((1 << EPOCH_BITS) - 1)))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#018x}", self.0)
    }
}

fn tag(pool: PoolId) -> u64 {
    (checksum(0, &pool.0.to_le_bytes()) | 1 << (NODE_BIT + 1)) & !((1 << (NODE_BIT + 1)) - 1)
}

/// What a report says of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seen {
    /// The key that this host has registered.
    pub mine: Option<u64>,
    /// Who holds it.
    pub holder: Holder,
}

/// The holder of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Holder {
    /// Nobody: anybody may write.
    #[default]
    Nobody,
    /// This host.
    Mine,
    /// Another host, with this key.
    Other(u64),
    /// A reservation of another kind than this page speaks of: not made by a node.
    Strange,
}

/// What a node wants to hold a namespace for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The pool.
    pub pool: PoolId,
    /// This node.
    pub node: NodeIndex,
    /// Its grant's epoch, or the one at which the partner is fenced.
    pub epoch: Epoch,
    /// Whether it is a fence: a holder of the same epoch is taken away from, too.
    pub is_fence: bool,
}

/// A change of who is registered with a namespace, or who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Register a key: this host has none.
    Register(Key),
    /// Replace this host's key.
    Replace {
        /// What it is.
        current: u64,
        /// What it becomes.
        new: Key,
    },
    /// Take what nobody holds.
    Acquire(Key),
    /// Take it away from the holder.
    Preempt {
        /// This host's.
        key: Key,
        /// The holder's.
        victim: u64,
        /// Whether its commands in flight are ended first: else they may still be performed (base 8.19).
        aborts: bool,
    },
}

/// What taking a namespace has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is held.
    Held,
    /// Somebody is entitled to it since this later epoch, as their key says.
    Later(Epoch),
    /// It is reserved by a stranger.
    Strange,
    /// It is held, but whether everything has ended that the partner had in flight is not known: a fence is not confirmed.
    Unproven,
    /// It is still not held, after as many reports as are asked for.
    GivenUp,
}

impl Claim {
    /// What follows from a report: the next change, or the end. `is_heard`: the last preemption that was asked for was answered well.
    pub fn next(&self, seen: &Seen, is_heard: bool) -> ControlFlow<Taken, Change> {
        use Change::{Acquire, Preempt, Register, Replace};
        let key = Key::new(self.pool, self.node, self.epoch);
        let of = |bits| Key::epoch_of(self.pool, bits);
        match seen.holder {
            Holder::Strange => return Break(Taken::Strange),
            Holder::Other(bits) => match of(bits) {
                None => return Break(Taken::Strange),
                Some(_) if planted::is("later-key-not-compared") => {}
                Some(theirs) if theirs > self.epoch => return Break(Taken::Later(theirs)),
                Some(theirs) if theirs == self.epoch && !self.is_fence => return Break(Taken::Later(theirs)),
                Some(_) => {}
            },
            Holder::Nobody | Holder::Mine => {}
        }
        let is_unproven = match seen.holder {
            Holder::Other(_) | Holder::Strange => true,
            Holder::Nobody | Holder::Mine => seen.mine.is_some_and(|mine| mine & UNPROVEN != 0) && !is_heard,
        };
        let key = if is_unproven { key.unproven() } else { key };
        match seen.mine {
            None => return Continue(Register(key)),
            Some(current) if current == key.bits() => {}
            Some(current) => {
                return match of(current) {
                    Some(mine) if mine > self.epoch => Break(Taken::Later(mine)),
                    _ => Continue(Replace { current, new: key }),
                };
            }
        }
        match seen.holder {
            Holder::Nobody => Continue(Acquire(key)),
            Holder::Other(_) if planted::is("takeover-without-preempting") => Break(Taken::Held),
            Holder::Other(victim) => Continue(Preempt { key, victim, aborts: !planted::is("preempt-without-abort") }),
            Holder::Mine if is_unproven && self.is_fence && !planted::is("unheard-preemption-is-a-fence") => {
                Break(Taken::Unproven)
            }
            Holder::Mine | Holder::Strange => Break(Taken::Held),
        }
    }
}

/// Reports of one namespace that are asked for, at most: three are enough, and again when the partner does the same, or answers are lost.
const REPORTS_MAX: u32 = 16;

/// Taking one namespace, command by command. Who can ask its controller does what [`Taking::next_ask`] says, and hands in what is reported, and that a change was answered
/// well. What becomes of one that was not is not asked: the next report tells who holds the namespace.
#[derive(Clone, Debug)]
pub struct Taking {
    claim: Claim,
    reports_left: u32,
    next: Option<ControlFlow<Taken, Change>>,
    /// The last preemption that was asked for was answered well.
    is_heard: bool,
}

/// What a controller is asked next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Who is registered, and who holds the namespace.
    Report,
    /// A change of that.
    Do(Change),
}

impl Taking {
    /// Begins.
    #[must_use]
    pub fn new(claim: Claim) -> Self {
        Self { claim, reports_left: REPORTS_MAX, next: None, is_heard: false }
    }

    /// What is to be asked next, after what was asked before has ended; or what it has come to.
    pub fn next_ask(&mut self) -> ControlFlow<Taken, Ask> {
        match self.next.take() {
            Some(Continue(change)) => {
                self.is_heard &= !matches!(change, Change::Preempt { .. });
                Continue(Ask::Do(change))
            }
            Some(Break(taken)) => Break(taken),
            None if self.reports_left == 0 => Break(Taken::GivenUp),
            None => {
                self.reports_left -= 1;
                Continue(Ask::Report)
            }
        }
    }

    /// What the report says that was asked for.
    pub fn reported(&mut self, seen: &Seen) {
        self.next = Some(self.claim.next(seen, self.is_heard));
    }

    /// What was asked for was answered: it is done.
    pub fn done(&mut self, ask: Ask) {
        self.is_heard |= matches!(ask, Ask::Do(Change::Preempt { .. }));
    }
}

#[cfg(test)]
mod tests;
