//! The hosts that may connect over NVMe/TCP, with their secrets: a file that the node keeps and changes while it runs (`[nvme_tcp] hosts_file`).
//!
//! ```text
//! [[host]]
//! nqn = "nqn.2014-08.org.nvmexpress:uuid:..."
//! secret = "DHHC-1:01:...:"                      # none: its name is enough
//! controller_secret = "DHHC-1:01:...:"           # none: the controller cannot prove itself to it
//! id = "..."                                     # a UUID; none: any identifier that is nobody's
//! ```
//!
//! # Invariants
//!
//! 1. Nobody but its owner can read or change the file: one of another mode is refused, and it is written so.
//! 2. It is replaced as a whole, and durable before the node follows it: after a crash it is as before or as after, and what was answered is kept.
//! 3. No message, reply or log line has a secret in it.

#![expect(clippy::disallowed_types, reason = "on control threads, which may wait")]

use super::file;
use crate::{
    base::NoHostId,
    node::admin::{AdminReply, HostEntry},
    serve::nvme_tcp::{Host, Target, auth::Secret, wire::command::is_name},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use thiserror::Error;

/// Hosts of one node: as many as it may have connections.
pub const HOSTS_MAX: usize = crate::base::limits::CONNECTIONS_MAX;

/// Largest file that is read: a host's entry has less than 1 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
const _: () = assert!(HOSTS_MAX as u64 * 1024 <= FILE_BYTES_MAX);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    host: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    nqn: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    controller_secret: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

/// Why a file of hosts cannot be used. Never repeats what is in it.
#[derive(Debug, Error)]
pub enum HostsError {
    /// The kernel's reason.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others can read or change it.
    #[error("{} can be read or changed by others (mode {mode:o}), and there are secrets in it: chmod 600", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Its content is wrong.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What, and where.
        what: String,
    },
}

