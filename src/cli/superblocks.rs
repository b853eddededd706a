//! The superblocks on a pool's devices, read by a thread that waits: for commands that work without the engine, and for the number of lanes,
//! which must be known before the engine opens the pool. Nothing is written.

use super::{
    compose::Devices,
    output::{Exit, Failure},
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};
use twinlog::{
    base::{CpNumber, limits::BLOCK_BYTES},
    format::superblock::{DEVICE_BLOCKS_MIN, Superblock, SuperblockError, slot_blocks},
    pool::superblocks::current,
};

/// One place where a superblock can be.
#[derive(Debug, Serialize)]
pub(crate) struct Copy {
    pub(crate) device: String,
    pub(crate) block: u64,
    /// `whole`, `absent`, or what is wrong.
    pub(crate) state: String,
    /// Its consistency point; zero unless it is whole.
    pub(crate) cp: u64,
    /// Its epoch; zero unless it is whole.
    pub(crate) epoch: u64,
    #[serde(skip)]
    superblock: Option<(Superblock, u16)>,
    #[serde(skip)]
    path: PathBuf,
    /// Whether something is there that is neither whole nor absent.
    #[serde(skip)]
    damaged: bool,
}

/// What can be read at any place.
pub(crate) trait ReadAt {
    /// Fills `bytes` from `offset` on.
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// The file, where the system knows it as one.
    fn as_file(&self) -> Option<&File>;
}

impl ReadAt for File {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}

/// A file or block device, and its whole blocks.
pub(crate) fn open(path: &Path) -> Result<(File, u64), Failure> {
    let mut file = File::open(path).map_err(|error| Failure::system("open", path.display(), &error))?;
    // Works for block devices too, whose metadata have no length.
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| Failure::system("measure", path.display(), &error))?;
    Ok((file, bytes / BLOCK_BYTES))
}

/// One block of a device.
pub(crate) fn read_block(medium: &impl ReadAt, path: &Path, block: u64) -> Result<[u8; 4096], Failure> {
    let mut bytes = [0; 4096];
    medium
        .read_exact_at(&mut bytes, block * BLOCK_BYTES)
        .map_err(|error| Failure::system("read", path.display(), &error))?;
    Ok(bytes)
}

/// Every copy on every device.
pub(crate) fn copies(devices: &Devices, names: &[PathBuf]) -> Result<Vec<Copy>, Failure> {
    let mut copies = Vec::new();
    for name in names {
        let (medium, block_count) = devices.read(name)?;
        copies.extend(copies_on(&medium, name, block_count)?);
    }
    Ok(copies)
}

fn copies_on(medium: &impl ReadAt, path: &Path, block_count: u64) -> Result<Vec<Copy>, Failure> {
    if block_count < DEVICE_BLOCKS_MIN {
        let message = format!(
            "{} is too small for a pool's device: {block_count} blocks, at least {DEVICE_BLOCKS_MIN}",
            path.display()
        );
        return Err(Failure::new(Exit::Error, message, "check the path in node.toml"));
    }
    let places = [CpNumber(0), CpNumber(1)].into_iter().flat_map(|cp| slot_blocks(cp, block_count));
    places.map(|block| Ok(copy(path, block, &read_block(medium, path, block)?))).collect()
}

fn copy(path: &Path, block: u64, bytes: &[u8; 4096]) -> Copy {
    let (state, superblock, damaged) = match Superblock::verify(bytes, block) {
        Ok(found) => ("whole".to_owned(), Some(found), false),
        Err(SuperblockError::Absent) => ("absent".to_owned(), None, false),
        Err(error) => (error.to_string(), None, true),
    };
    let (cp, epoch) = superblock.as_ref().map_or((0, 0), |(superblock, _)| (superblock.cp.0, superblock.epoch.0));
    Copy { device: path.display().to_string(), path: path.to_owned(), block, state, cp, epoch, superblock, damaged }
}

/// A pool as its devices tell it.
#[derive(Debug)]
pub(crate) struct Assembled {
    /// The newest whole superblock.
    pub(crate) superblock: Superblock,
    /// The pool's devices in the order of its table.
    pub(crate) devices: Vec<PathBuf>,
    /// Devices that were named and hold no superblock that counts: never joined, or not yet.
    pub(crate) strangers: Vec<PathBuf>,
}

/// The newest whole superblock of one device; `None` if there is none, or the device cannot be read.
pub(crate) fn newest_on(medium: &impl ReadAt, path: &Path, block_count: u64) -> Option<Superblock> {
    let copies = copies_on(medium, path, block_count).ok()?;
    copies.into_iter().filter_map(|copy| copy.superblock).map(|(found, _)| found).max_by_key(|found| found.cp)
}

/// Whether a device holds the first superblock of a pool of this name, and no trace of another one. Nobody has served that pool: whoever opens one takes a
/// consistency point.
pub(crate) fn is_unserved(devices: &Devices, path: &Path, name: &str) -> bool {
    let copies = devices.read(path).and_then(|(medium, block_count)| copies_on(&medium, path, block_count));
    let Ok(copies) = copies else { return false };
    let mut whole = copies.iter().filter_map(|copy| copy.superblock.as_ref()).map(|(found, _)| found).peekable();
    let is_first = |found: &Superblock| found.cp == CpNumber(1) && found.name == name;
    whole.peek().is_some() && whole.all(is_first) && !copies.iter().any(|copy| copy.damaged)
}

