//! A connection between two processes that the lab can cut: what is sent meanwhile arrives when it is mended, if both ends still wait for it, as on a
//! network that loses packets for a while. Nobody is told.

use anyhow::{Context as _, Result};
use std::{
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// How often a connection looks whether it is mended.
const POLL: Duration = Duration::from_millis(10);
const CHUNK_BYTES: usize = 64 << 10;

/// Takes connections at one socket and carries them to another. Its threads end with their connections, or with the lab.
#[derive(Debug)]
pub struct Relay {
    is_cut: Arc<AtomicBool>,
}

impl Relay {
    /// Takes connections at the Unix socket `from`, which it makes, for the one at `to`.
    ///
    /// # Errors
    ///
    /// The socket cannot be made.
    pub fn start(from: &Path, to: &Path) -> Result<Self> {
        let listener = UnixListener::bind(from).with_context(|| format!("listening at {}", from.display()))?;
        let is_cut = Arc::new(AtomicBool::new(false));
        let (to, cut) = (to.to_owned(), Arc::clone(&is_cut));
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (to, cut) = (to.clone(), Arc::clone(&cut));
                thread::spawn(move || join(near, &to, &cut));
            }
        });
        Ok(Self { is_cut })
    }

    /// Nothing passes any more.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
    }

    /// Everything passes again.
    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::Release);
    }
}

/// Joins a connection to a new one. If nobody listens there it is closed, which its other end sees.
fn join(near: UnixStream, to: &PathBuf, is_cut: &Arc<AtomicBool>) {
    wait(is_cut);
    let Ok(far) = UnixStream::connect(to) else { return };
    let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
    let cut = Arc::clone(is_cut);
    thread::spawn(move || carry(near_too, far_too, &cut));
    carry(far, near, is_cut);
}

/// Carries bytes until one end is closed, and closes the other.
fn carry(mut from: UnixStream, mut to: UnixStream, is_cut: &AtomicBool) {
    let mut bytes = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        wait(is_cut);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    wait(is_cut);
    for end in [from, to] {
        // It may be closed already.
        let _ = end.shutdown(Shutdown::Both);
    }
}

fn wait(is_cut: &AtomicBool) {
    while is_cut.load(Ordering::Acquire) {
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_while_it_is_cut_arrives_later_and_an_end_reaches_the_other() {
        let place = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| place.path().join(name));
        let listener = UnixListener::bind(&to).unwrap();
        let relay = Relay::start(&from, &to).unwrap();
        let mut near = UnixStream::connect(&from).unwrap();
        let mut far = listener.accept().unwrap().0;
        let mut byte = [0];
        near.write_all(b"a").unwrap();
        far.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"a");

        relay.cut();
        far.write_all(b"b").unwrap();
        near.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(near.read(&mut byte).is_err());
        relay.mend();
        near.set_read_timeout(None).unwrap();
        near.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
        drop(far);
        assert_eq!(near.read(&mut byte).unwrap(), 0);
    }
}
