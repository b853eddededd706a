//! What a `nvme-tcp://` URI asks for: which subsystem, which namespace, as which host, by which addresses.
//!
//! ```text
//! nvme-tcp://HOST[:PORT][,HOST[:PORT]...]/[SUBSYSTEM][?OPTION[&OPTION...]]
//! ```
//!
//! With a subsystem's name (NQN) the addresses are its paths. Without one they are asked for their discovery log, which says both.

use std::{fmt, time::Duration};

use twinlog_chap::{Group, Hash};
use uuid::{Builder, Uuid};

use crate::{
    prng::Prng,
    target::{Address, decode, parse_authority},
    units::parse_duration,
};

/// The port that IANA gave to NVMe over fabrics.
pub(crate) const DEFAULT_PORT: u16 = 4420;
/// The most paths to one subsystem.
pub(crate) const PATHS_LIMIT: usize = 8;
/// The longest name of a host or subsystem, in bytes (base 2.0, section 4.5.1).
const NAME_LIMIT: usize = 223;
/// Linux's default keep-alive time-out.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Which namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The only one there is.
    Only,
    /// The one with this id (NSID).
    Id(u32),
    /// The one with this UUID.
    Uuid(Uuid),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// The host's qualified name.
    pub(crate) name: String,
    pub(crate) id: [u8; 16],
}

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    /// At least one.
    pub(crate) addresses: Vec<Address>,
    /// `None`: the discovery log says it.
    pub(crate) subsystem: Option<String>,
    pub(crate) which: Which,
    /// A name that was asked for; `None` lets [`Goal::host`] make one.
    pub(crate) host: Option<String>,
    /// The same of an identifier.
    pub(crate) host_id: Option<Uuid>,
    /// What is offered to a target that demands authentication; `None`: all.
    pub(crate) hash: Option<Hash>,
    pub(crate) group: Option<Group>,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    /// How long a path may be silent; zero turns keep alive off.
    pub(crate) keep_alive: Duration,
    /// Data of writes goes into their capsules as far as the target allows it.
    pub(crate) in_capsule: bool,
}

impl Goal {
    /// Who asks: with the name and identifier that were given, or those of this process alone, drawn by `seed`.
    pub(crate) fn host(&self, seed: u64) -> Host {
        let mut drawn = [0; 16];
        Prng::new(seed).fill(&mut drawn);
        let drawn = Builder::from_random_bytes(drawn).into_uuid();
        let name = self.host.clone().unwrap_or_else(|| format!("nqn.2014-08.org.nvmexpress:uuid:{drawn}"));
        Host { name, id: self.host_id.unwrap_or(drawn).into_bytes() }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.which {
            Which::Only => write!(f, "the NVMe namespace")?,
            Which::Id(id) => write!(f, "NVMe namespace {id}")?,
            Which::Uuid(uuid) => write!(f, "NVMe namespace {uuid}")?,
        }
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        write!(f, " at {}", addresses.join(","))
    }
}

/// Reads what follows `nvme-tcp://`.
pub(crate) fn parse_goal(rest: &str) -> Result<Goal, String> {
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authorities, subsystem) = place.split_once('/').unwrap_or((place, ""));
    let subsystem = Some(decode(subsystem)?).filter(|name| !name.is_empty());
    if let Some(name) = &subsystem {
        check_name(name)?;
    }
    let addresses: Vec<Address> = authorities
        .split(',')
        .map(|authority| parse_authority(authority, DEFAULT_PORT, "nvme-tcp://host:port/"))
        .collect::<Result<_, _>>()?;
    if addresses.len() > PATHS_LIMIT {
        return Err(format!("{} addresses; at most {PATHS_LIMIT}", addresses.len()));
    }
    let mut goal = Goal {
        addresses,
        subsystem,
        which: Which::Only,
        host: None,
        host_id: None,
        hash: None,
        group: None,
        header_digest: false,
        data_digest: false,
        keep_alive: KEEP_ALIVE,
        in_capsule: true,
    };
    for option in query.split('&').filter(|option| !option.is_empty()) {
        set(&mut goal, option)?;
    }
    Ok(goal)
}

