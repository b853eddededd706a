//! What a node does next about one pool, as one table.
//!
//! [`decide`] is a pure function: from what the node sees ([`View`]) to what it does ([`Action`]), with the reason, the deadline and the next
//! step in words for `status`. Nothing else in the program decides about ownership. The rows are in `table.rs`, the first that fits counts;
//! `docs/pair.md` prints them.
//!
//! # Invariants
//!
//! `tests.rs` tries every view; `model.rs` lets two nodes, their register, their logs and the way between them meet in every order.
//!
//! 1. A row fits every view, and every row fits some view first.
//! 2. R1: a node whose replies wait for itself alone goes on only while the register says stale. One whose partner does not mirror any more
//!    swaps the register to stale first; it does so even when it reads stale already, as an earlier swap to in-sync of which it has not
//!    heard may still be on its way.
//! 3. R2: a node opens, answers or drains only while the register names it at the epoch it holds and its lease has not ended.
//! 4. R3: a takeover needs a register that says in-sync, the very portion that it names, and a fence: a confirmed one, or the
//!    owner's own word at this epoch that it does not have the pool open and will not open it. Such an owner would have to claim the
//!    pool first, and of its claim and the takeover the arbiter lets one pass.
//! 5. R7: a portion that is void is not opened; it is discarded only when the register says that another one counts.
//! 6. Every state that is not final has a reason, a deadline and a next step.
//! 7. While at least one portion that holds every answered change can be reached, nodes that act on their decisions reach a pool that is served
//!    in sync, in a bounded number of steps.
//!
//! # Life of a pool at its two nodes
//!
//! ```text
//!            claim, take over                                    hand over
//!  standby ------------------> closed --open--> serving --drain--> drained --> standby
//!     ^  ^                       ^  |              |
//!     |  +------- given up <-----|--+ fails        |   (several times in a row; it is claimed again, unless the partner takes it over)
//!     +--- discard --- void <----+-- stop at once -+   (the lease ended, or the register names the partner)
//! ```
//!
//! # What it does not do
//!
//! It measures no time and sends nothing: whoever calls it (the pair's controller) turns clocks, words and answers into the inputs, and performs the
//! action. An action that is under way is not repeated while the same row decides. A swap ([`super::ownership`]) is made from the register
//! that the view was made of, so a decision upon an old view fails at the arbiter.

mod input;
mod table;

#[cfg(test)]
mod document;
#[cfg(test)]
mod explore;
#[cfg(test)]
mod flaw;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use input::{
    Beat, Command, Fence, Lease, Link, Mirror, Open, Owner, Place, Portion, Replies, View, Word, own_word,
};
use table::When;

/// What a node does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Nothing: all is as it should be.
    Rest,
    /// Nothing before something changes or the deadline has passed.
    Wait,
    /// Nothing: what was asked for, or what would be wanted, is not safe.
    Refuse,
    /// Swap the register to the next epoch, this node remaining the owner; the first time, make it.
    Claim,
    /// Recover the pool from this node's portion and serve it.
    Open,
    /// Look whether the partner's process holds its lock, which harms nobody.
    Probe,
    /// Try the configured fences one after the other.
    Fence,
    /// Close the mirror, then swap the register to this node as owner, stale.
    TakeOver,
    /// As [`Self::TakeOver`], without the register's word that nothing is lost.
    ForceTakeOver,
    /// Swap the register to stale; then answer alone.
    GoStale,
    /// Mirror from here on, take a consistency point, let replies wait for the mirror, then swap the register to in-sync. Where the
    /// register says so already, only the mirror is attached again.
    Resync,
    /// Finish what was admitted, take a last consistency point, close.
    Drain,
    /// Swap the register to the partner as owner, in sync with this node's portion. From the moment it is asked for this process holds no epoch,
    /// until it claims again: a swap of which it has not heard may yet be made, and what it would answer meanwhile would lie above the
    /// consistency point.
    GiveBack,
    /// Answer nothing more, write nothing more, close.
    StopServing,
    /// Format this node's portion anew, with a new portion id.
    Discard,
    /// Ask the partner to hand the pool over.
    Ask,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 16] = [
        Self::Rest,
        Self::Wait,
        Self::Refuse,
        Self::Claim,
        Self::Open,
        Self::Probe,
        Self::Fence,
        Self::TakeOver,
        Self::ForceTakeOver,
        Self::GoStale,
        Self::Resync,
        Self::Drain,
        Self::GiveBack,
        Self::StopServing,
        Self::Discard,
        Self::Ask,
    ];

    /// The action for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::Wait => "wait",
            Self::Refuse => "refuse",
            Self::Claim => "claim",
            Self::Open => "open",
            Self::Probe => "look at the lock",
            Self::Fence => "fence",
            Self::TakeOver => "take over",
            Self::ForceTakeOver => "take over, forced",
            Self::GoStale => "go stale",
            Self::Resync => "resync",
            Self::Drain => "drain",
            Self::GiveBack => "give back",
            Self::StopServing => "stop serving at once",
            Self::Discard => "discard",
            Self::Ask => "ask the partner",
        }
    }
}

