//! NVMe controllers that a node drives itself: the names of their namespaces, and how they are used.
//!
//! A name is `nvme:SERIAL`, or `nvme:SERIAL/2` for another namespace than the first. They stand beside paths, wherever a pool's devices are listed; a file of such
//! a name is written `./nvme:x`.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

const PREFIX: &str = "nvme:";
/// Bytes of a serial number (NVMe base 2.0, 5.17.2.1).
const SERIAL_BYTES_MAX: usize = 20;
const FIRST: u32 = 1;

/// `[nvme]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NvmeConfig {
    /// What a controller's FUA is worth.
    pub fua: Fua,
}

/// How a write to an NVMe controller with a volatile cache is made durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fua {
    /// By FUA, except where the model is known to ignore it.
    #[default]
    Trust,
    /// By a flush after it.
    Flush,
}

/// A namespace of the controller with a serial.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NvmeName {
    /// What the controller says of itself.
    pub serial: String,
    /// Number of the namespace, from 1.
    pub namespace: u32,
}

impl NvmeName {
    /// The name, if `device` is meant as one.
    #[must_use]
    pub fn of(device: &Path) -> Option<Result<Self, &'static str>> {
        let text = device.as_os_str().as_encoded_bytes();
        text.starts_with(PREFIX.as_bytes()).then(|| device.to_str().ok_or("a serial is ASCII").and_then(str::parse))
    }

    /// The one way to write it, which tells equal names by their letters.
    #[must_use]
    pub fn to_path(&self) -> PathBuf {
        self.to_string().into()
    }
}

impl fmt::Display for NvmeName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}", self.serial)?;
        if self.namespace == FIRST { Ok(()) } else { write!(formatter, "/{}", self.namespace) }
    }
}

impl FromStr for NvmeName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_prefix(PREFIX).ok_or("it does not begin with nvme:")?;
        let (serial, namespace) = match name.split_once('/') {
            None => (name, FIRST),
            // The last number means all namespaces at once.
            Some((serial, number)) => match number.parse() {
                Ok(number) if (1..u32::MAX).contains(&number) => (serial, number),
                _ => return Err("behind / stands the number of a namespace, from 1"),
            },
        };
        let is_serial = (1..=SERIAL_BYTES_MAX).contains(&serial.len())
            && serial.trim() == serial
            && serial.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if is_serial {
            Ok(Self { serial: serial.to_owned(), namespace })
        } else {
            Err("a serial has 1 to 20 letters: `twinlog device list`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_name_and_paths_are_none() {
        for (text, serial, namespace, canonical) in [
            ("nvme:S64G", "S64G", 1, "nvme:S64G"),
            ("nvme:S64G/1", "S64G", 1, "nvme:S64G"),
            ("nvme:A B/20", "A B", 20, "nvme:A B/20"),
        ] {
            let name = NvmeName::of(Path::new(text)).expect("meant").expect("good");
            assert_eq!((name.serial.as_str(), name.namespace), (serial, namespace));
            assert_eq!(name.to_path(), Path::new(canonical));
        }
        for path in ["./nvme:x", "/dev/nvme0n1", "nvme0n1", "disks/nvme:x", ""] {
            assert_eq!(NvmeName::of(Path::new(path)), None, "{path}");
        }
        for bad in
            ["nvme:", "nvme:/1", "nvme:S/0", "nvme:S/x", "nvme:S/4294967295", "nvme:S/", "nvme: S", "nvme:\u{e4}"]
        {
            NvmeName::of(Path::new(bad)).expect("meant").expect_err(bad);
        }
        let long = format!("nvme:{}", "x".repeat(21));
        NvmeName::of(Path::new(&long)).expect("meant").expect_err("too long");
    }
}
