//! What hosts find at a node: one subsystem whose namespaces are the volumes of the node's pools.
//!
//! # Invariants
//!
//! 1. Names follow from the pools' identities alone: both nodes of a pair say the same of the subsystem and of each volume.
//! 2. A namespace's id follows from the volume's and from which of the two pools it is in, and is never another volume's: pools never use an id again.
//! 3. The two nodes' controllers have ids from disjoint halves.
//! 4. A host that is not in the list is refused. While there was never a list, all may connect at a loopback address, and nobody at another one.

use super::{
    access::{AccessView, Views},
    auth::Means,
    controllers::Controllers,
    health::Traffic,
    hosts::{Host, Hosts},
    wire::{
        command::Status,
        log::{Access, Notification, Port, Subsystem},
    },
};
use crate::{
    base::{BlockSize, ObjectId, PoolId, checksum},
    node::{
        admin::{HostStatus, NamespaceStatus, NvmeTcpStatus},
        pools::{PARTNER_BIT, PoolSlot},
        request::{Reach, ReservationNotice, VolumeInfo, VolumeService, VolumeShape},
    },
};
use std::{net::SocketAddr, ops::Range, sync::Arc};
use uuid::{Builder, Uuid};

/// Namespaces that hosts see: a list in one answer has 1024.
pub(super) const NAMESPACES_MAX: usize = super::wire::identify::LIST_MAX;

/// Highest id of a namespace (base 2.0, section 3.2.1.2: the two above mean all, and none).
pub(super) const NAMESPACE_MAX: u32 = 0xffff_fffd;

/// The name of every discovery service (base 2.0, section 3.1.2.3).
pub(super) const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// The first controller of the node whose pool has the higher identity; the other node's begin with 1.
const CONTROLLERS_HIGH: u16 = 0x8000;

/// Groups of namespaces that are reached alike (base 2.0, section 8.1.2): one for each pool.
pub(in crate::serve) const GROUPS: usize = 2;

/// What a target is made of.
#[derive(Clone, Debug)]
pub struct TargetParts {
    /// The node's own pool.
    pub home: PoolId,
    /// The partner's.
    pub partner: Option<PoolId>,
    /// Where this node listens.
    pub address: SocketAddr,
    /// Where the partner does.
    pub partner_address: Option<SocketAddr>,
    /// Names of hosts that may connect and have nothing to prove; see [`Target::replace_hosts`] for others.
    pub hosts: Vec<String>,
}

/// A volume as hosts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) id: u32,
    pub(super) volume: ObjectId,
    pub(super) blocks: u64,
    pub(super) block_size: BlockSize,
}

impl Namespace {
    /// A volume that is this namespace. `None`: none of its blocks is whole.
    fn new(id: u32, volume: ObjectId, shape: VolumeShape) -> Option<Self> {
        let VolumeShape { size_bytes, block_size } = shape;
        let blocks = size_bytes >> block_size.shift();
        (blocks > 0).then_some(Self { id, volume, blocks, block_size })
    }

    /// `count` blocks (at least one) from `first` as bytes of the volume.
    ///
    /// # Errors
    /// They do not lie within the namespace.
    pub(super) fn bytes_of(&self, first: u64, count: u64) -> Result<Range<u64>, Status> {
        let end = first.checked_add(count).filter(|end| *end <= self.blocks).ok_or(Status::OUT_OF_RANGE)?;
        Ok(first << self.block_size.shift()..end << self.block_size.shift())
    }
}

/// What hosts find; shared by the node's reactors.
#[derive(Debug)]
pub struct Target {
    parts: TargetParts,
    subsystem: String,
    serial: String,
    /// Whether the own pool has the higher identity of two.
    is_high: bool,
    pub(super) controllers: Controllers,
    pub(super) views: Views,
    pub(super) traffic: Traffic,
    pub(super) hosts: Hosts,
    means: Option<Means>,
}

