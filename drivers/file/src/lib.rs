//! Files, block devices and device-DAX nodes that hold a pool or a change log.
//!
//! A [`StorageFile`] is opened once per process and shared by every reactor's queue to it: clones are handles of the same open
//! file description, and with it of the same lock.
//!
//! # Invariants
//!
//! 1. While a [`StorageFile`] with [`Access::Exclusive`] lives, no other process of this machine that uses this crate has the same
//!    file open, and with [`Access::ReadOnly`] nobody has it open for writing. The lock is an OFD lock on the whole file: it goes
//!    with the process, however that ends, and programs that lock disk images the same way (QEMU) see it too. A block device is
//!    also opened with `O_EXCL`, so that the kernel refuses it while it is mounted.
//! 2. What a file is (size, sector, durability) is read once, when it is opened, and is what the kernel says, never a guess to
//!    the better: what is not known counts as a sector of 512 bytes, and only tmpfs, ramfs and memory disks count as volatile.

#![forbid(unsafe_code)]

mod create;
mod holder;
mod sysfs;

pub use create::create_log_file;

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl},
    sys::statfs::{FsType, TMPFS_MAGIC, fstatfs},
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;
use twinlog_device::{DeviceErrorKind, DurabilityClass};

/// `RAMFS_MAGIC` of the kernel's `linux/magic.h`.
const RAMFS_MAGIC: FsType = FsType(0x8584_58F6);

/// Smallest and largest unit of `O_DIRECT` that the drivers work with, in bytes.
const SECTOR_BYTES: [u32; 2] = [512, 4096];

/// Who else may have the file open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read here; others may read, nobody may write.
    ReadOnly,
    /// Read and written here, and by no other process.
    Exclusive,
}

/// Whether the kernel's page cache lies between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// `O_DIRECT` where the file system has it, else as `Kernel`.
    Bypass,
    /// Through the page cache.
    Kernel,
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file of a file system.
    Regular,
    /// A block device.
    Block,
    /// Persistent memory as a character device (device-DAX).
    Dax,
}

/// Why a file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// Another process has it.
    #[error("{path} is in use by {holder}")]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who has it, for people.
        holder: String,
    },
    /// It is not something that can hold blocks.
    #[error("{path} is neither a file nor a block device")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// A region reaches beyond its end, or begins or ends at an odd place.
    #[error(
        "{path}: a region of {length_bytes} bytes at {offset_bytes} does not fit a file of {size_bytes} bytes in units of 4096 bytes"
    )]
    Region {
        /// The file.
        path: PathBuf,
        /// First byte of the region.
        offset_bytes: u64,
        /// Bytes of the region.
        length_bytes: u64,
        /// Bytes of the file.
        size_bytes: u64,
    },
    /// The kernel refused an operation.
    #[error("{path}: cannot {operation}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl FileError {
    /// Whether a file is in use and nobody can be seen who has it: a process of another user, or one that has ended and whose open files the kernel
    /// has not let go of yet.
    #[must_use]
    pub fn is_in_use_unseen(&self) -> bool {
        matches!(self, Self::InUse { holder, .. } if holder == holder::UNKNOWN)
    }

    /// A function that makes an [`FileError::Io`] of the kernel's error, for `map_err`.
    pub fn io<E: Into<io::Error>>(path: &Path, operation: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { path: path.to_owned(), operation, source: error.into() }
    }
}

/// The kind of device error that an error number of the kernel stands for.
#[must_use]
pub fn error_kind(number: i32) -> DeviceErrorKind {
    match number {
        libc::EIO | libc::EBADMSG | libc::EILSEQ | libc::ENODATA | libc::EREMOTEIO => DeviceErrorKind::Medium,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => DeviceErrorKind::NoSpace,
        libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM | libc::ESHUTDOWN | libc::ESTALE => DeviceErrorKind::Gone,
        libc::EBADE => DeviceErrorKind::Fenced,
        number => DeviceErrorKind::Os(number),
    }
}

#[derive(Debug)]
struct Opened {
    file: File,
    path: PathBuf,
    kind: FileKind,
    direct: bool,
    sector_bytes: u32,
    size_bytes: u64,
    durability: DurabilityClass,
    can_discard: bool,
    writes_through: bool,
}

/// An open file that holds a pool or a change log. Clones share it.
#[derive(Clone, Debug)]
pub struct StorageFile(Arc<Opened>);

