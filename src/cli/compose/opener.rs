//! Opening a pool: its devices are opened and locked once, on a thread that may wait for them, and handed to every reactor.
//!
//! ```text
//! reactor 0: begin ---> opener's thread: assemble, open, lock ---> each reactor: its queues, its lanes, its engine
//! ```
//!
//! Reactors hear of each other's engines by mailboxes that are new with every opening: no message of an earlier one can arrive.

use super::{
    Shared,
    platform::{Disk, Queues},
    reservation,
    storage::PoolFiles,
};
use crate::cli::{output::Failure, superblocks};
use crossbeam_channel::{Sender, bounded};
use std::{io, sync::Arc, thread::Builder};
use twinlog::{
    base::{LaneIndex, ReactorIndex},
    cp::message::Grant,
    node::{
        engine::{EngineParts, ReactorMessage},
        pools::{NotOpened, OpenedPool, PoolOpener, PoolSlot},
    },
    reactor::{Mailbox, MailboxSender, Waker, mailbox},
};
use twinlog_uring::{AnyLog, Ring};

/// Messages that wait for one reactor's part of a pool. Senders keep what does not fit and try again.
const MESSAGES_MAX: usize = 4096;
/// Openings that wait for one reactor: a node has two pools.
const DELIVERIES_MAX: usize = 4;

/// A pool's devices, on their way to one reactor.
pub(super) struct Delivery {
    grant: Grant,
    files: Arc<PoolFiles>,
    mailbox: Mailbox<ReactorMessage>,
    peers: Vec<MailboxSender<ReactorMessage>>,
}

/// What arrives at one reactor.
pub(super) type Deliveries = Mailbox<(PoolSlot, Result<Delivery, String>)>;

/// Opens pools for all reactors.
pub(super) struct Opener {
    shared: Arc<Shared>,
    wakers: Vec<Arc<dyn Waker>>,
    reactors: Vec<MailboxSender<(PoolSlot, Result<Delivery, String>)>>,
}

impl Opener {
    /// The opener, and where each reactor receives.
    pub(super) fn new(shared: &Arc<Shared>, wakers: &[Arc<dyn Waker>]) -> (Self, Vec<Deliveries>) {
        let (reactors, deliveries) = wakers.iter().map(|waker| mailbox(DELIVERIES_MAX, Arc::clone(waker))).unzip();
        (Self { shared: Arc::clone(shared), wakers: wakers.to_vec(), reactors }, deliveries)
    }

    /// Opens the devices of a slot's pool and hands them to every reactor. Waits for files that a dying process still holds.
    pub(super) fn open(&self, slot: PoolSlot, grant: Grant) -> Result<(), Failure> {
        reservation::open(&self.shared, slot, grant.epoch)?;
        let found = superblocks::assemble(&self.shared.devices, self.shared.names(slot))?;
        for stranger in &found.strangers {
            tracing::warn!(device = %stranger.display(), "configured, but not part of the pool: `twinlog pool grow` adds it");
        }
        let files = Arc::new(PoolFiles::open(&found, &self.shared.devices)?);
        let (peers, mailboxes): (Vec<_>, Vec<_>) =
            self.wakers.iter().map(|waker| mailbox(MESSAGES_MAX, Arc::clone(waker))).unzip();
        for (reactor, mailbox) in self.reactors.iter().zip(mailboxes) {
            let delivery = Delivery { grant, files: Arc::clone(&files), mailbox, peers: peers.clone() };
            // A reactor that is gone needs nothing: the node is ending.
            let _gone = reactor.send((slot, Ok(delivery)));
        }
        Ok(())
    }

    /// A thread that opens what is asked for, until nobody can ask any more.
    pub(super) fn start(self) -> io::Result<Sender<(PoolSlot, Grant)>> {
        let (sender, requests) = bounded::<(PoolSlot, Grant)>(DELIVERIES_MAX);
        let serve = move || {
            for (slot, grant) in requests {
                if let Err(failure) = self.open(slot, grant) {
                    // Reactor 0 has asked; if it is gone, the node is ending.
                    let _gone = self.reactors[0].send((slot, Err(failure.message)));
                }
            }
        };
        Builder::new().name("opener".to_owned()).spawn(serve)?;
        Ok(sender)
    }
}

/// The lanes of one reactor.
type Lanes = Vec<(LaneIndex, AnyLog)>;

/// One reactor's end of it.
pub(super) struct ReactorOpener {
    shared: Arc<Shared>,
    index: u16,
    ring: Ring,
    queues: Queues,
    deliveries: Deliveries,
    /// On reactor 0 of a pair.
    requests: Option<Sender<(PoolSlot, Grant)>>,
}

impl ReactorOpener {
    pub(super) fn new(
        shared: &Arc<Shared>,
        index: u16,
        (ring, queues): (&Ring, Queues),
        deliveries: Deliveries,
        requests: Option<Sender<(PoolSlot, Grant)>>,
    ) -> Self {
        Self { shared: Arc::clone(shared), index, ring: ring.clone(), queues, deliveries, requests }
    }

    /// This reactor's queues to the devices, and its lanes.
    fn storage(&self, slot: PoolSlot, files: &PoolFiles) -> Result<(Vec<Disk>, Lanes), Failure> {
        let portion = &self.shared.held(slot).portion;
        let own_lanes = (self.index..portion.lane_count()).step_by(usize::from(self.shared.reactor_count()));
        let lane = |lane| Ok::<_, Failure>((lane, portion.lane(&self.ring, lane)?));
        Ok((
            files.disks(&self.queues, &self.shared.holds[slot.index()])?,
            own_lanes.map(LaneIndex).map(lane).collect::<Result<_, _>>()?,
        ))
    }

    fn parts(&self, slot: PoolSlot, delivery: Delivery) -> Result<EngineParts<Disk, AnyLog>, NotOpened<Disk, AnyLog>> {
        let Delivery { grant, files, mailbox, peers } = delivery;
        let (storage, failure) = match self.storage(slot, &files) {
            Ok(storage) => (storage, None),
            Err(error) => ((Vec::new(), Vec::new()), Some(error.message)),
        };
        let (devices, lanes) = storage;
        let parts = EngineParts {
            index: ReactorIndex(self.index),
            reactor_count: self.shared.reactor_count(),
            devices,
            lanes,
            blocks: self.shared.blocks.clone(),
            budget: files.budget.clone(),
            limits: self.shared.limits(),
            grant,
            mailbox,
            peers,
            holders: Arc::clone(&files.holders),
        };
        match failure {
            None => Ok(parts),
            Some(reason) => Err(NotOpened::Here(reason, Box::new(parts))),
        }
    }
}

impl PoolOpener<Disk, AnyLog> for ReactorOpener {
    fn begin(&mut self, slot: PoolSlot, grant: Grant) {
        let requests = self.requests.as_ref().expect("reactor 0 of a pair asks");
        // A node has two pools, and each is asked for again only after its answer.
        requests.try_send((slot, grant)).expect("there is room for every pool");
    }

    fn poll(&mut self) -> Option<OpenedPool<Disk, AnyLog>> {
        let (slot, delivered) = self.deliveries.receive()?;
        let opened = match delivered {
            Ok(delivery) => self.parts(slot, delivery),
            Err(reason) => Err(NotOpened::Nowhere(reason)),
        };
        Some((slot, opened))
    }
}