/// The hosts in the file at `path`. `None`: it does not exist, and there never was a list.
///
/// # Errors
/// It cannot be read, others can read it, or something is wrong in it.
pub fn read(path: &Path) -> Result<Option<Vec<Host>>, HostsError> {
    let unreadable = |source| HostsError::Unreadable { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(HostsError::Open { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    parse(&text).map(Some).map_err(|what| HostsError::Content { path: path.to_owned(), what })
}

fn parse(text: &str) -> Result<Vec<Host>, String> {
    let text: Text = toml::from_str(text).map_err(|error| {
        // Its message may repeat a secret.
        let at = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
        format!("line {line} is not as it should be: [[host]] with `nqn`, `secret`, `controller_secret`, `id`")
    })?;
    let mut hosts: Vec<Host> = Vec::new();
    for entry in text.host {
        let name = entry.nqn.escape_debug().to_string();
        if hosts.iter().any(|host| host.name == entry.nqn) {
            return Err(format!("host {name} is there twice"));
        }
        let host =
            host(entry.nqn, entry.id.as_deref(), [&entry.secret, &entry.controller_secret].map(Option::as_deref));
        let host = host.map_err(|why| format!("host {name}: {why}"))?;
        check_id(&host, &hosts)?;
        hosts.push(host);
    }
    if hosts.len() > HOSTS_MAX { Err(format!("{} hosts; at most {HOSTS_MAX}", hosts.len())) } else { Ok(hosts) }
}

/// The host of this name with this identifier, its secret and the controller's, or why there is none.
fn host(name: String, id: Option<&str>, secrets: [Option<&str>; 2]) -> Result<Host, String> {
    if !is_name(&name) {
        return Err("that is no qualified name, as it stands in a host's /etc/nvme/hostnqn: nqn.YYYY-MM....".to_owned());
    }
    let [secret, controller_secret] = secrets;
    let parse = |what: &str, text: Option<&str>| {
        text.map(|text| Secret::parse(text.trim()).map_err(|why| format!("the {what} is none: {why}"))).transpose()
    };
    let host = Host {
        name,
        secret: parse("secret", secret)?,
        controller_secret: parse("controller's secret", controller_secret)?,
        id: id.map(|text| text.trim().parse().map_err(|why: NoHostId| why.to_string())).transpose()?,
    };
    if host.controller_secret.is_some() && host.secret.is_none() {
        return Err("the controller proves itself only to a host that has a secret".to_owned());
    }
    if host.secret.is_some() && host.secret == host.controller_secret {
        return Err("its secret and the controller's are the same".to_owned());
    }
    Ok(host)
}

/// An identifier is one host's.
fn check_id(host: &Host, others: &[Host]) -> Result<(), String> {
    match others.iter().find(|other| host.id.is_some() && other.id == host.id) {
        Some(other) => Err(format!("host {} has the identifier of host {}", host.name, other.name)),
        None => Ok(()),
    }
}

/// Writes the file: a new one, whole and durable, in place of the old one.
fn write(path: &Path, hosts: &[Host]) -> io::Result<()> {
    let entry = |host: &Host| Entry {
        nqn: host.name.clone(),
        secret: host.secret.as_ref().map(Secret::to_text),
        controller_secret: host.controller_secret.as_ref().map(Secret::to_text),
        id: host.id.map(|id| id.to_string()),
    };
    let text = Text { host: hosts.iter().map(entry).collect() };
    let text = toml::to_string(&text).expect("strings in tables");
    file::replace(path, format!("# Kept by `twinlog host`; read when the node starts.\n{text}").as_bytes(), 0o600)
}

/// The hosts of a node that runs.
#[derive(Debug)]
pub struct HostBook {
    /// `None`: there is none, and the hosts of the configuration are all.
    path: Option<PathBuf>,
    /// Of the configuration.
    named: Vec<String>,
    target: Arc<Target>,
    /// As they are in the file.
    hosts: Mutex<Vec<Host>>,
}

impl HostBook {
    /// The book of the file at `path`, in which `hosts` are, and of the hosts `named` in the configuration.
    #[must_use]
    pub fn new(path: Option<PathBuf>, hosts: Vec<Host>, named: Vec<String>, target: Arc<Target>) -> Self {
        Self { path, named, target, hosts: hosts.into() }
    }

    /// Adds a host with its identifier, its secret and the controller's, or gives one that is there these instead of its own.
    #[must_use]
    pub fn add(&self, name: &str, id: Option<&str>, secrets: [Option<&str>; 2]) -> AdminReply {
        let host = match host(name.to_owned(), id, secrets) {
            Ok(host) => host,
            Err(why) => return refused(format!("host {}: {why}", name.escape_debug()), "twinlog host add --help"),
        };
        self.change(|hosts| {
            hosts.retain(|other| other.name != host.name);
            check_id(&host, hosts)?;
            hosts.push(host);
            if hosts.len() > HOSTS_MAX { Err(format!("there are {HOSTS_MAX} hosts already")) } else { Ok(()) }
        })
    }

    /// Removes a host: its controllers end.
    #[must_use]
    pub fn remove(&self, name: &str) -> AdminReply {
        if self.named.iter().any(|named| named == name) {
            let message = format!("host {name} is named in the configuration");
            return refused(message, "remove it from `hosts` in [nvme_tcp] of node.toml, and restart the node");
        }
        self.change(|hosts| {
            let count = hosts.len();
            hosts.retain(|host| host.name != name);
            if hosts.len() == count { Err(format!("there is no host {}", name.escape_debug())) } else { Ok(()) }
        })
    }

    /// All of them, without their secrets.
    #[must_use]
    pub fn list(&self) -> AdminReply {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = |host: &Host| HostEntry {
            nqn: host.name.clone(),
            is_configured: false,
            id: host.id.map(|id| id.to_string()),
            secret: host.secret.as_ref().map(Secret::fingerprint),
            controller_secret: host.controller_secret.as_ref().map(Secret::fingerprint),
        };
        let is_other = |name: &&String| hosts.iter().all(|host| host.name != **name);
        let named = self.named.iter().filter(is_other);
        let named = named.map(|nqn| HostEntry { nqn: nqn.clone(), is_configured: true, ..HostEntry::default() });
        AdminReply::Hosts { hosts: named.chain(hosts.iter().map(entry)).collect() }
    }

    /// 1. what shall be is made; 2. it is durable; 3. the node follows it. A crash before 2 leaves what was, and nobody was told otherwise.
    fn change(&self, change: impl FnOnce(&mut Vec<Host>) -> Result<(), String>) -> AdminReply {
        let Some(path) = &self.path else {
            let hint = "hosts_file = \"/var/lib/twinlog/hosts.toml\" in [nvme_tcp] of node.toml, and restart the node";
            return refused("this node keeps no hosts: its configuration names no file for them".to_owned(), hint);
        };
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = hosts.clone();
        if let Err(why) = change(&mut changed) {
            return refused(why, "twinlog host list");
        }
        if let Err(error) = write(path, &changed) {
            return refused(format!("cannot write {}: {error}", path.display()), "twinlog host list");
        }
        self.target.replace_hosts(changed.clone());
        *hosts = changed;
        tracing::info!(hosts = hosts.len(), "the list of hosts has changed");
        AdminReply::Done
    }
}

fn refused(message: String, hint: &str) -> AdminReply {
    AdminReply::Refused { message, hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{HostId, PoolId},
        serve::nvme_tcp::{
            TargetParts,
            auth::{Here, Means},
        },
    };
    use std::{fs, os::unix::fs::PermissionsExt};

    const NAME: &str = "nqn.2014-08.org.nvmexpress:uuid:1";
    const ID: &str = "11111111-1111-1111-1111-111111111111";

    fn book(path: Option<PathBuf>, named: &[&str]) -> HostBook {
        let address = "127.0.0.1:4420".parse().expect("an address");
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let parts =
            TargetParts { home: PoolId(1), partner: None, address, partner_address: None, hosts: named.clone() };
        let hosts = path.as_deref().and_then(|path| read(path).expect("readable")).unwrap_or_default();
        let means = Means::new([1; 32], Box::new(Here));
        HostBook::new(path, hosts.clone(), named, Arc::new(Target::new(parts).with_hosts(hosts, means)))
    }

    fn listed(book: &HostBook) -> Vec<(String, bool, bool)> {
        let AdminReply::Hosts { hosts } = book.list() else { panic!("a list") };
        hosts.into_iter().map(|host| (host.nqn, host.secret.is_some(), host.controller_secret.is_some())).collect()
    }

    fn is_refused(reply: &AdminReply, why: &str) -> bool {
        matches!(reply, AdminReply::Refused { message, .. } if message.contains(why))
    }

    #[test]
    fn what_is_added_is_kept_for_the_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hosts.toml");
        let (first, second) = (Secret::new([1; 32]).to_text(), Secret::new([2; 32]).to_text());
        let book = book(Some(path.clone()), &["nqn.2014-08.configured"]);
        assert_eq!(book.add(NAME, Some(ID), [Some(&first), Some(&format!("{second}\n"))]), AdminReply::Done);
        assert_eq!(book.add("nqn.2014-08.plain", None, [None; 2]), AdminReply::Done);
        let all = [
            ("nqn.2014-08.configured".to_owned(), false, false),
            (NAME.to_owned(), true, true),
            ("nqn.2014-08.plain".to_owned(), false, false),
        ];
        assert_eq!(listed(&book), all);
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let again = self::book(Some(path.clone()), &["nqn.2014-08.configured"]);
        assert_eq!(listed(&again), all, "after a restart");
        let kept = &read(&path).expect("good").expect("there")[0];
        assert_eq!((&kept.secret, kept.id), (&Some(Secret::new([1; 32])), HostId::new([0x11; 16])));
        assert!(is_refused(&again.add("nqn.2014-08.plain", Some(ID), [None; 2]), "has the identifier of host"));
        assert_eq!(again.add(NAME, Some(&ID.replace('-', "")), [None; 2]), AdminReply::Done, "it is its own");
        assert_eq!(again.add(NAME, None, [Some(&second), None]), AdminReply::Done);
        assert_eq!(read(&path).expect("good").expect("there").len(), 2, "it has another secret now");
        assert_eq!(again.remove(NAME), AdminReply::Done);
        assert!(is_refused(&again.remove(NAME), "there is no host"));
        assert!(is_refused(&again.remove("nqn.2014-08.configured"), "in the configuration"));
        assert_eq!(read(&path).expect("good").expect("there"), [Host::named("nqn.2014-08.plain")]);
    }

    #[test]
    fn what_is_wrong_changes_nothing_and_no_secret_is_repeated() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hosts.toml");
        let book = book(Some(path.clone()), &[]);
        let secret = Secret::new([1; 32]).to_text();
        let short = secret.replace("AQEB", "");
        for (reply, why) in [
            (book.add("iqn.2014-08.a", None, [None; 2]), "no qualified name"),
            (book.add(NAME, None, [Some(&short), None]), "32, 48 or 64 bytes"),
            (book.add(NAME, None, [None, Some(&secret)]), "only to a host that has a secret"),
            (book.add(NAME, None, [Some(&secret); 2]), "are the same"),
            (book.add(NAME, Some("1-2"), [None; 2]), "no host identifier"),
            (book.add(NAME, Some(&ID.replace('1', "0")), [None; 2]), "no host identifier"),
        ] {
            assert!(is_refused(&reply, why), "{reply:?}");
            assert!(!format!("{reply:?}").contains("AQEB"));
        }
        assert!(listed(&book).is_empty() && !path.exists());
        assert!(is_refused(&self::book(None, &[]).add(NAME, None, [None; 2]), "names no file"));
        let unwritable = self::book(Some(directory.path().join("none/hosts.toml")), &[]);
        assert!(is_refused(&unwritable.add(NAME, None, [None; 2]), "cannot write"));
        assert!(listed(&unwritable).is_empty());
    }

    #[test]
    fn a_file_that_is_wrong_or_open_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("hosts.toml");
        let secret = Secret::new([1; 32]).to_text();
        let refusal = |text: &str, mode: u32| {
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            read(&path).map(|_| ()).map_err(|error| error.to_string())
        };
        let good = format!("[[host]]\nnqn = \"{NAME}\"\nsecret = \"{secret}\"\n");
        assert_eq!(refusal(&good, 0o600), Ok(()));
        assert!(refusal(&good, 0o640).expect_err("open").contains("mode 640"));
        for (text, why) in [
            (good.replace("secret = ", "secrets = "), "line 3"),
            (good.replace("[[host]]", "[host]"), "is not as it should be"),
            (good.replace("secret = ", "secret = 5 #"), "line 3"),
            (format!("{good}{good}"), "twice"),
            (format!("{good}id = \"{ID}\"\n{}id = \"{ID}\"\n", good.replace(":1", ":2")), "has the identifier of host"),
            (format!("{good}id = \"{}\"\n", &ID[1..]), "no host identifier"),
            (good.replace("AQEB", "AQEC"), "checksum"),
            (good.replace("nqn.", "iqn."), "no qualified name"),
        ] {
            let said = refusal(&text, 0o600).expect_err("wrong");
            assert!(said.contains(why) && !said.contains("AQE"), "{said}");
        }
        let many: String =
            (0..=HOSTS_MAX).map(|host| format!("[[host]]\nnqn = \"nqn.2014-08.host-{host}\"\n")).collect();
        assert!(refusal(&many, 0o600).expect_err("too many").contains("at most"));
    }
}
