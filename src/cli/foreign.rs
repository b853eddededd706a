//! Whose data a file or device holds, before anything of ours is written to it.
//!
//! Nothing is recognised by name alone: whatever is not zero is somebody's. The table only says whose, in the words that `wipefs` uses.
//!
//! Devices are looked at where labels lie, at the head and at the tail; a file also everywhere that the file system says holds data, for
//! a file may be a disk image with an empty head.

use super::superblocks::{self, ReadAt};
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};
use std::{fs::File, io, path::Path};
use twinlog::base::limits::BLOCK_BYTES;

/// Looked at, at the head and at the tail of a device: partition tables, labels of file systems (btrfs: at 64 KiB) and of
/// volume managers (ZFS: the first and last 512 KiB) all lie there.
pub(crate) const LOOK_BYTES: u64 = 1 << 20;

const CHANGE_LOG: &str = "a change log of Twinlog";

/// A label: whose it is, where, counted from the head, and its bytes.
const HEAD_LABELS: [(&str, u64, &[u8]); 24] = [
    ("an XFS file system", 0, b"XFSB"),
    ("an encrypted volume (LUKS)", 0, b"LUKS\xba\xbe"),
    ("a squashfs image", 0, b"hsqs"),
    ("a disk image (QCOW)", 0, b"QFI\xfb"),
    ("a Ceph BlueStore", 0, b"bluestore block device"),
    (CHANGE_LOG, 0, b"TWLLANE1"),
    ("a member of a RAID (md 1.1)", 0, b"\xfc\x4e\x2b\xa9"),
    ("a physical volume of LVM", 512, b"LABELONE"),
    ("a physical volume of LVM", 0, b"LABELONE"),
    ("a physical volume of LVM", 1024, b"LABELONE"),
    ("a physical volume of LVM", 1536, b"LABELONE"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 54, b"FAT"),
    ("a FAT file system", 82, b"FAT32"),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("a member of a RAID (md 1.2)", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a bcache device", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    ("an ISO 9660 file system", 32_769, b"CD001"),
    ("a btrfs file system", 65_600, b"_BHRfS_M"),
];

/// Labels by their distance from the end.
const TAIL_LABELS: [(&str, u64, &[u8]); 3] = [
    ("a GPT partition table", 512, b"EFI PART"),
    ("a member of a RAID (md 1.0)", 8192, b"\xfc\x4e\x2b\xa9"),
    ("a member of a RAID (md 0.90)", 65_536, b"\xfc\x4e\x2b\xa9"),
];

/// Where the uberblocks of a ZFS label lie: the upper half of its 256 KiB, one in each KiB.
const ZFS_LABEL_BYTES: usize = 256 << 10;
/// The magic number of an uberblock, in either byte order.
const ZFS_MAGICS: [[u8; 8]; 2] = [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()];

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// Whose it is: `an XFS file system`; or `data`.
    pub(crate) what: String,
    /// Its first byte that is not zero.
    pub(crate) byte: u64,
    /// Whether Twinlog wrote it.
    pub(crate) is_ours: bool,
}

/// Looks at the head, the tail, and, `everywhere`, at what else a file holds. `None`: only zeroes.
pub(crate) fn find(medium: &impl ReadAt, path: &Path, bytes: u64, everywhere: bool) -> io::Result<Option<Foreign>> {
    let look_bytes = usize::try_from(LOOK_BYTES.min(bytes)).expect("small");
    let (mut head, mut tail) = (vec![0; look_bytes], vec![0; look_bytes]);
    medium.read_exact_at(&mut head, 0)?;
    let tail_start = bytes - tail.len() as u64;
    medium.read_exact_at(&mut tail, tail_start)?;
    let used = |part: &[u8]| part.iter().position(|&byte| byte != 0).map(|at| at as u64);
    if let Some(byte) = used(&head).or_else(|| used(&tail).map(|at| tail_start + at)) {
        let label = whose(&head, &tail);
        if let Some(what) = pool_of(medium, path, bytes) {
            // Somebody may have made a file system since: a superblock at the other end outlives that.
            return Ok(Some(Foreign { what, byte, is_ours: label.is_none() }));
        }
        let what = label.unwrap_or("data");
        return Ok(Some(Foreign { what: what.to_owned(), byte, is_ours: what == CHANGE_LOG }));
    }
    let hidden = medium.as_file().filter(|_| everywhere).map(|file| hidden_data(file, bytes)).transpose()?.flatten();
    Ok(hidden.map(|byte| Foreign { what: "data".to_owned(), byte, is_ours: false }))
}