/// Takes one option of the query.
fn set(goal: &mut Goal, option: &str) -> Result<(), String> {
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    let value = decode(value)?;
    match (key, value.as_str()) {
        ("nsid", id) => {
            let id = id.parse().ok().filter(|id| (1..0xffff_ffff).contains(id));
            goal.which = Which::Id(id.ok_or_else(|| format!("`{option}`: a namespace has an id from 1 on"))?);
        }
        ("uuid", text) => goal.which = Which::Uuid(uuid(option, text)?),
        ("hostid", text) => goal.host_id = Some(uuid(option, text)?),
        ("hostnqn", name) => {
            check_name(name)?;
            goal.host = Some(name.to_owned());
        }
        ("digest", "none") => (goal.header_digest, goal.data_digest) = (false, false),
        ("digest", "header") => goal.header_digest = true,
        ("digest", "data") => goal.data_digest = true,
        ("digest", "both") => (goal.header_digest, goal.data_digest) = (true, true),
        ("hmac", name) => {
            let hash = Hash::ALL.into_iter().find(|hash| hash.name() == name);
            goal.hash = Some(hash.ok_or_else(|| format!("`{option}`: sha256, sha384 or sha512"))?);
        }
        ("dhgroup", name) => {
            let group = Group::ALL.into_iter().find(|group| group.name() == name);
            goal.group = Some(group.ok_or_else(|| format!("`{option}`: null, or ffdhe2048, 3072, 4096, 6144, 8192"))?);
        }
        ("kato", time) => {
            let time = parse_duration(time)?;
            let is_good = time.is_zero() || (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&time);
            goal.keep_alive = is_good.then_some(time).ok_or_else(|| format!("`{option}`: 0, or 100ms to 1h"))?;
        }
        ("capsule", "no") => goal.in_capsule = false,
        _ => {
            let known = "nsid=N, uuid=UUID, hostnqn=NAME, hostid=UUID, digest=none|header|data|both, kato=SECONDS, capsule=no, \
                         hmac=HASH, dhgroup=GROUP";
            return Err(format!("`{option}` is no option of nvme-tcp: {known}"));
        }
    }
    Ok(())
}

fn uuid(option: &str, text: &str) -> Result<Uuid, String> {
    Uuid::parse_str(text).map_err(|_| format!("`{option}`: no UUID"))
}

/// Whether a qualified name can be sent at all; what it must look like is the target's business.
fn check_name(name: &str) -> Result<(), String> {
    match name.starts_with("nqn.") && name.len() <= NAME_LIMIT {
        true => Ok(()),
        false => Err(format!("`{name}` is no NVMe qualified name: nqn. and at most {NAME_LIMIT} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    #[test]
    fn uris_are_read() {
        let goal = parse_goal("a,[::1]:9,b:1/nqn.2014-08.x:y?nsid=3&digest=both&kato=1.5&capsule=no").unwrap();
        assert_eq!(goal.addresses, [tcp("a", 4420), tcp("::1", 9), tcp("b", 1)]);
        assert_eq!((goal.subsystem.as_deref(), goal.which), (Some("nqn.2014-08.x:y"), Which::Id(3)));
        assert!(goal.header_digest && goal.data_digest && !goal.in_capsule);
        assert_eq!(goal.keep_alive, Duration::from_millis(1500));
        let goal = parse_goal("h").unwrap();
        assert_eq!((goal.subsystem.as_deref(), goal.which, goal.keep_alive), (None, Which::Only, KEEP_ALIVE));
        let uuid = "11111111-2222-8333-9444-555555555555";
        let goal = parse_goal(&format!("h/?hostid={uuid}")).unwrap();
        assert_eq!(goal.host(1).id, goal.host(2).id);
        assert_ne!(goal.host(1).name, goal.host(2).name);
        let goal = parse_goal(&format!("h/?uuid={uuid}&hostnqn=nqn.2014-08.me&digest=header")).unwrap();
        let Which::Uuid(found) = goal.which else { panic!("a UUID") };
        assert_eq!((found.to_string().as_str(), goal.host(1).name.as_str()), (uuid, "nqn.2014-08.me"));
        assert!(goal.header_digest && !goal.data_digest);
        assert_eq!((goal.hash, goal.group), (None, None));
        let goal = parse_goal("h/?hmac=sha384&dhgroup=null").unwrap();
        assert_eq!((goal.hash, goal.group), (Some(Hash::Sha384), Some(Group::Null)));
        assert_eq!(parse_goal("h/?dhgroup=ffdhe8192").unwrap().group, Some(Group::Ffdhe8192));
    }

    #[test]
    fn wrong_uris_are_refused_at_the_bound() {
        let hosts = |count: usize| vec!["h"; count].join(",");
        let name = |bytes: usize| format!("h/nqn.{}", "x".repeat(bytes - 4));
        for good in [&hosts(PATHS_LIMIT), &name(223), "h/?kato=0", "h/?kato=100ms", "h/?nsid=4294967294"] {
            assert!(parse_goal(good).is_ok(), "{good}");
        }
        for bad in [
            &hosts(PATHS_LIMIT + 1),
            &name(224),
            "",
            "h,/",
            "h/iqn.x",
            "h/?nsid=0",
            "h/?nsid=4294967295",
            "h/?nsid",
            "h/?uuid=1",
            "h/?uuid=11111111-2222-8333-9444-5555555555555",
            "h/?uuid=+1111111222283339444555555555555",
            "h/?hostnqn=me",
            "h/?kato=50ms",
            "h/?kato=2h",
            "h/?digest=some",
            "h/?capsule=yes",
            "h/?hmac=sha1",
            "h/?hmac",
            "h/?dhgroup=ffdhe1024",
            "h/?dhgroup=2048",
            "h/?x=1",
        ] {
            assert!(parse_goal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_host_has_an_identity_of_its_own() {
        let goal = parse_goal("h").unwrap();
        assert_ne!(goal.host(1), goal.host(2));
        assert!(goal.host(1).name.ends_with(&Uuid::from_bytes(goal.host(1).id).to_string()));
    }
}
