//! Holding the reservations of a pool's namespaces: what `twinlog::pair::reservation` decides is given to controllers, by threads that may wait.
//!
//! # Failure cases
//!
//! A command whose end is not known, because its controller was reset, is not repeated: the next report tells whether it was performed. After
//! `twinlog::pair::reservation::Taking` has asked for enough reports a namespace that is still not held is given up. A preemption whose end is not known
//! fences nobody.

use super::{Shared, devices::Opened, pair};
use crate::cli::output::{Exit, Failure};
use std::{
    ops::ControlFlow::{Break, Continue},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};
use twinlog::{
    base::{Epoch, checksum},
    control::config::NodeConfig,
    format::register::NodeIndex,
    node::pools::PoolSlot,
    pair::reservation::{Ask, Change, Claim, Holder, Seen, Taken, Taking},
};
use twinlog_device::{BlockDevice, DeviceErrorKind, Token};
use twinlog_nvme::{Clock, HostId, NvmeDisk, Reservation, ReservationKind, ReservationReport};
use twinlog_pci::PciFunction;

/// The holder alone writes, everybody reads: decision 0015.
pub(super) const KIND: ReservationKind = ReservationKind::WriteExclusive;

/// What this node is to reservations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) host: HostId,
    pub(super) node: NodeIndex,
}

impl Identity {
    /// That of a node whose configuration asks for reservations: from the pair's key and its name, so that it is the same after every start.
    pub(super) fn of(config: &NodeConfig) -> Result<Option<Self>, Failure> {
        let Some(pair) = config.pair.as_ref().filter(|pair| pair.reserves()) else { return Ok(None) };
        let id = pair::key(&pair.key)?.id();
        let text = format!("twinlog {:032x} {}", id.0, config.name);
        let mut host = HostId::default();
        let (low, high) = host.split_at_mut(8);
        low.copy_from_slice(&checksum(1, text.as_bytes()).to_le_bytes());
        high.copy_from_slice(&checksum(2, text.as_bytes()).to_le_bytes());
        let node = if config.name < pair.partner { NodeIndex::First } else { NodeIndex::Second };
        Ok(Some(Self { host, node }))
    }
}

/// What is known of one pool's reservations.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The grant with which the pool was last opened; for a namespace that joins it.
    epoch: AtomicU64,
    /// Whether a command has met the partner's reservation since.
    pub(super) is_lost: AtomicBool,
}

/// Takes every namespace of a slot's pool, before anything of it is read: what the former owner has begun is done or refused from then on.
pub(super) fn open(shared: &Shared, slot: PoolSlot, epoch: Epoch) -> Result<(), Failure> {
    let hold = &shared.holds[slot.index()];
    hold.epoch.store(epoch.0, Ordering::Relaxed);
    hold.is_lost.store(false, Ordering::Release);
    take(shared, slot, epoch, false, shared.names(slot))
}

/// Takes a namespace that joins the node's own pool.
pub(super) fn join(shared: &Shared, name: &PathBuf) -> Result<(), Failure> {
    let epoch = Epoch(shared.holds[PoolSlot::Home.index()].epoch.load(Ordering::Relaxed));
    take(shared, PoolSlot::Home, epoch, false, std::slice::from_ref(name))
}

/// Takes every namespace away from the partner.
pub(super) fn fence(shared: &Shared, slot: PoolSlot, epoch: Epoch) -> Result<(), Failure> {
    take(shared, slot, epoch, true, shared.names(slot))
}

fn take(shared: &Shared, slot: PoolSlot, epoch: Epoch, is_fence: bool, names: &[PathBuf]) -> Result<(), Failure> {
    let Some(Identity { host, node }) = shared.identity else { return Ok(()) };
    let claim = Claim { pool: shared.held(slot).portion.pool(), node, epoch, is_fence };
    for name in names {
        match shared.devices.open(name, twinlog_uring::Access::Exclusive)? {
            Opened::Nvme(namespace) => namespace.hold(&claim, host)?,
            Opened::File(_) => unreachable!("the configuration was checked"),
        }
    }
    Ok(())
}

