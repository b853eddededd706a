//! `[pair]`: the partner node, how it is reached, and what both nodes share.
//!
//! # Invariants
//!
//! 1. `[pair]` stands together with `[partner_pool]` and `[mirror]`, or none of them does.
//! 2. The interconnect can be reached from other machines only with `allow_remote = true`; it is authenticated in any case, and encrypted
//!    with `encrypt = true`.
//! 3. Between machines, and where a pool has NVMe namespaces that the node drives, `lease` fences only with `accept_in_flight_io = true`: it stops a process, not what that has given to a device.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

/// `[pair]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairConfig {
    /// Name of the partner node.
    pub partner: String,
    /// Unix sockets at which the partner is awaited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unix: Vec<PathBuf>,
    /// Addresses at which the partner is awaited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<SocketAddr>,
    /// The partner's sockets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partner_unix: Vec<PathBuf>,
    /// The partner's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partner_tcp: Vec<SocketAddr>,
    /// Whether `tcp` may be reachable from other machines.
    #[serde(default)]
    pub allow_remote: bool,
    /// Whether what the nodes tell each other is encrypted; the same at both.
    #[serde(default)]
    pub encrypt: bool,
    /// Where what talks to the partner runs.
    #[serde(default)]
    pub interconnect: InterconnectPlace,
    /// CPU of the interconnect's thread; none: the scheduler's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interconnect_cpu: Option<usize>,
    /// File with the secret that both nodes share: 64 hexadecimal digits. Nobody but its owner may read it.
    pub key: PathBuf,
    /// The file with the registers of a pair on one machine; none: a witness keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<PathBuf>,
    /// Host and port of the witness that keeps the pair's registers; none: they are in a mailbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
    /// Milliseconds without a sign of the partner after which it is taken for gone.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: u64,
    /// Seconds that the partner must have been back before its pool is given back to it; zero: only by command.
    #[serde(default = "default_giveback_after_s")]
    pub giveback_after_s: u64,
    /// Seconds that a request waits for a pool which neither node serves, before it fails.
    #[serde(default = "default_request_wait_s")]
    pub request_wait_s: u64,
    /// Ways to make sure that the partner has stopped, in the order in which they are tried.
    #[serde(default = "default_fence")]
    pub fence: Vec<FenceKind>,
    /// Whether `lease` may fence between machines, although writes that the partner's devices have in their queues may land after the takeover.
    #[serde(default)]
    pub accept_in_flight_io: bool,
    /// Program and arguments for `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fence_command: Vec<String>,
    /// Seconds that `command` may take.
    #[serde(default = "default_fence_limit_s")]
    pub fence_limit_s: u64,
    /// What `command` reads from its standard input, beside `action` and the partner's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fence_options: BTreeMap<String, String>,
}

/// Where the interconnect runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InterconnectPlace {
    /// On a thread of its own where the machine has a CPU for it, see [`PairConfig::has_interconnect_thread`].
    #[default]
    Auto,
    /// On the first reactor.
    Reactor,
    /// On a thread of its own.
    Thread,
}

/// A way to make sure that the partner has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FenceKind {
    /// The kernel has released the locks of its process: for nodes on one machine.
    Lock,
    /// The process of this machine that has those locks is killed: for nodes on one machine, of which one may stand still.
    Process,
    /// It has given no sign of life at the arbiter for as long as it may serve without. Writes that it had begun may be on their way.
    Lease,
    /// Its lease has ended, and it has lost the reservation of the pool's namespaces: the devices refuse what it writes.
    Reservation,
    /// A command says so: see `fence_command`.
    Command,
}

impl FenceKind {
    /// As the configuration names it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Process => "process",
            Self::Lease => "lease",
            Self::Reservation => "reservation",
            Self::Command => "command",
        }
    }
}

/// Bounds of [`PairConfig::deadline_ms`].
pub(super) const DEADLINE_MS: std::ops::RangeInclusive<u64> = 100..=60_000;
/// Bounds of [`PairConfig::fence_limit_s`].
pub(super) const FENCE_LIMIT_S: std::ops::RangeInclusive<u64> = 1..=3600;