/// When a state ends at the latest, and is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deadline {
    /// Never: the state is final.
    Final,
    /// It begins at once, and is tried again every retry interval.
    Now,
    /// The end of the detection time, from the partner's last sign of life.
    Detection,
    /// The end of this node's lease.
    Lease,
    /// The time limit of the fence that is tried.
    FenceLimit,
    /// The giveback delay, or a command.
    GivebackDelay,
    /// The end of the work that is under way: it has no limit of time.
    Work,
    /// The retry interval, again and again, until something changes: usually a person's act.
    Retry,
}

impl Deadline {
    /// The deadline for people.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Final => "none",
            Self::Now => "at once",
            Self::Detection => "the detection time",
            Self::Lease => "the end of the lease",
            Self::FenceLimit => "the fence's time limit",
            Self::GivebackDelay => "the giveback delay, or a command",
            Self::Work => "it is done, without a limit of time",
            Self::Retry => "looked at again every retry interval",
        }
    }
}

/// A row of the table.
#[derive(Debug)]
pub(super) struct Row {
    /// Its name, for logs, tests and `twinlog pair explain`.
    name: &'static str,
    when: When,
    then: Action,
    why: &'static str,
    until: Deadline,
    next: &'static str,
}

/// The names that words for people are filled with.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// This node.
    pub me: &'a str,
    /// Its partner.
    pub partner: &'a str,
    /// The pool.
    pub pool: &'a str,
}

impl Names<'_> {
    fn fill(&self, text: &str) -> String {
        text.replace("{me}", self.me).replace("{partner}", self.partner).replace("{pool}", self.pool)
    }
}

/// What a node does next about a pool, and why.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    row: &'static Row,
}

impl PartialEq for Decision {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.row, other.row)
    }
}

impl Eq for Decision {}

impl Decision {
    /// What to do.
    #[must_use]
    pub fn action(&self) -> Action {
        self.row.then
    }

    /// When the state ends at the latest.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.row.until
    }

    /// Whether all is as it should be.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.row.until == Deadline::Final
    }

    /// The name of the row that decided.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.row.name
    }

    /// The reason, for people.
    #[must_use]
    pub fn why(&self, names: &Names<'_>) -> String {
        names.fill(self.row.why)
    }

    /// What happens next, or what a person can do, for people.
    #[must_use]
    pub fn next(&self, names: &Names<'_>) -> String {
        names.fill(self.row.next)
    }
}

/// What a node that sees `view` does next.
#[must_use]
pub fn decide(view: &View) -> Decision {
    let row = table::ROWS.iter().find(|row| row.when.fits(view));
    Decision { row: row.expect("a row fits every view (I1): tests.rs tries them all") }
}