impl Target {
    /// A target without hosts.
    #[must_use]
    pub fn new(parts: TargetParts) -> Self {
        let is_high = parts.partner.is_some_and(|partner| partner < parts.home);
        let mut pools: Vec<PoolId> = parts.partner.into_iter().chain([parts.home]).collect();
        pools.sort_unstable();
        let bytes: Vec<u8> = pools.iter().flat_map(|pool| pool.0.to_le_bytes()).collect();
        let identity = identity(&bytes);
        let first = if is_high { CONTROLLERS_HIGH } else { 1 };
        let hosts = parts.hosts.iter().map(Host::named).collect();
        Self {
            hosts: Hosts::new(hosts, parts.address.ip().is_loopback()),
            means: None,
            subsystem: format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid(identity)),
            serial: format!("{:020x}", identity >> 48),
            is_high,
            parts,
            controllers: Controllers::new(first),
            views: Views::default(),
            traffic: Traffic::default(),
        }
    }

    /// The same, with what it takes to authenticate hosts.
    #[must_use]
    pub fn with_means(self, means: Means) -> Self {
        Self { means: Some(means), ..self }
    }

    /// The same, with these hosts beside those of the parts.
    #[must_use]
    pub fn with_hosts(self, hosts: Vec<Host>, means: Means) -> Self {
        let target = self.with_means(means);
        target.replace_hosts(hosts);
        target
    }

    /// These hosts may connect from now on, and those of the parts. The controllers of hosts that may not any more, or have something else to prove, end
    /// within a second.
    ///
    /// # Panics
    /// A host has a secret, and the target was made without what it takes to authenticate it.
    pub fn replace_hosts(&self, hosts: Vec<Host>) {
        assert!(self.means.is_some() || hosts.iter().all(|host| host.secret.is_none()), "somebody to examine them");
        let is_new = |name: &&String| hosts.iter().all(|host| host.name != **name);
        let named: Vec<Host> = self.parts.hosts.iter().filter(is_new).map(Host::named).collect();
        self.hosts.replace(named.into_iter().chain(hosts).collect());
    }

    /// What it takes to authenticate a host that has a secret.
    pub(super) fn means(&self) -> &Means {
        self.means.as_ref().expect("hosts with secrets came with it")
    }

    /// The subsystem's qualified name.
    #[must_use]
    pub fn subsystem(&self) -> &str {
        &self.subsystem
    }

    /// Hosts that are connected.
    #[must_use]
    pub fn hosts(&self) -> Vec<HostStatus> {
        self.controllers.hosts()
    }

    /// What hosts find, for people; `view` is what they were told of the access.
    pub(in crate::serve) fn status<S: VolumeService>(&self, service: &S, view: AccessView) -> NvmeTcpStatus {
        let volumes = service.volumes();
        let status = |namespace: Namespace| {
            let volume = volumes.iter().find(|volume| volume.id == namespace.volume);
            let access = match view[usize::from(self.group_of(namespace.volume) != 1)] {
                Access::Optimized => "optimized",
                Access::NonOptimized => "non-optimized",
                Access::Inaccessible => "inaccessible",
            };
            let volume = volume.map(|volume| volume.name.clone()).unwrap_or_default();
            NamespaceStatus { id: namespace.id, volume, access: access.to_owned() }
        };
        NvmeTcpStatus {
            listen: self.parts.address.to_string(),
            partner: self.parts.partner_address.map(|address| address.to_string()).unwrap_or_default(),
            subsystem: self.subsystem.clone(),
            namespaces: self.namespaces(service).into_iter().map(status).collect(),
        }
    }

    pub(super) fn serial(&self) -> &str {
        &self.serial
    }

    /// The entry by which the host called so may connect.
    pub(super) fn admit(&self, host: &str) -> Option<Arc<Host>> {
        self.hosts.admit(host)
    }

    /// The version of the discovery log. It is a new one, too, when the partner has begun to serve a pool: a host that had given the path to it up is to look
    /// for it again.
    pub(super) fn generation(&self) -> u64 {
        1 + self.views.partner_came()
    }

    /// Where the subsystem and this service are.
    pub(super) fn ports(&self) -> Vec<Port> {
        let port = |subsystem, number, name: &str, address| Port { subsystem, number, name: name.to_owned(), address };
        // The same address has the same number at both nodes.
        let (own, other) = if self.is_high { (2, 1) } else { (1, 2) };
        let mut ports = vec![
            port(Subsystem::CurrentDiscovery, own, DISCOVERY, self.parts.address),
            port(Subsystem::Nvme, own, &self.subsystem, self.parts.address),
        ];
        ports.extend(self.parts.partner_address.map(|address| port(Subsystem::Nvme, other, &self.subsystem, address)));
        ports
    }

    /// The number of the group of a namespace that is reached as all of its pool: 1 or 2.
    pub(super) fn group_of(&self, volume: ObjectId) -> u32 {
        if self.rank(PoolSlot::of(volume)) == 0 { 1 } else { 2 }
    }

    /// For each group where the commands to its namespaces go.
    pub(in crate::serve) fn reach<S: VolumeService>(&self, service: &S) -> [Reach; GROUPS] {
        let [low, high] = if self.is_high { [PoolSlot::Partner, PoolSlot::Home] } else { PoolSlot::ALL };
        [low, high].map(|slot| service.reach(slot.outside(ObjectId(1))))
    }

    /// Whether ids of the pool's volumes are the even ones.
    fn rank(&self, slot: PoolSlot) -> u64 {
        u64::from((slot == PoolSlot::Home) == self.is_high)
    }

    /// The namespace that is this volume, whatever its size. `None`: its id is beyond those of namespaces.
    pub(super) fn id_of(&self, volume: ObjectId) -> Option<u32> {
        let slot = PoolSlot::of(volume);
        let object = volume.0 & !PARTNER_BIT;
        let id = u32::try_from(object.checked_sub(1)?.checked_mul(2)? + 1 + self.rank(slot)).ok()?;
        (id <= NAMESPACE_MAX).then_some(id)
    }

    /// The volume that is this namespace, if there is one.
    pub(super) fn find<S: VolumeService>(&self, service: &S, id: u32) -> Option<Namespace> {
        let place = u64::from(id.checked_sub(1)?);
        let is_home = (place % 2 == 1) == self.is_high;
        let slot = if is_home { PoolSlot::Home } else { PoolSlot::Partner };
        let volume = slot.outside(ObjectId(place / 2 + 1));
        Namespace::new(id, volume, service.shape(volume)?).filter(|_| id <= NAMESPACE_MAX)
    }

    /// A host is to be told of a reservation, at each of its controllers.
    pub(in crate::serve) fn notify(&self, notice: &ReservationNotice) {
        let Some(namespace) = self.id_of(notice.volume) else { return };
        self.controllers.notify(notice.host, Notification { namespace, kind: notice.notice as u8 });
    }

    /// Hosts were to be told of more, and nobody knows which: each sees that something is missing.
    pub(in crate::serve) fn lose_notices(&self, lost: u64) {
        self.controllers.lose(lost);
    }

    /// All namespaces, in order.
    pub(super) fn namespaces<S: VolumeService>(&self, service: &S) -> Vec<Namespace> {
        let namespace = |volume: VolumeInfo| Namespace::new(self.id_of(volume.id)?, volume.id, volume.shape());
        let mut all: Vec<Namespace> = service.volumes().into_iter().filter_map(namespace).collect();
        all.sort_unstable_by_key(|namespace| namespace.id);
        all.truncate(NAMESPACES_MAX);
        all
    }

    /// A volume's identity: NGUID, and UUID.
    pub(super) fn names_of(&self, volume: ObjectId) -> ([u8; 16], [u8; 16]) {
        let pool = match PoolSlot::of(volume) {
            PoolSlot::Home => Some(self.parts.home),
            PoolSlot::Partner => self.parts.partner,
        };
        let mut bytes = pool.unwrap_or_default().0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(volume.0 & !PARTNER_BIT).to_le_bytes());
        let identity = identity(&bytes);
        (identity.to_be_bytes(), uuid(identity).into_bytes())
    }
}