/// Finds the current superblock, and which of `devices` is which of the pool's.
pub(crate) fn assemble(devices: &Devices, given: &[PathBuf]) -> Result<Assembled, Failure> {
    let copies = copies(devices, given)?;
    let names = given.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let whole = || copies.iter().filter_map(|copy| copy.superblock.as_ref().map(|found| (copy, found)));
    let Some(newest) = current(whole().map(|(_, (superblock, place))| (superblock, *place))) else {
        let damaged = copies.iter().find(|copy| copy.damaged);
        return Err(match damaged {
            Some(Copy { device, block, state, .. }) => {
                let message = format!("no usable superblock on {names}: {device} block {block}: {state}");
                Failure::new(Exit::Error, message, "twinlog inspect")
            }
            None => {
                let hint = "`twinlog pool create --config FILE`; in a pair `twinlog pair create`, on the machine whose pool it is";
                Failure::new(Exit::Error, format!("there is no pool on {names}"), hint)
            }
        });
    };
    if let Some((copy, (other, _))) = whole().find(|(_, (superblock, _))| superblock.pool != newest.pool) {
        let message =
            format!("{} belongs to pool {} ({}), not to {}", copy.device, other.name, other.pool, newest.pool);
        return Err(Failure::new(Exit::Refused, message, "take it out of `devices` in node.toml"));
    }
    let mut ordered = Vec::new();
    for (index, wanted) in newest.devices.iter().enumerate() {
        let is_it = |(superblock, place): &(Superblock, u16)| {
            superblock.devices.get(usize::from(*place)).is_some_and(|device| device.id == wanted.id)
        };
        let Some((copy, _)) = whole().find(|(_, found)| is_it(found)) else {
            let count = newest.devices.len();
            let message =
                format!("device {index} of the {count} of pool {} is missing; {names} are given", newest.name);
            return Err(Failure::new(
                Exit::Error,
                message,
                "name it in `devices` of node.toml; `twinlog inspect` shows each device's copies",
            ));
        };
        ordered.push(PathBuf::from(&copy.path));
    }
    let strangers = given.iter().filter(|path| !ordered.contains(path)).cloned().collect();
    Ok(Assembled { superblock: newest.clone(), devices: ordered, strangers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use twinlog::{base::PoolId, control::config::NvmeConfig, pool::superblocks::first_superblock};

    const BLOCKS: u64 = 2048;

    /// A directory with devices `d0`, `d1`, ... of which those in `pool` belong to a pool with the CP that is given, in that order.
    fn devices(directory: &Path, names: &[&str], cp: u64) -> Vec<PathBuf> {
        let ids: Vec<(u128, u64)> = (0..names.len()).map(|index| (7 + index as u128, BLOCKS)).collect();
        let mut superblock = first_superblock(PoolId(3), "a", &ids, 2, 0);
        superblock.cp = CpNumber(cp);
        let paths: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
        for (index, path) in paths.iter().enumerate() {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).expect("made");
            file.set_len(BLOCKS * BLOCK_BYTES).expect("sized");
            let block = slot_blocks(superblock.cp, BLOCKS)[0];
            let bytes = superblock.encode(u16::try_from(index).expect("small"), block);
            file.write_all_at(&bytes, block * BLOCK_BYTES).expect("written");
        }
        paths
    }

    fn found(given: &[PathBuf]) -> Result<Assembled, Failure> {
        assemble(&Devices::offline(NvmeConfig::default()), given)
    }

    #[test]
    fn devices_are_put_in_the_pools_order_and_strangers_are_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let paths = devices(directory.path(), &["d0", "d1", "d2"], 5);
        let stranger = directory.path().join("empty");
        File::create(&stranger).and_then(|file| file.set_len(BLOCKS * BLOCK_BYTES)).expect("made");
        let given = [paths[2].clone(), stranger.clone(), paths[0].clone(), paths[1].clone()];
        let complete = found(&given).expect("complete");
        assert_eq!((complete.devices, complete.strangers), (paths.clone(), vec![stranger]));
        assert_eq!((complete.superblock.cp, complete.superblock.applied.len()), (CpNumber(5), 2));
        let failure = found(&paths[..2]).expect_err("one is missing");
        assert!(failure.message.contains("device 2 of the 3"), "{}", failure.message);
    }

    #[test]
    fn the_newest_whole_copy_counts_and_damage_is_told_from_absence() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let paths = devices(directory.path(), &["d0"], 5);
        devices(directory.path(), &["d0"], 6);
        assert_eq!(found(&paths).expect("whole").superblock.cp, CpNumber(6));
        let file = OpenOptions::new().write(true).open(&paths[0]).expect("there");
        let damage =
            |cp| file.write_all_at(b"x", slot_blocks(CpNumber(cp), BLOCKS)[0] * BLOCK_BYTES + 200).expect("written");
        damage(6);
        assert_eq!(found(&paths).expect("the other slot").superblock.cp, CpNumber(5));
        damage(5);
        assert!(found(&paths).expect_err("nothing is left").message.contains("damaged"));
        file.set_len(0).and_then(|()| file.set_len(BLOCKS * BLOCK_BYTES)).expect("wiped");
        assert!(found(&paths).expect_err("nothing was there").message.contains("there is no pool"));
        file.set_len(4096).expect("cut");
        assert!(found(&paths).expect_err("too small").message.contains("too small"));
    }
}
