//! The kernel's files about devices, below a root: `/`, or in tests a directory that looks like it.
//!
//! What they say is bounded and made printable before anybody sees it: a device says of itself what it likes. Names become parts of paths only
//! when they came from a directory, or passed [`PciAddress`].

use serde::Serialize;
use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    str::FromStr,
};

/// An attribute of sysfs is at most a page long.
const TEXT_BYTES_MAX: u64 = 4096;
/// Of a table such as `/proc/self/mountinfo`: some ten thousand lines.
const TABLE_BYTES_MAX: u64 = 1 << 20;
/// Of a directory. No machine has more devices than this on its PCI buses.
const ENTRIES_MAX: usize = 4096;

/// Who owns a file: user and group, by their numbers.
pub(crate) type Owner = (u32, u32);

/// What is asked of the kernel that looking at files does not do, with paths below the root.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    /// Writes a text to a file.
    pub(crate) write: fn(&Path, &str, &str) -> io::Result<()>,
    /// Tells the owner of a file.
    pub(crate) owner: fn(&Path, &str) -> io::Result<Owner>,
    /// Gives a file to another owner.
    pub(crate) give: fn(&Path, &str, Owner) -> io::Result<()>,
}

/// The kernel that this runs on.
const THIS: Kernel = Kernel {
    write: |root, path, text| fs::write(root.join(path), text),
    owner: |root, path| fs::metadata(root.join(path)).map(|facts| (facts.uid(), facts.gid())),
    give: |root, path, (user, group)| chown(root.join(path), Some(user), Some(group)),
};

/// A machine, as its kernel tells of it.
pub(crate) struct Machine {
    root: PathBuf,
    kernel: Kernel,
}

impl Machine {
    /// The machine that this runs on.
    pub(crate) fn this() -> Self {
        Self { root: "/".into(), kernel: THIS }
    }

    /// One whose files lie below `root`, and that does what `kernel` says.
    #[cfg(test)]
    pub(crate) fn below(root: &Path, kernel: Kernel) -> Self {
        Self { root: root.to_owned(), kernel }
    }

    /// One of which nothing is asked.
    #[cfg(test)]
    pub(crate) fn to_look_at(root: &Path) -> Self {
        Self::below(root, Kernel { write: |_, path, _| unreachable!("{path} is written"), ..THIS })
    }

    /// Where a file lies; `path` is relative to the root.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A short text, trimmed and printable; `None` when it is missing, unreadable or empty.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        Some(self.read(path, TEXT_BYTES_MAX)?.trim().chars().map(printable).collect())
            .filter(|text: &String| !text.is_empty())
    }

    /// The same as a number; hexadecimal with `0x`.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        let text = self.text(path)?;
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |digits| u64::from_str_radix(digits, 16).ok())
    }

    /// The lines of a table.
    pub(crate) fn lines(&self, path: &str) -> Vec<String> {
        self.read(path, TABLE_BYTES_MAX).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The names in a directory, in order; none when there is no such directory.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let Ok(directory) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let entries = directory.take(ENTRIES_MAX).filter_map(Result::ok);
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The last name of what a symbolic link leads to.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Asks the kernel for something.
    pub(crate) fn write(&self, path: &str, text: &str) -> io::Result<()> {
        (self.kernel.write)(&self.root, path, text)
    }

    /// Who owns a file.
    pub(crate) fn owner(&self, path: &str) -> io::Result<Owner> {
        (self.kernel.owner)(&self.root, path)
    }

    /// Gives a file to another owner.
    pub(crate) fn give(&self, path: &str, owner: Owner) -> io::Result<()> {
        (self.kernel.give)(&self.root, path, owner)
    }

    fn read(&self, path: &str, bytes_max: u64) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.path(path)).ok()?.take(bytes_max).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn printable(letter: char) -> char {
    if letter.is_control() { '?' } else { letter }
}

/// A place on the PCI buses: `0000:01:00.0`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PciAddress(String);

impl PciAddress {
    /// A file of the device, below the root.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("sys/bus/pci/devices/{self}/{name}")
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for PciAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split([':', '.']).collect();
        let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        match parts[..] {
            // A domain has four digits; behind some controllers (VMD) more.
            [domain, bus, slot, function]
                if (4..=8).contains(&domain.len())
                    && (bus.len(), slot.len(), function.len()) == (2, 2, 1)
                    && [domain, bus, slot].into_iter().all(is_hex)
                    && (b'0'..=b'7').contains(&function.as_bytes()[0])
                    && *text == format!("{domain}:{bus}:{slot}.{function}") =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err("it is not a PCI address, like 0000:01:00.0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_addresses_and_nothing_else() {
        for good in ["0000:01:00.0", "10000:e1:1f.7"] {
            assert_eq!(good.parse::<PciAddress>().expect(good).as_str(), good);
        }
        for bad in [
            "",
            "01:00.0",
            "0000:01:00.8",
            "0000:01:00",
            "0000:01:00.0/..",
            "../../:01:00.0",
            "0000.01.00:0",
            "00000000f:01:00.0",
            "0000:01:0g.0",
        ] {
            bad.parse::<PciAddress>().expect_err(bad);
        }
    }

    #[test]
    fn what_the_kernel_says_is_bounded_and_printable() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let machine = Machine::to_look_at(directory.path());
        let put = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).expect("written");
        put("serial", b"  A\x1b[2JB\xff  \n");
        assert_eq!(machine.text("serial").as_deref(), Some("A?[2JB\u{fffd}"));
        put("long", &vec![b'x'; 1 << 21]);
        assert_eq!(machine.text("long").expect("there").len(), 4096);
        assert_eq!(machine.lines("long")[0].len(), 1 << 20);
        put("blank", b" \n");
        assert_eq!((machine.text("blank"), machine.text("absent")), (None, None));
        put("hex", b"0x010802\n");
        put("huge", b"99999999999999999999\n");
        assert_eq!(
            (machine.number("hex"), machine.number("huge"), machine.number("serial")),
            (Some(0x01_0802), None, None)
        );
        assert!(machine.names("no/such/directory").is_empty());
    }
}
