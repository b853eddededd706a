//! Opening a pool for every reactor of a simulated process, some time after reactor 0 has asked for it; or failing to.

use super::{namespaces::Namespaces, site::slot_of};
use std::{cell::RefCell, collections::VecDeque, rc::Rc, sync::Arc, time::Duration};
use twinlog::{
    alloc::budget::Budget,
    base::{LaneIndex, ReactorIndex},
    cp::message::Grant,
    node::{
        engine::{EngineLimits, EngineParts, ReactorMessage},
        pools::{NotOpened, OpenedPool, PoolOpener, PoolSlot},
    },
    reactor::{Mailbox, MailboxSender, Waker, mailbox},
};
use twinlog_device::{BlockPool, Nanos, Prng};
use twinlog_sim::{Agenda, HostQueue, LogMedium, SimDisk, SimLog, SimMedium};

struct Delivery {
    due: Nanos,
    slot: PoolSlot,
    grant: Grant,
    mailbox: Mailbox<ReactorMessage>,
    peers: Vec<MailboxSender<ReactorMessage>>,
    budget: Budget,
    holders: Arc<()>,
}

/// Pools that a node cannot open for a while: by node, then by pool.
#[derive(Default)]
pub(super) struct Hindrances {
    /// Until when, if at all.
    pub(super) until: [[Option<Nanos>; 2]; 2],
    /// Openings that have failed since one succeeded, or the process began.
    pub(super) failed: [[u32; 2]; 2],
    /// Openings that have failed.
    pub(super) count: u64,
}

impl Hindrances {
    /// Whether a node does not reach a pool's disk.
    pub(super) fn is_in_force(&self, node: usize, pool: usize, now: Nanos) -> bool {
        self.until[node][pool].is_some_and(|until| now < until)
    }

    /// Whether an opening that begins now fails.
    fn is_met(&mut self, node: usize, pool: usize, now: Nanos) -> bool {
        let is_met = self.is_in_force(node, pool, now);
        let failed = &mut self.failed[node][pool];
        *failed = if is_met { *failed + 1 } else { 0 };
        self.count += u64::from(is_met);
        is_met
    }
}

/// Pools on their way to the reactors of one process.
pub(super) struct Openings {
    node: usize,
    hindrances: Rc<RefCell<Hindrances>>,
    /// Where disks are taken before pools are opened; and what waits for that.
    namespaces: Option<Rc<RefCell<Namespaces>>>,
    taking: Vec<(PoolSlot, Grant)>,
    /// What failed, when reactor 0 hears of it, and why.
    failures: VecDeque<(Nanos, PoolSlot, String)>,
    agendas: Vec<Agenda>,
    wakers: Vec<Arc<dyn Waker>>,
    messages_max: usize,
    prng: Prng,
    deliveries: Vec<VecDeque<Delivery>>,
}

