//! The few registers of configuration space that this crate uses (PCI Local Bus Specification 3.0, 6.1).

use std::{fs::File, io, os::unix::fs::FileExt};
use twinlog_pci::Identity;

const VENDOR: u64 = 0x00;
const COMMAND: u64 = 0x04;
const REVISION_AND_CLASS: u64 = 0x08;

/// The function answers accesses to its windows.
const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may access memory, and send interrupts that are messages.
const COMMAND_MASTER: u16 = 1 << 2;

/// Configuration space as a part of a file.
pub(crate) struct Config<'a> {
    pub(crate) file: &'a File,
    pub(crate) start: u64,
}

impl Config<'_> {
    pub(crate) fn identity(&self, address: &str) -> io::Result<Identity> {
        let [vendor, device] = [self.read(VENDOR)?, self.read(VENDOR + 2)?].map(u16::from_le_bytes);
        // Revision in the lowest byte.
        let class = u32::from_le_bytes(self.read(REVISION_AND_CLASS)?) >> 8;
        Ok(Identity { address: address.to_owned(), vendor, device, class })
    }

    /// Lets the function access memory.
    pub(crate) fn enable(&self) -> io::Result<()> {
        let command = u16::from_le_bytes(self.read(COMMAND)?) | COMMAND_MEMORY | COMMAND_MASTER;
        self.file.write_all_at(&command.to_le_bytes(), self.start + COMMAND)
    }

    fn read<const BYTES: usize>(&self, offset: u64) -> io::Result<[u8; BYTES]> {
        let mut bytes = [0; BYTES];
        self.file.read_exact_at(&mut bytes, self.start + offset)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_identified_and_enabled() {
        let file = tempfile::tempfile().expect("a file");
        let start = 100;
        file.write_all_at(&[0x36, 0x1b, 0x10, 0x00, 0x01, 0x04, 0, 0, 0x02, 0x02, 0x08, 0x01], start).expect("written");
        let config = Config { file: &file, start };
        let identity = config.identity("0000:01:00.0").expect("read");
        assert_eq!((identity.vendor, identity.device, identity.class), (0x1b36, 0x10, 0x01_0802));
        config.enable().expect("written");
        assert_eq!(config.read(COMMAND).expect("read"), [0x07, 0x04], "other bits stay");
    }
}