impl StorageFile {
    /// Opens and locks `path`.
    ///
    /// # Errors
    /// When the kernel refuses it, another process has it, or it is a directory or the like.
    pub fn open(path: &Path, access: Access, cache: Cache) -> Result<Self, FileError> {
        let metadata = std::fs::metadata(path).map_err(FileError::io(path, "open it"))?;
        let kind = kind_of(&metadata.file_type()).ok_or_else(|| FileError::Kind { path: path.to_owned() })?;
        let exclusive = if kind == FileKind::Block && access == Access::Exclusive { libc::O_EXCL } else { 0 };
        let open = |flags: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(access == Access::Exclusive).custom_flags(flags | exclusive);
            options.open(path)
        };
        let refused = |error: io::Error| match error.raw_os_error() {
            Some(libc::EBUSY) => FileError::InUse { path: path.to_owned(), holder: holder::of_device(&metadata) },
            _ => FileError::io(path, "open it")(error),
        };
        let (file, sector_bytes) = match cache {
            Cache::Bypass if kind != FileKind::Dax => match open_direct(open).map_err(refused)? {
                Some((file, sector_bytes)) => (file, Some(sector_bytes)),
                None => (open(0).map_err(refused)?, None),
            },
            _ => (open(0).map_err(refused)?, None),
        };
        lock(&file, path, access)?;
        Self::describe(file, path, kind, sector_bytes)
    }

    fn describe(mut file: File, path: &Path, kind: FileKind, direct: Option<u32>) -> Result<Self, FileError> {
        let metadata = file.metadata().map_err(FileError::io(path, "read its properties"))?;
        let device = metadata.rdev();
        let size_bytes = match kind {
            FileKind::Regular => metadata.len(),
            FileKind::Block => file.seek(SeekFrom::End(0)).map_err(FileError::io(path, "find its size"))?,
            FileKind::Dax => sysfs::dax_size_bytes(device).map_err(FileError::io(path, "find its size"))?,
        };
        let durability = match kind {
            FileKind::Regular => {
                let system = fstatfs(&file).map_err(FileError::io(path, "find its file system"))?.filesystem_type();
                let volatile = system == TMPFS_MAGIC || system == RAMFS_MAGIC;
                if volatile { DurabilityClass::Volatile } else { DurabilityClass::Durable }
            }
            FileKind::Block if sysfs::is_memory_disk(device) => DurabilityClass::Volatile,
            FileKind::Block | FileKind::Dax => DurabilityClass::Durable,
        };
        let can_discard = match kind {
            FileKind::Regular => can_punch(&file, size_bytes),
            FileKind::Block => sysfs::can_write_zeroes(device),
            FileKind::Dax => false,
        };
        let writes_through = match kind {
            FileKind::Regular => direct.is_some() && sysfs::writes_through(metadata.dev()),
            FileKind::Block => true,
            FileKind::Dax => false,
        };
        let buffered_sector = match kind {
            FileKind::Block => sysfs::logical_block_bytes(device).unwrap_or(SECTOR_BYTES[1]),
            FileKind::Regular | FileKind::Dax => SECTOR_BYTES[0],
        };
        Ok(Self(Arc::new(Opened {
            file,
            path: path.to_owned(),
            kind,
            direct: direct.is_some(),
            sector_bytes: direct.unwrap_or(buffered_sector),
            size_bytes,
            durability,
            can_discard,
            writes_through,
        })))
    }

    /// The path under which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The path, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        self.0.path.display().to_string()
    }

    /// What kind of file it is.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        self.0.kind
    }

    /// Whether reads and writes pass the page cache by.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.0.direct
    }

    /// Unit of atomic writes and of `O_DIRECT`, in bytes: a power of two, 512 to 4096.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        self.0.sector_bytes
    }

    /// Size when it was opened, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.0.size_bytes
    }

    /// What a synchronous write to it survives: never [`DurabilityClass::Process`].
    #[must_use]
    pub fn durability(&self) -> DurabilityClass {
        self.0.durability
    }

    /// Whether punching holes into it frees anything.
    #[must_use]
    pub fn can_discard(&self) -> bool {
        self.0.can_discard
    }

    /// Whether the kernel makes one synchronous write (`RWF_DSYNC`) durable without a thread of its own: it is sent to the device as
    /// such. Else the kernel flushes the device's cache after the write, in a thread that is bound to the processor which took the
    /// disk's interrupt: as long as that processor is busy with something else, the write does not end.
    #[must_use]
    pub fn writes_through(&self) -> bool {
        self.0.writes_through
    }

    /// Proves that a region of whole blocks lies inside the file.
    ///
    /// # Errors
    /// [`FileError::Region`] when it does not, or is empty.
    pub fn check_region(&self, offset_bytes: u64, length_bytes: u64) -> Result<(), FileError> {
        let aligned = offset_bytes.is_multiple_of(4096) && length_bytes.is_multiple_of(4096) && length_bytes > 0;
        let inside = offset_bytes.checked_add(length_bytes).is_some_and(|end| end <= self.size_bytes());
        if aligned && inside {
            return Ok(());
        }
        let (path, size_bytes) = (self.0.path.clone(), self.size_bytes());
        Err(FileError::Region { path, offset_bytes, length_bytes, size_bytes })
    }
}

impl AsFd for StorageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

fn kind_of(file_type: &std::fs::FileType) -> Option<FileKind> {
    if file_type.is_file() {
        Some(FileKind::Regular)
    } else if file_type.is_block_device() {
        Some(FileKind::Block)
    } else if file_type.is_char_device() {
        Some(FileKind::Dax)
    } else {
        None
    }
}

