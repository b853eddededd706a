//! Archives in cpio's `newc` format, which the kernel unpacks as its first file system (Documentation/driver-api/early-userspace).
//!
//! An entry is a header of 110 characters (magic, 13 numbers of 8 hexadecimal digits), the path with a zero byte, the content; path and
//! content are padded to a multiple of 4 bytes. An entry with the name `TRAILER!!!` ends the archive.

use std::io::{self, Write};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// Magic and 13 numbers.
const HEADER_BYTES: usize = 6 + 13 * 8;

const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Writes an archive entry by entry. A folder must come before what lies in it.
pub struct Archive<W: Write> {
    to: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(to: W) -> Self {
        Self { to, inode: 0 }
    }

    /// A folder; `path` has no leading slash.
    ///
    /// # Errors
    ///
    /// Whatever the writer says.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, FOLDER | 0o755, &[])
    }

    /// A file that everybody may execute.
    ///
    /// # Errors
    ///
    /// Whatever the writer says; content of 4 GiB and more is refused.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, REGULAR | 0o755, content)
    }

    /// A symbolic link.
    ///
    /// # Errors
    ///
    /// Whatever the writer says.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, target.as_bytes())
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// Whatever the writer says.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.write(TRAILER, 0, &[], 0)?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        assert!(!path.is_empty() && !path.starts_with('/'), "a path inside the archive: {path:?}");
        self.inode += 1;
        self.write(path, mode, content, self.inode)
    }

    fn write(&mut self, path: &str, mode: u32, content: &[u8], inode: u32) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{path} is too large")))?;
        let name = u32::try_from(path.len() + 1).map_err(|_| io::Error::other(format!("{path} is too long")))?;
        // inode, mode, uid, gid, links, time, size, device (2), special device (2), length of the name, checksum (unused here)
        let numbers = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.to.write_all(MAGIC.as_bytes())?;
        for number in numbers {
            write!(self.to, "{number:08x}")?;
        }
        self.to.write_all(path.as_bytes())?;
        self.to.write_all(&[0])?;
        self.pad(HEADER_BYTES + path.len() + 1)?;
        self.to.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.to.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/bc", b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        let header = "070701000000010000\
                      81ed0000000000000000000000010000000000000005\
                      0000000000000000000000000000000000000005\
                      00000000";
        assert_eq!(header.len(), HEADER_BYTES);
        assert_eq!(&bytes[..110], header.as_bytes());
        assert_eq!(&bytes[110..116], b"a/bc\0\0", "the name is padded: 110 + 5 is no multiple of 4");
        assert_eq!(&bytes[116..124], b"12345\0\0\0");
        assert_eq!(&bytes[124..130], MAGIC.as_bytes());
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn kinds_and_inodes_differ() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("d").unwrap();
        archive.link("d/l", "to").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[6..22], b"00000001000041ed");
        let second = 112;
        assert_eq!(&bytes[second + 6..second + 22], b"000000020000a1ff");
        assert_eq!(&bytes[second + 54..second + 62], b"00000002", "a link's content is its target");
    }
}