impl Openings {
    pub(super) fn new(
        node: usize,
        (hindrances, namespaces): (&Rc<RefCell<Hindrances>>, Option<&Rc<RefCell<Namespaces>>>),
        (agendas, wakers): (&[Agenda], &[Arc<dyn Waker>]),
        messages_max: usize,
        prng: Prng,
    ) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            node,
            hindrances: hindrances.clone(),
            namespaces: namespaces.cloned(),
            taking: Vec::new(),
            failures: VecDeque::new(),
            agendas: agendas.to_vec(),
            wakers: wakers.to_vec(),
            messages_max,
            prng,
            deliveries: agendas.iter().map(|_| VecDeque::new()).collect(),
        }))
    }

    fn begin(&mut self, slot: PoolSlot, grant: Grant) {
        let now = self.agendas[0].world().now();
        let pool = if slot == slot_of(self.node, 0) { 0 } else { 1 };
        if self.hindrances.borrow_mut().is_met(self.node, pool, now) {
            let due = now + Duration::from_nanos(self.prng.between(500, 20_000));
            self.agendas[0].at(due);
            return self.failures.push_back((due, slot, "its disk is in use".to_owned()));
        }
        match &self.namespaces {
            Some(namespaces) => {
                self.taking.push((slot, grant));
                namespaces.borrow_mut().open(self.node, &self.agendas[0], (pool, grant.epoch));
            }
            None => self.deliver(slot, grant),
        }
    }

    /// Goes on with what has waited for a disk.
    fn go_on(&mut self) {
        let Some(namespaces) = self.namespaces.clone() else { return };
        while let Some((pool, result)) = namespaces.borrow_mut().next_opened(self.node) {
            let slot = slot_of(self.node, pool);
            let Some(place) = self.taking.iter().position(|(waiting, _)| *waiting == slot) else { continue };
            let (slot, grant) = self.taking.remove(place);
            match result {
                Ok(()) => self.deliver(slot, grant),
                Err(reason) => self.failures.push_back((self.agendas[0].world().now(), slot, reason)),
            }
        }
    }

    fn deliver(&mut self, slot: PoolSlot, grant: Grant) {
        let (peers, mailboxes): (Vec<_>, Vec<_>) =
            self.wakers.iter().map(|waker| mailbox(self.messages_max, Arc::clone(waker))).unzip();
        let (budget, holders) = (Budget::default(), Arc::new(()));
        for ((agenda, mailbox), deliveries) in self.agendas.iter().zip(mailboxes).zip(&mut self.deliveries) {
            let due = agenda.world().now() + Duration::from_nanos(self.prng.between(500, 20_000));
            agenda.at(due);
            let (peers, budget, holders) = (peers.clone(), budget.clone(), Arc::clone(&holders));
            deliveries.push_back(Delivery { due, slot, grant, mailbox, peers, budget, holders });
        }
    }

    fn next_failure(&mut self, reactor: u16) -> Option<(PoolSlot, String)> {
        if reactor == 0 {
            self.go_on();
        }
        let now = self.agendas[0].world().now();
        self.failures.front().filter(|(due, ..)| reactor == 0 && *due <= now)?;
        self.failures.pop_front().map(|(_, slot, reason)| (slot, reason))
    }

    /// A queue to a disk: of this node, where disks know nodes.
    fn queue(&self, medium: &SimMedium, agenda: &Agenda, grant: &Grant) -> SimDisk {
        match &self.namespaces {
            Some(_) => medium.open_for(agenda, HostQueue { host: self.node, opening: grant.epoch.0 }),
            None => medium.open(agenda),
        }
    }

    fn next(&mut self, reactor: usize) -> Option<Delivery> {
        let now = self.agendas[reactor].world().now();
        let deliveries = &mut self.deliveries[reactor];
        deliveries.front().filter(|delivery| delivery.due <= now)?;
        deliveries.pop_front()
    }
}

/// One reactor's end of it. Pools and their logs are the own one's, then the partner's.
pub(super) struct SimOpener {
    pub(super) openings: Rc<RefCell<Openings>>,
    pub(super) number: u16,
    pub(super) reactor_count: u16,
    pub(super) agenda: Agenda,
    pub(super) blocks: BlockPool,
    pub(super) media: [SimMedium; 2],
    pub(super) logs: [Vec<LogMedium>; 2],
    pub(super) lanes: u16,
}

impl PoolOpener<SimDisk, SimLog> for SimOpener {
    fn begin(&mut self, slot: PoolSlot, grant: Grant) {
        self.openings.borrow_mut().begin(slot, grant);
    }

    fn poll(&mut self) -> Option<OpenedPool<SimDisk, SimLog>> {
        if let Some((slot, reason)) = self.openings.borrow_mut().next_failure(self.number) {
            return Some((slot, Err(NotOpened::Nowhere(reason))));
        }
        let delivery = self.openings.borrow_mut().next(usize::from(self.number))?;
        let Delivery { slot, grant, mailbox, peers, budget, holders, .. } = delivery;
        let place = usize::from(slot == PoolSlot::Partner);
        let own = |(lane, log): (u16, &LogMedium)| {
            (lane % self.reactor_count == self.number).then(|| (LaneIndex(lane), log.open(&self.agenda)))
        };
        let parts = EngineParts {
            index: ReactorIndex(self.number),
            reactor_count: self.reactor_count,
            devices: vec![self.openings.borrow().queue(&self.media[place], &self.agenda, &grant)],
            lanes: (0..).zip(&self.logs[place]).filter_map(own).collect(),
            blocks: self.blocks.clone(),
            budget,
            // Both pools may be open at once.
            limits: EngineLimits::for_memory(self.blocks.block_count() as u64, 2 * u64::from(self.lanes)),
            grant,
            mailbox,
            peers,
            holders,
        };
        Some((slot, Ok(parts)))
    }
}