/// The file opened with `O_DIRECT` and its unit, or `None` where that does not work.
fn open_direct(open: impl Fn(i32) -> io::Result<File>) -> io::Result<Option<(File, u32)>> {
    match open(libc::O_DIRECT) {
        Ok(file) => Ok(direct_sector(&file).map(|sector_bytes| (file, sector_bytes))),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

fn lock(file: &File, path: &Path, access: Access) -> Result<(), FileError> {
    let kind = if access == Access::Exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let narrow = |value: i32| i16::try_from(value).expect("lock constants are small");
    let whole_file =
        libc::flock { l_type: narrow(kind), l_whence: narrow(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => {
            let holder =
                file.metadata().map_or_else(|_| holder::UNKNOWN.to_owned(), |metadata| holder::of_lock(&metadata));
            Err(FileError::InUse { path: path.to_owned(), holder })
        }
        Err(error) => Err(FileError::io(path, "lock it")(error)),
    }
}

/// The smallest aligned unit that a file opened with `O_DIRECT` lets us read, or `None` when it refuses all of them. Asking the
/// file itself works on every kernel and file system; `statx` tells the same, but only for some and only since Linux 6.1.
fn direct_sector(file: &File) -> Option<u32> {
    let largest = SECTOR_BYTES[1] as usize;
    let mut memory = vec![0; 2 * largest];
    let start = memory.as_ptr().align_offset(largest);
    let aligned = memory.get_mut(start..start + largest)?;
    SECTOR_BYTES.into_iter().find(|&sector| match file.read_at(&mut aligned[..sector as usize], 0) {
        Ok(_) => true,
        // Any other error is the medium's matter: the unit was accepted.
        Err(error) => error.raw_os_error() != Some(libc::EINVAL),
    })
}

/// Whether the file system can punch holes: tried behind the end of the file, where there is nothing to lose.
fn can_punch(file: &File, size_bytes: u64) -> bool {
    let Ok(behind) = i64::try_from(size_bytes.next_multiple_of(4096)) else { return false };
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, behind, 4096).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(directory: &tempfile::TempDir, size_bytes: u64) -> PathBuf {
        let path = directory.path().join("disk");
        File::create(&path).and_then(|file| file.set_len(size_bytes)).expect("a file in a temporary directory");
        path
    }

    #[test]
    fn one_writer_excludes_everybody_and_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = file_of(&directory, 1 << 20);
        let first = StorageFile::open(&path, Access::Exclusive, Cache::Bypass).expect("nobody has it");
        for access in [Access::Exclusive, Access::ReadOnly] {
            let error = StorageFile::open(&path, access, Cache::Bypass).expect_err("the first one has it");
            let process = format!("process {}", std::process::id());
            assert!(matches!(&error, FileError::InUse { .. }) && error.to_string().contains(&process), "{error}");
        }
        let clone = first.clone();
        drop(first);
        StorageFile::open(&path, Access::Exclusive, Cache::Kernel).expect_err("a clone has it");
        drop(clone);
        let _reader = StorageFile::open(&path, Access::ReadOnly, Cache::Kernel).expect("nobody has it any more");
        let _second_reader = StorageFile::open(&path, Access::ReadOnly, Cache::Kernel).expect("readers share");
        StorageFile::open(&path, Access::Exclusive, Cache::Kernel).expect_err("readers exclude a writer");
    }

    #[test]
    fn a_file_is_described() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = file_of(&directory, 12288);
        let file = StorageFile::open(&path, Access::Exclusive, Cache::Bypass).expect("nobody has it");
        assert_eq!((file.kind(), file.size_bytes()), (FileKind::Regular, 12288));
        assert!(SECTOR_BYTES.contains(&file.sector_bytes()));
        assert_eq!(file.name(), path.display().to_string());
        file.check_region(4096, 8192).expect("the region ends with the file");
        for (offset, length) in [(4096, 12288), (0, 0), (512, 4096), (0, 512), (u64::MAX - 4095, 8192)] {
            file.check_region(offset, length).expect_err("the region does not fit");
        }
    }

    #[test]
    fn a_file_in_memory_is_volatile() {
        let shm = Path::new("/dev/shm");
        let Ok(directory) = tempfile::tempdir_in(shm) else { return };
        let path = file_of(&directory, 1 << 20);
        let file = StorageFile::open(&path, Access::Exclusive, Cache::Bypass).expect("nobody has it");
        assert_eq!(file.durability(), DurabilityClass::Volatile);
    }

    #[test]
    fn what_is_no_storage_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let error = StorageFile::open(directory.path(), Access::ReadOnly, Cache::Kernel).expect_err("a directory");
        assert!(matches!(error, FileError::Kind { .. }));
        let error =
            StorageFile::open(&directory.path().join("none"), Access::ReadOnly, Cache::Kernel).expect_err("nothing");
        assert!(error.to_string().contains("none"), "{error}");
    }
}