/// Takes one namespace; `wait` lets some time pass.
pub(super) fn hold<F: PciFunction, C: Clock>(
    disk: &mut NvmeDisk<F, C>,
    claim: &Claim,
    host: HostId,
    mut wait: impl FnMut(),
) -> Result<(), String> {
    let name = disk.info().name.clone();
    if !disk.namespace().can_reserve(KIND) {
        return Err(format!("{name} knows no reservations"));
    }
    let persists = disk.namespace().can_persist().then_some(true);
    let mut said = DeviceErrorKind::Fenced;
    let mut taking = Taking::new(*claim);
    loop {
        let ask = match taking.next_ask() {
            Continue(ask) => ask,
            Break(Taken::Held) => return Ok(()),
            Break(Taken::Later(epoch)) => {
                let (later, mine) = (epoch.0, claim.epoch.0);
                return Err(format!(
                    "{name}: the partner is entitled to it since epoch {later}, this node since {mine}"
                ));
            }
            Break(Taken::Strange) => {
                return Err(format!("{name} is reserved by a host that is no node of this pair: nvme resv-report"));
            }
            Break(Taken::Unproven) => {
                return Err(format!(
                    "{name} was taken away from the partner, but the answer was lost that says that nothing of it is in flight any more: a power switch tells (fence = [\"command\"]), or its next start"
                ));
            }
            Break(Taken::GivenUp) => return Err(format!("{name} cannot be reserved: {said}")),
        };
        match perform(disk, command(ask, persists), &mut wait) {
            Ok(()) => {
                taking.done(ask);
                disk.take_report().iter().for_each(|report| taking.reported(&seen(report, host)));
            }
            // Refused, or nobody knows: the next report tells.
            Err(kind) => said = kind,
        }
    }
}

/// What a controller is asked, and whether a key survives a loss of power.
fn command(ask: Ask, persists: Option<bool>) -> Reservation {
    match ask {
        Ask::Report => Reservation::Report,
        Ask::Do(Change::Register(key)) => Reservation::Register { key: key.bits(), persists },
        Ask::Do(Change::Replace { current, new }) => Reservation::Replace { current, key: new.bits() },
        Ask::Do(Change::Acquire(key)) => Reservation::Acquire { key: key.bits(), kind: KIND },
        Ask::Do(Change::Preempt { key, victim, aborts }) => {
            Reservation::Preempt { key: key.bits(), victim, kind: KIND, aborts }
        }
    }
}

fn perform<F: PciFunction, C: Clock>(
    disk: &mut NvmeDisk<F, C>,
    reservation: Reservation,
    wait: &mut impl FnMut(),
) -> Result<(), DeviceErrorKind> {
    disk.reserve(Token(0), reservation);
    let mut completions = Vec::new();
    loop {
        // It ends: with an answer, or because the controller does not give one in time.
        disk.poll(&mut completions);
        match completions.pop() {
            Some(completion) => return completion.result.map_err(|error| error.kind),
            None => wait(),
        }
    }
}

/// What a report says to `host`.
fn seen(report: &ReservationReport, host: HostId) -> Seen {
    let mine = report.hosts.iter().find(|registrant| registrant.host_id == host);
    let holder = match (report.kind, report.hosts.iter().find(|registrant| registrant.holds)) {
        (None, _) => Holder::Nobody,
        (Some(KIND), Some(holder)) if holder.host_id == host => Holder::Mine,
        (Some(KIND), Some(holder)) => Holder::Other(holder.key),
        // Or its holder is not among those that the report has room for.
        (Some(_), _) => Holder::Strange,
    };
    Seen { mine: mine.map(|registrant| registrant.key), holder }
}

/// That every namespace of both pools can be reserved.
pub(super) fn verify(shared: &Shared) -> Result<(), Failure> {
    if shared.identity.is_none() {
        return Ok(());
    }
    for name in PoolSlot::ALL.into_iter().flat_map(|slot| shared.names(slot)) {
        let Opened::Nvme(namespace) = shared.devices.open(name, twinlog_uring::Access::Exclusive)? else { continue };
        if !namespace.can_reserve() {
            let message = format!("{} knows no reservations, which `fence` asks for", name.display());
            let hint = "fence = [\"command\"] with a program that switches the partner's machine off";
            return Err(Failure::new(Exit::Error, message, hint));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
