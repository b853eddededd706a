//! This node's portion of a pool's change log, and who uses it: the pool's engine while this node owns the pool, the mirror while the partner
//! does, nobody in between.
//!
//! ```text
//!            open                close               idle
//!   Free -----------> Mirror -----------> Closing ----------> Free ---lend---> Lent ---give back---> Free
//!    ^                                                          |
//!    +--------------------- formatted --- Formatting <--format--+
//! ```

use crate::{
    base::{Epoch, Lsn, PortionId},
    changelog::{Format, LaneIdentity},
    pair::mirror::MirrorPortion,
};
use twinlog_device::LogMemory;

/// Opens the lanes of a portion that nobody uses, in their order, on this reactor.
pub type OpenLanes<L> = Box<dyn FnMut() -> Result<Vec<(LaneIdentity, L)>, String>>;

enum Use<L: LogMemory> {
    Free,
    Lent,
    Mirror(MirrorPortion<L>),
    Closing(MirrorPortion<L>),
    Formatting(PortionId, Vec<Format<L>>),
}

/// The portion.
pub struct LocalPortion<L: LogMemory> {
    id: Option<PortionId>,
    used: Use<L>,
    open: OpenLanes<L>,
    /// Why its log memory cannot be used any more.
    failure: Option<String>,
}

impl<L: LogMemory> LocalPortion<L> {
    /// A portion with this id; `None`: it was never formatted, or its headers cannot be read.
    #[must_use]
    pub fn new(id: Option<PortionId>, open: OpenLanes<L>) -> Self {
        Self { id, used: Use::Free, open, failure: None }
    }

    /// Its id, while it can be used.
    pub(super) fn id(&self) -> Option<PortionId> {
        self.id.filter(|_| self.failure.is_none())
    }

    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.used, Use::Free)
    }

    /// Whether it follows an owner's log.
    pub(super) fn is_mirroring(&self) -> bool {
        matches!(&self.used, Use::Mirror(mirror) if mirror.has_begun())
    }

    pub(super) fn mirror(&mut self) -> Option<&mut MirrorPortion<L>> {
        match &mut self.used {
            Use::Mirror(mirror) => Some(mirror),
            _ => None,
        }
    }

    pub(super) fn expected(&self) -> Vec<Option<Lsn>> {
        match &self.used {
            Use::Mirror(mirror) => mirror.expected(),
            _ => Vec::new(),
        }
    }

    /// Begins to take what the owner sends, unless somebody uses it.
    pub(super) fn begin_mirror(&mut self, epoch: Epoch) {
        if self.is_free() && self.id().is_some() {
            match (self.open)() {
                Ok(lanes) => self.used = Use::Mirror(MirrorPortion::open(lanes, epoch)),
                Err(reason) => self.failure = Some(reason),
            }
        }
    }

    /// Takes nothing any more. Returns whether it is free.
    pub(super) fn close_mirror(&mut self) -> bool {
        self.used = match std::mem::replace(&mut self.used, Use::Free) {
            Use::Mirror(mut mirror) => {
                mirror.close();
                Use::Closing(mirror)
            }
            other => other,
        };
        self.is_free()
    }

    /// The engine has it.
    pub(super) fn lend(&mut self) {
        assert!(self.is_free(), "one user at a time");
        self.used = Use::Lent;
    }

    /// The engine has closed.
    pub(super) fn give_back(&mut self) {
        if matches!(self.used, Use::Lent) {
            self.used = Use::Free;
        }
    }

    /// Makes it anew, under another id: what it held counts no more.
    pub(super) fn format(&mut self, id: PortionId) {
        assert!(self.is_free(), "one user at a time");
        match (self.open)() {
            Ok(lanes) => {
                let formats = lanes.into_iter().map(|(identity, log)| Format::new(log, &identity, id)).collect();
                self.used = Use::Formatting(id, formats);
                self.failure = None;
            }
            Err(reason) => self.failure = Some(reason),
        }
    }

    /// Goes on for one turn. Returns whether it was formatted.
    pub(super) fn poll(&mut self) -> bool {
        match &mut self.used {
            Use::Mirror(mirror) => {
                if let Err(error) = mirror.poll() {
                    self.failure = Some(error.to_string());
                }
                return false;
            }
            Use::Free | Use::Lent => return false,
            Use::Closing(_) | Use::Formatting(..) => {}
        }
        match std::mem::replace(&mut self.used, Use::Free) {
            Use::Closing(mut mirror) => {
                // A failure here is found again by whoever opens it next.
                let _known_later = mirror.poll();
                if !mirror.is_idle() {
                    self.used = Use::Closing(mirror);
                }
                false
            }
            Use::Formatting(id, mut formats) => {
                let mut is_done = true;
                for format in &mut formats {
                    match format.poll() {
                        Ok(done) => is_done &= done,
                        Err(error) => self.failure = Some(error.to_string()),
                    }
                }
                if self.failure.is_some() {
                    return false;
                }
                if is_done {
                    self.id = Some(id);
                } else {
                    self.used = Use::Formatting(id, formats);
                }
                is_done
            }
            other => {
                self.used = other;
                false
            }
        }
    }
}