/// The pool whose device it is, if that can still be told.
fn pool_of(medium: &impl ReadAt, path: &Path, bytes: u64) -> Option<String> {
    let found = superblocks::newest_on(medium, path, bytes / BLOCK_BYTES)?;
    Some(format!("a device of pool {} ({})", found.name, found.pool))
}

fn whose(head: &[u8], tail: &[u8]) -> Option<&'static str> {
    let at = |part: &[u8], from: usize, label: &[u8]| part.get(from..).is_some_and(|rest| rest.starts_with(label));
    let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let in_head = HEAD_LABELS.iter().find(|(_, from, label)| at(head, index(*from), label));
    let in_tail = TAIL_LABELS.iter().find(|(_, distance, label)| {
        tail.len().checked_sub(index(*distance)).is_some_and(|from| at(tail, from, label))
    });
    let labels =
        [head.get(..ZFS_LABEL_BYTES), tail.len().checked_sub(ZFS_LABEL_BYTES).and_then(|from| tail.get(from..))];
    let zfs = labels.into_iter().flatten().any(|label| {
        let uberblocks = label.chunks_exact(1024).skip(ZFS_LABEL_BYTES / 2048);
        uberblocks.into_iter().any(|block| ZFS_MAGICS.iter().any(|magic| block.starts_with(magic)))
    });
    // A boot sector's mark stands in many of the above too.
    let partitions = at(head, 510, b"\x55\xaa").then_some("a DOS partition table or boot sector");
    in_head.or(in_tail).map(|(what, ..)| *what).or(zfs.then_some("a member of a ZFS pool")).or(partitions)
}

/// The first byte that is not zero in what the file system has stored of a file: reads all of that. Block devices have no such map.
fn hidden_data(file: &File, bytes: u64) -> io::Result<Option<u64>> {
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let seek = |from: u64, whence| match lseek(file, i64::try_from(from).map_err(io::Error::other)?, whence) {
        Ok(place) => Ok(u64::try_from(place).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(io::Error::from(error)),
    };
    let mut buffer = vec![0; usize::try_from(LOOK_BYTES).expect("small")];
    let mut position = 0;
    while let Some(start) = seek(position, Whence::SeekData)? {
        let end = seek(start, Whence::SeekHole)?.unwrap_or(bytes).min(bytes);
        position = start;
        while position < end {
            let length = usize::try_from((end - position).min(LOOK_BYTES)).expect("small");
            let piece = &mut buffer[..length];
            ReadAt::read_exact_at(file, piece, position)?;
            if let Some(at) = piece.iter().position(|&byte| byte != 0) {
                return Ok(Some(position + at as u64));
            }
            position += length as u64;
        }
        if position >= bytes / BLOCK_BYTES * BLOCK_BYTES {
            break;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::OpenOptions, os::unix::fs::FileExt as _};

    const BYTES: u64 = 64 << 20;

    fn found(places: &[(u64, &[u8])]) -> Option<Foreign> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("device");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("made");
        file.set_len(BYTES).expect("sized");
        for (offset, bytes) in places {
            file.write_all_at(bytes, *offset).expect("written");
        }
        find(&file, &path, BYTES, true).expect("readable")
    }

    #[test]
    fn every_label_is_told_by_its_owner() {
        assert_eq!(found(&[]), None);
        for (what, offset, label) in HEAD_LABELS {
            assert_eq!(found(&[(offset, label)]).expect(what).what, what);
        }
        for (what, distance, label) in TAIL_LABELS {
            let only = found(&[(BYTES - distance, label)]).expect(what);
            assert_eq!((only.what.as_str(), only.byte), (what, BYTES - distance));
        }
        for place in [128 << 10, 255 << 10, BYTES - (128 << 10), BYTES - 1024] {
            assert_eq!(found(&[(place, &ZFS_MAGICS[0])]).expect("a label").what, "a member of a ZFS pool");
        }
        let table = found(&[(510, b"\x55\xaa")]).expect("a mark");
        assert!(table.what.starts_with("a DOS partition table"));
        let fat = found(&[(510, b"\x55\xaa"), (82, b"FAT32   ")]).expect("a label");
        assert_eq!(fat.what, "a FAT file system", "the mark of a boot sector says less than the label");
    }

    #[test]
    fn data_that_nobody_claims_is_somebodys_wherever_it_lies() {
        for place in [0, LOOK_BYTES - 1, LOOK_BYTES, 33 << 20, BYTES - LOOK_BYTES - 1, BYTES - LOOK_BYTES, BYTES - 1] {
            let only = found(&[(place, b"x")]).expect("a byte that is not zero");
            assert_eq!((only.what.as_str(), only.byte), ("data", place));
        }
        assert_eq!(found(&[(5 << 20, &[0; 4096])]), None, "written zeroes are nobody's");
    }
}
