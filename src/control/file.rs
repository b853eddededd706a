//! Small files that are whole at every moment.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Puts a file with these bytes, made with these permissions, in the place of the one at `path`, if any. A crash leaves the old one or the new one; once this
/// returns, the new one.
///
/// # Errors
/// The kernel's: the old one is there, or, if only the last step failed, the new one without the promise that it is durable.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = beside(path);
    remove_leftover(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// The name under which something is made before it takes the place at `path`.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push("~");
    PathBuf::from(temporary)
}

/// Removes what a crash may have left there.
pub(super) fn remove_leftover(temporary: &Path) -> io::Result<()> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_is_replaced_with_the_permissions_asked_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        // As a crash leaves it: open to all, and longer than what comes.
        fs::write(beside(&path), "of an attempt that did not end").expect("written");
        for text in ["first", "2"] {
            replace(&path, text.as_bytes(), 0o600).expect("replaced");
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
            assert!(!beside(&path).exists());
        }
    }

    #[test]
    fn what_cannot_be_replaced_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        replace(&path, b"old", 0o600).expect("made");
        fs::create_dir(beside(&path)).expect("in the way");
        assert!(replace(&path, b"new", 0o600).is_err());
        assert_eq!(fs::read(&path).expect("there"), b"old");
    }
}
