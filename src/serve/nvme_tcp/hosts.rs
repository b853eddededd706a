//! Which hosts may connect, and what they have to prove. Can change while hosts are connected.

use super::auth::Secret;
use crate::base::HostId;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// A host that may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its qualified name; empty: anybody's.
    pub name: String,
    /// What it must know; none: its name is enough.
    pub secret: Option<Secret>,
    /// What the controller proves to it that it knows, if it asks.
    pub controller_secret: Option<Secret>,
    /// Its identifier: it can have no other, and nobody else can have this one. None: any that is nobody's.
    pub id: Option<HostId>,
}

impl Host {
    /// A host that is known by its name alone.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), secret: None, controller_secret: None, id: None }
    }
}

/// The list; shared by the node's reactors.
#[derive(Debug)]
pub(super) struct Hosts(ArcSwap<List>);

#[derive(Debug)]
struct List {
    hosts: Vec<Arc<Host>>,
    /// The entry of everybody, while there is no list.
    anybody: Option<Arc<Host>>,
}

impl Hosts {
    /// `is_open`: if there are no hosts, all may connect until there is a list, be it an empty one.
    pub(super) fn new(hosts: Vec<Host>, is_open: bool) -> Self {
        let anybody = (is_open && hosts.is_empty()).then(|| Arc::new(Host::named("")));
        Self(ArcSwap::from_pointee(List { hosts: hosts.into_iter().map(Arc::new).collect(), anybody }))
    }

    /// Replaces the list. Hosts that are connected and not admitted by it, or otherwise, are not admitted any more.
    pub(super) fn replace(&self, hosts: Vec<Host>) {
        let hosts = hosts.into_iter().map(Arc::new).collect();
        self.0.store(Arc::new(List { hosts, anybody: None }));
    }

    /// The entry by which the host called so may connect.
    pub(super) fn admit(&self, name: &str) -> Option<Arc<Host>> {
        let list = self.0.load();
        let found = list.hosts.iter().find(|host| host.name == name);
        found.or(list.anybody.as_ref()).cloned()
    }

    /// Whether the host called so may have this identifier.
    pub(super) fn may_have(&self, name: &str, id: HostId) -> bool {
        let list = self.0.load();
        let own = list.hosts.iter().find(|host| host.name == name).and_then(|host| host.id);
        own.map_or_else(|| list.hosts.iter().all(|host| host.id != Some(id)), |own| own == id)
    }

    /// Whether the host called so, which came with `id` and by the entry `admitted`, would come by the same one now.
    pub(super) fn is_admitted(&self, name: &str, id: Option<HostId>, admitted: &Host) -> bool {
        self.admit(name).is_some_and(|host| *host == *admitted) && id.is_none_or(|id| self.may_have(name, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_connect_follows_the_list() {
        let hosts = Hosts::new(Vec::new(), true);
        let before = hosts.admit("nqn.2014-08.a").expect("all may");
        let secret = Some(Secret::new([1; 32]));
        let with_secret = Host { secret, ..Host::named("nqn.2014-08.a") };
        hosts.replace(vec![Host::named("nqn.2014-08.b"), Host::named("nqn.2014-08.a")]);
        assert!(!hosts.is_admitted("nqn.2014-08.a", None, &before), "it came as anybody");
        let named = hosts.admit("nqn.2014-08.a").expect("named");
        assert!(hosts.admit("nqn.2014-08.c").is_none());
        hosts.replace(vec![with_secret, Host::named("nqn.2014-08.b")]);
        assert!(!hosts.is_admitted("nqn.2014-08.a", None, &named), "it came without a secret");
        assert!(hosts.is_admitted("nqn.2014-08.b", None, &Host::named("nqn.2014-08.b")));
        hosts.replace(Vec::new());
        assert!(hosts.admit("nqn.2014-08.b").is_none(), "an empty list is one");
        assert!(Hosts::new(Vec::new(), false).admit("nqn.2014-08.b").is_none(), "others' machines are named");
    }

    #[test]
    fn an_identifier_is_one_hosts_alone_if_the_list_says_whose() {
        let hosts = Hosts::new(Vec::new(), true);
        let [first, second] = [1, 2].map(|byte| HostId::new([byte; 16]).expect("not zero"));
        assert!(hosts.may_have("nqn.2014-08.a", first), "without a list");
        let a = Host { id: Some(first), ..Host::named("nqn.2014-08.a") };
        let b = Host::named("nqn.2014-08.b");
        hosts.replace(vec![b.clone(), a.clone()]);
        assert!(hosts.may_have("nqn.2014-08.a", first) && !hosts.may_have("nqn.2014-08.a", second));
        assert!(!hosts.may_have("nqn.2014-08.b", first) && hosts.may_have("nqn.2014-08.b", second));
        assert!(hosts.is_admitted("nqn.2014-08.b", Some(second), &b) && hosts.is_admitted("nqn.2014-08.b", None, &b));
        assert!(!hosts.is_admitted("nqn.2014-08.b", Some(first), &b));
        hosts.replace(vec![b, Host { id: Some(second), ..a.clone() }]);
        assert!(!hosts.is_admitted("nqn.2014-08.a", Some(first), &a), "it has another one now");
    }
}