/// 128 bits that stand for `bytes`.
fn identity(bytes: &[u8]) -> u128 {
    u128::from(checksum(1, bytes)) << 64 | u128::from(checksum(2, bytes))
}

/// A UUID of version 8 (RFC 9562, section 5.8): ours to fill.
fn uuid(identity: u128) -> Uuid {
    Builder::from_custom_bytes(identity.to_be_bytes()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(home: u128, partner: Option<u128>) -> Target {
        let address = "127.0.0.1:4420".parse().expect("an address");
        let (home, partner) = (PoolId(home), partner.map(PoolId));
        Target::new(TargetParts { home, partner, address, partner_address: None, hosts: Vec::new() })
    }

    #[test]
    fn both_nodes_say_the_same() {
        let (a, b) = (target(7, Some(9)), target(9, Some(7)));
        assert_eq!(a.subsystem(), b.subsystem());
        assert_eq!(a.serial(), b.serial());
        assert_eq!(a.serial().len(), 20);
        assert_ne!(a.subsystem(), target(7, None).subsystem());
        let (own, same) = (ObjectId(5), ObjectId(5 | PARTNER_BIT));
        assert_eq!((a.id_of(own), a.names_of(own)), (b.id_of(same), b.names_of(same)));
        assert_ne!(a.names_of(own), a.names_of(same));
        assert_ne!(a.id_of(own), a.id_of(same));
        let ids = |target: &Target| {
            let claim = target.controllers.claim("nqn.2014-08.a", 1, false).expect("room");
            claim.controller
        };
        assert!(ids(&a) < CONTROLLERS_HIGH && ids(&b) >= CONTROLLERS_HIGH);
        assert!(crate::serve::nvme_tcp::wire::command::is_name(a.subsystem()));
    }

    #[test]
    fn ids_have_bounds() {
        let target = target(7, Some(9));
        assert_eq!((target.id_of(ObjectId(0)), target.id_of(ObjectId(1))), (None, Some(1)));
        assert_eq!(target.id_of(ObjectId(1 | PARTNER_BIT)), Some(2));
        assert_eq!(target.id_of(ObjectId(0x7fff_fffe | PARTNER_BIT)), Some(0xffff_fffc));
        assert_eq!(target.id_of(ObjectId(0x7fff_ffff)), Some(NAMESPACE_MAX));
        assert_eq!(target.id_of(ObjectId(0x7fff_ffff | PARTNER_BIT)), None);
        assert_eq!(target.id_of(ObjectId(u64::MAX >> 1)), None);
    }

    #[test]
    fn a_list_of_hosts_is_kept() {
        let mut parts = target(7, None).parts;
        let allows = |target: &Target, host: &str| target.admit(host).is_some();
        assert!(allows(&Target::new(parts.clone()), "nqn.2014-08.a"));
        let remote = TargetParts { address: "192.0.2.1:4420".parse().expect("an address"), ..parts.clone() };
        assert!(!allows(&Target::new(remote), "nqn.2014-08.a"));
        parts.hosts = vec!["nqn.2014-08.b".to_owned()];
        let target = Target::new(parts);
        assert!(allows(&target, "nqn.2014-08.b") && !allows(&target, "nqn.2014-08.a"));
        target.replace_hosts(vec![Host::named("nqn.2014-08.a")]);
        assert!(allows(&target, "nqn.2014-08.b") && allows(&target, "nqn.2014-08.a"));
    }
}