/// Bounds of [`PairConfig::request_wait_s`].
pub(super) const REQUEST_WAIT_S: std::ops::RangeInclusive<u64> = 1..=3_600;

fn default_request_wait_s() -> u64 {
    30
}

fn default_deadline_ms() -> u64 {
    1_000
}

fn default_giveback_after_s() -> u64 {
    5
}

fn default_fence_limit_s() -> u64 {
    60
}

fn default_fence() -> Vec<FenceKind> {
    vec![FenceKind::Lock]
}

impl PairConfig {
    /// For a node whose partner runs on the same machine, in the directory beside its own.
    #[must_use]
    pub fn on_one_machine(partner: &str) -> Self {
        Self {
            partner: partner.to_owned(),
            unix: vec!["pair.sock".into()],
            tcp: Vec::new(),
            partner_unix: vec![format!("../{partner}/pair.sock").into()],
            partner_tcp: Vec::new(),
            allow_remote: false,
            encrypt: false,
            interconnect: InterconnectPlace::Auto,
            interconnect_cpu: None,
            key: "../pair.key".into(),
            mailbox: Some("../disks/mailbox".into()),
            witness: None,
            deadline_ms: default_deadline_ms(),
            giveback_after_s: default_giveback_after_s(),
            request_wait_s: default_request_wait_s(),
            fence: vec![FenceKind::Lock, FenceKind::Process],
            accept_in_flight_io: false,
            fence_command: Vec::new(),
            fence_options: BTreeMap::new(),
            fence_limit_s: default_fence_limit_s(),
        }
    }

    /// An address of the pair that other machines reach; `None`: both nodes are on one machine.
    pub(super) fn remote_address(&self) -> Option<&SocketAddr> {
        self.tcp.iter().chain(&self.partner_tcp).find(|address| !address.ip().is_loopback())
    }

    /// Whether the owner of a pool holds reservations of its namespaces.
    #[must_use]
    pub fn reserves(&self) -> bool {
        self.fence.contains(&FenceKind::Reservation)
    }

    /// Whether the interconnect has a thread of its own on a machine with so many CPUs. By itself it has one only where every reactor and interconnect of the
    /// machine's nodes can have a CPU, and one is left for clients and the kernel: a thread that has to wait for a CPU is slower than none.
    #[must_use]
    pub fn has_interconnect_thread(&self, reactor_count: usize, cpu_count: usize) -> bool {
        let node_count = if self.remote_address().is_none() { 2 } else { 1 };
        match self.interconnect {
            InterconnectPlace::Auto => self.interconnect_cpu.is_some() || cpu_count > node_count * (reactor_count + 1),
            InterconnectPlace::Reactor => false,
            InterconnectPlace::Thread => true,
        }
    }

    /// How long the partner must have been back before its pool is given back to it; `None`: only by command.
    #[must_use]
    pub fn giveback(&self) -> Option<Duration> {
        (self.giveback_after_s > 0).then(|| Duration::from_secs(self.giveback_after_s))
    }

    /// Every path in it.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.unix.iter_mut().chain(&mut self.partner_unix).chain([&mut self.key]).chain(&mut self.mailbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interconnect_has_a_thread_of_its_own_where_there_is_a_cpu_for_it() {
        let near = PairConfig::on_one_machine("b");
        let far = PairConfig { tcp: vec![([192, 0, 2, 1], 7).into()], ..near.clone() };
        let has_thread = |pair: &PairConfig| [1, 2, 3, 4, 5, 6].map(|cpus| pair.has_interconnect_thread(1, cpus));
        assert_eq!(has_thread(&near), [false, false, false, false, true, true], "two nodes, and a CPU for clients");
        assert_eq!(has_thread(&far), [false, false, true, true, true, true]);
        assert!(!far.has_interconnect_thread(3, 4) && far.has_interconnect_thread(3, 5));
        for (interconnect, expected) in [(InterconnectPlace::Reactor, false), (InterconnectPlace::Thread, true)] {
            assert_eq!(has_thread(&PairConfig { interconnect, ..far.clone() }), [expected; 6]);
        }
        assert_eq!(has_thread(&PairConfig { interconnect_cpu: Some(1), ..near }), [true; 6]);
    }
}
