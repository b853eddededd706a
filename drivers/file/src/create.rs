//! Creation of a log file.
//!
//! The first write to a range that was only allocated changes the file's metadata, and a durable write then waits for a commit of
//! the file system's journal. So a log file is written through once, when it is created: afterwards an append changes data only.

use crate::FileError;
use nix::fcntl::{FallocateFlags, fallocate};
use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Bytes per write: large enough for the device's full speed.
const CHUNK_BYTES: usize = 1 << 20;

/// Creates a file of zeroes that is allocated, written and durable, its directory entry too. `progress` is told the bytes
/// written so far, after each mebibyte.
///
/// # Errors
/// When something of that name exists (it is left alone), `size_bytes` is zero or no multiple of 4096, or the kernel refuses;
/// then nothing of the file remains.
pub fn create_log_file(path: &Path, size_bytes: u64, progress: impl FnMut(u64)) -> Result<(), FileError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(4096) {
        return Err(FileError::Region { path: path.to_owned(), offset_bytes: 0, length_bytes: size_bytes, size_bytes });
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(FileError::io(path, "create it"))?;
    let filled = fill(file, path, size_bytes, progress).and_then(|()| sync_directory(path));
    if filled.is_err() {
        // The first error is the one to report; a file that cannot be removed stays visible to the person.
        let _ = std::fs::remove_file(path);
    }
    filled
}

fn fill(mut file: File, path: &Path, size_bytes: u64, mut progress: impl FnMut(u64)) -> Result<(), FileError> {
    let length = i64::try_from(size_bytes).map_err(|_| FileError::io(path, "allocate it")(nix::errno::Errno::EFBIG))?;
    match fallocate(&file, FallocateFlags::empty(), 0, length) {
        // Without fallocate the writes below allocate, only less contiguously.
        Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {}
        Err(error) => return Err(FileError::io(path, "allocate it")(error)),
    }
    let zeroes = vec![0; CHUNK_BYTES];
    let mut written_bytes = 0;
    while written_bytes < size_bytes {
        let count = (size_bytes - written_bytes).min(CHUNK_BYTES as u64);
        let chunk = &zeroes[..usize::try_from(count).expect("at most a chunk")];
        file.write_all(chunk).map_err(FileError::io(path, "write it"))?;
        written_bytes += count;
        // Written back piece by piece, so that the progress shown is the disk's and the page cache stays small.
        if written_bytes.is_multiple_of(64 * CHUNK_BYTES as u64) {
            file.sync_data().map_err(FileError::io(path, "write it"))?;
        }
        progress(written_bytes);
    }
    file.sync_all().map_err(FileError::io(path, "make it durable"))
}

fn sync_directory(path: &Path) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|file| file.sync_all()).map_err(FileError::io(directory, "make its entries durable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_log_file_is_allocated_zero_and_reported() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let size_bytes = 2 * CHUNK_BYTES as u64 + 4096;
        let mut reports = Vec::new();
        create_log_file(&path, size_bytes, |bytes| reports.push(bytes)).expect("there is space");
        assert_eq!(reports, [1 << 20, 2 << 20, size_bytes]);
        let metadata = std::fs::metadata(&path).expect("it exists");
        assert!(metadata.len() == size_bytes && metadata.blocks() * 512 >= size_bytes, "no part of it is a hole");
        assert!(std::fs::read(&path).expect("readable").iter().all(|&byte| byte == 0));
    }

    #[test]
    fn what_exists_is_left_alone_and_odd_sizes_are_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        std::fs::write(&path, b"precious").expect("writable");
        create_log_file(&path, 4096, |_| ()).expect_err("it exists");
        assert_eq!(std::fs::read(&path).expect("readable"), b"precious");
        let other = directory.path().join("other");
        for size_bytes in [0, 100, 4097] {
            create_log_file(&other, size_bytes, |_| ()).expect_err("an odd size");
        }
        let too_large = (i64::MAX as u64).next_multiple_of(4096);
        create_log_file(&other, too_large, |_| ()).expect_err("no file system holds this");
        assert!(!other.exists(), "nothing of a failed creation remains");
    }
}
