//! What the command line may name as a target: an NBD export or an NVMe namespace by its URI, or a file or block device by its path.
//!
//! URIs follow the NBD URI specification: `nbd://host[:port]/export` and `nbd+unix:///export?socket=path`, percent-encoded. TLS
//! (`nbds`) is refused by name. Those of NVMe are in [`nvme::goal`](crate::nvme::goal).

use std::{fmt, path::PathBuf};

use crate::nvme::goal::{Goal, parse_goal};

/// The port that IANA gave to NBD.
const DEFAULT_PORT: u16 = 10809;
/// The longest string that the NBD protocol carries, in bytes.
const NAME_LIMIT: usize = 4096;

/// A parsed target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An export of an NBD server.
    Nbd { address: Address, export: String },
    /// A namespace of an NVMe subsystem, over TCP.
    Nvme(Box<Goal>),
    /// A file or block device.
    Path(PathBuf),
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A host name or address (IPv6 without brackets) and a port.
    Tcp(String, u16),
}

/// Reads a target from the command line.
pub(crate) fn parse_target(text: &str) -> Result<Target, String> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return if text.is_empty() {
            Err("the target is empty".to_owned())
        } else {
            Ok(Target::Path(PathBuf::from(text)))
        };
    };
    if scheme == "nvme-tcp" {
        return parse_goal(rest).map(|goal| Target::Nvme(Box::new(goal)));
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(export)?;
    if export.len() > NAME_LIMIT {
        return Err(format!("the export name is longer than {NAME_LIMIT} bytes"));
    }
    let address = match scheme {
        "nbd" => parse_authority(authority, DEFAULT_PORT, "nbd://host:port/export")?,
        "nbd+unix" if authority.is_empty() => parse_socket(query)?,
        "nbd+unix" => return Err(format!("write nbd+unix:///{export}?socket=PATH (three slashes), not `{text}`")),
        "nbds" | "nbds+unix" => return Err("TLS (nbds) is not supported: use nbd or nbd+unix".to_owned()),
        _ => return Err(format!("unknown scheme `{scheme}`: use nbd://, nbd+unix://, nvme-tcp:// or a path")),
    };
    Ok(Target::Nbd { address, export })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd { address, export } if export.is_empty() => write!(f, "the default NBD export at {address}"),
            Self::Nbd { address, export } => write!(f, "NBD export `{export}` at {address}"),
            Self::Nvme(goal) => goal.fmt(f),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// `host`, `host:port`, `[ipv6]` or `[ipv6]:port`; `example` is a URI that names a host.
pub(crate) fn parse_authority(text: &str, default_port: u16, example: &str) -> Result<Address, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(|| format!("`{text}`: a bracket is missing"))?,
        None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
    };
    if host.is_empty() {
        return Err(format!("the URI names no host: write {example}"));
    }
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().map_err(|_| format!("`{port}` is not a port"))?,
        None if port.is_empty() => default_port,
        None => return Err(format!("`{text}` is not host:port")),
    };
    Ok(Address::Tcp(host.to_owned(), port))
}

/// The value of `socket=` in a query.
fn parse_socket(query: &str) -> Result<Address, String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
    match value.map(decode).transpose()? {
        Some(path) if !path.is_empty() => Ok(Address::Unix(PathBuf::from(path))),
        _ => Err("the URI names no socket: write nbd+unix:///export?socket=PATH".to_owned()),
    }
}

/// Undoes percent-encoding.
pub(crate) fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits =
            rest.get(..2).and_then(|pair| std::str::from_utf8(pair).ok()).filter(|pair| !pair.starts_with('+'));
        let byte = digits.and_then(|pair| u8::from_str_radix(pair, 16).ok());
        bytes.push(byte.ok_or_else(|| format!("`{text}`: a % must be followed by two hexadecimal digits"))?);
        rest = &rest[2..];
    }
    if bytes.contains(&0) {
        return Err(format!("`{text}` contains a zero byte"));
    }
    String::from_utf8(bytes).map_err(|_| format!("`{text}` is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prng::Prng;

    fn unix(path: &str, export: &str) -> Result<Target, String> {
        Ok(Target::Nbd { address: Address::Unix(PathBuf::from(path)), export: export.to_owned() })
    }

    fn tcp(host: &str, port: u16, export: &str) -> Result<Target, String> {
        Ok(Target::Nbd { address: Address::Tcp(host.to_owned(), port), export: export.to_owned() })
    }

    #[test]
    fn uris_and_paths_are_read() {
        assert_eq!(parse_target("nbd+unix:///vol-a?socket=/run/a.sock"), unix("/run/a.sock", "vol-a"));
        assert_eq!(parse_target("nbd+unix://?socket=a"), unix("a", ""));
        assert_eq!(parse_target("nbd+unix:///a%20b%2fc?x=1&socket=/t/%41"), unix("/t/A", "a b/c"));
        assert_eq!(parse_target("nbd://localhost"), tcp("localhost", 10809, ""));
        assert_eq!(parse_target("nbd://h:65535/v"), tcp("h", 65535, "v"));
        assert_eq!(parse_target("nbd://[::1]:9/v"), tcp("::1", 9, "v"));
        assert_eq!(parse_target("/dev/sdz"), Ok(Target::Path(PathBuf::from("/dev/sdz"))));
    }

    #[test]
    fn wrong_uris_are_refused() {
        let long = format!("nbd://h/{}", "x".repeat(4097));
        assert!(parse_target(&format!("nbd://h/{}", "x".repeat(4096))).is_ok());
        for bad in [
            "",
            "nbd://",
            "nbd://:1/x",
            "nbd://h:65536/x",
            "nbd://h:/x",
            "nbd://[::1/x",
            "nbd://[::1]x/y",
            "nbds://h/x",
            "http://h/x",
            "nbd+unix://host/x?socket=y",
            "nbd+unix:///x",
            "nbd+unix:///x?socket=",
            "nbd://h/%4",
            "nbd://h/%zz",
            "nbd://h/%+1",
            "nbd://h/%00",
            "nbd://h/%ff",
            "nvme-tcp://",
            "nvme-tcp://h/?nsid=0",
            &long,
        ] {
            assert!(parse_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn garbage_never_panics() {
        let mut prng = Prng::new(1);
        let alphabet: Vec<char> = "nbd+unix:/?%[]socket=09aé\u{0}".chars().collect();
        for _ in 0..20_000 {
            let length = prng.below(40);
            let tail: String =
                (0..length).map(|_| alphabet[crate::units::index(prng.below(alphabet.len() as u64))]).collect();
            let _ = parse_target(&tail);
            let _ = parse_target(&format!("nbd://{tail}"));
            let _ = parse_target(&format!("nbd+unix:///{tail}"));
            let _ = parse_target(&format!("nvme-tcp://{tail}"));
        }
    }
}
