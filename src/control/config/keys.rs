//! Which keys a configuration has, on which line each stands, and what an unknown one was probably meant to be.

use super::ConfigError;
use std::{collections::BTreeMap, path::Path};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Every key: the table (empty for the top level) and its keys. A test holds this list against the types.
pub(super) const KEYS: [(&str, &[&str]); 13] = [
    (
        "",
        &[
            "name",
            "admin",
            "nbd",
            "nvme_tcp",
            "metrics",
            "reactors",
            "memory",
            "log",
            "pool",
            "nvme",
            "pair",
            "partner_pool",
            "mirror",
            "logging",
        ],
    ),
    ("nbd", &["unix", "tcp", "allow_remote"]),
    ("nvme_tcp", &["listen", "partner", "hosts", "hosts_file", "allow_remote"]),
    ("metrics", &["address"]),
    ("reactors", &["count", "cpus", "idle"]),
    ("memory", &["limit", "pinned"]),
    ("log", &["backend", "path", "size", "allow_volatile"]),
    ("pool", &["name", "devices"]),
    ("nvme", &["fua"]),
    (
        "pair",
        &[
            "partner",
            "unix",
            "tcp",
            "partner_unix",
            "partner_tcp",
            "allow_remote",
            "encrypt",
            "interconnect",
            "interconnect_cpu",
            "key",
            "mailbox",
            "witness",
            "deadline_ms",
            "giveback_after_s",
            "request_wait_s",
            "fence",
            "accept_in_flight_io",
            "fence_command",
            "fence_options",
            "fence_limit_s",
        ],
    ),
    ("partner_pool", &["name", "devices"]),
    ("mirror", &["backend", "path", "size", "allow_volatile"]),
    ("logging", &["level", "format"]),
];

/// Two words are taken for the same with a typing error from this similarity on (Jaro-Winkler, 0 to 1).
const SIMILARITY_MIN: f64 = 0.75;

/// Line, from 1, of every key by its dotted name.
pub(super) struct Lines(BTreeMap<String, usize>);

impl Lines {
    /// The line of `key`, or of its table when it is not written.
    pub(super) fn of(&self, key: &str) -> Option<usize> {
        let table = key.split_once('.').map_or(key, |(table, _)| table);
        self.0.get(key).or_else(|| self.0.get(table)).copied()
    }
}

/// Checks that `text` is TOML with known keys only.
pub(super) fn check(text: &str, file: &Path) -> Result<Lines, ConfigError> {
    let document = DeTable::parse(text).map_err(|error| from_toml(text, file, &error))?;
    let mut lines = BTreeMap::new();
    check_table(text, file, "", document.get_ref(), &mut lines)?;
    Ok(Lines(lines))
}

fn check_table(
    text: &str,
    file: &Path,
    table: &str,
    content: &DeTable<'_>,
    lines: &mut BTreeMap<String, usize>,
) -> Result<(), ConfigError> {
    let known = KEYS.iter().find(|(name, _)| *name == table).map_or(&[][..], |(_, keys)| keys);
    for (key, value) in content {
        let (name, line) = (key.get_ref().as_ref(), line_at(text, key.span().start));
        let dotted = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        if !known.contains(&name) {
            let message = if table.is_empty() {
                format!("unknown key `{name}`")
            } else {
                format!("unknown key `{name}` in [{table}]")
            };
            return Err(ConfigError {
                file: file.to_owned(),
                line: Some(line),
                message,
                hint: suggest(table, name, known),
            });
        }
        lines.insert(dotted, line);
        if table.is_empty() {
            descend(text, file, name, value, lines)?;
        }
    }
    Ok(())
}

fn descend(
    text: &str,
    file: &Path,
    name: &str,
    value: &Spanned<DeValue<'_>>,
    lines: &mut BTreeMap<String, usize>,
) -> Result<(), ConfigError> {
    match value.get_ref() {
        // A value of another kind is the typed reader's business: it says what it wants there.
        DeValue::Table(inner) if KEYS.iter().any(|(table, _)| *table == name) => {
            check_table(text, file, name, inner, lines)
        }
        _ => Ok(()),
    }
}

/// `did you mean` for a misspelt key, or for one that belongs to another table; else the keys there are.
fn suggest(table: &str, name: &str, known: &[&str]) -> String {
    if let Some(word) = closest(name, known.iter().copied()) {
        return format!("did you mean `{word}`?");
    }
    match KEYS.iter().find(|(other, keys)| *other != table && keys.contains(&name)) {
        Some(("", _)) => format!("`{name}` belongs at the top of the file, above every [table]"),
        Some((other, _)) => format!("`{name}` belongs in [{other}]"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// The candidate that `word` was probably meant to be.
fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase().replace('-', "_");
    candidates
        .map(|candidate| (strsim::jaro_winkler(&lower, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate)
}

/// An error of the TOML reader as ours.
pub(super) fn from_toml(text: &str, file: &Path, error: &toml::de::Error) -> ConfigError {
    let line = error.span().map(|span| line_at(text, span.start));
    ConfigError { file: file.to_owned(), line, message: error.message().replace('\n', " "), hint: String::new() }
}

fn line_at(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|&byte| byte == b'\n').count() + 1
}
