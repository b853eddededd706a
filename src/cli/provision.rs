//! Making a pool and its log. Nothing that holds data is overwritten unless the person names it.

use super::{
    client::progress_bar,
    compose::{self, Devices, NewPool, random_id},
    foreign::{self, Foreign},
    output::{Exit, Failure, Output},
    place::shell_word,
    superblocks::{self, ReadAt},
};
use serde::Serialize;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};
use twinlog::{
    base::{
        PairId, PoolId, PortionId,
        limits::{AREA_BLOCKS, BLOCK_BYTES},
    },
    changelog::PortionRole,
    control::{
        config::{self, LogBackend, LogConfig, NodeConfig},
        size::show_bytes,
    },
    format::{
        register::{HEADER_BLOCK, MAILBOX_BLOCKS, MailboxHeader},
        superblock::DEVICE_BLOCKS_MIN,
    },
};

/// Bytes of a device file for a volume of `volume_bytes`: an eighth more for references, and for the copies that a consistency point makes
/// before the old ones come back; at least two areas more.
pub(crate) fn image_bytes(volume_bytes: u64) -> u64 {
    let area = AREA_BLOCKS * BLOCK_BYTES;
    let wanted = volume_bytes.saturating_add(volume_bytes / 8).saturating_add(2 * area);
    wanted.checked_next_multiple_of(area).unwrap_or(wanted / area * area)
}

/// Makes an empty, sparse device file, which nobody else may read.
pub(crate) fn make_image(path: &Path, bytes: u64) -> Result<(), Failure> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|file| {
        file.set_len(bytes)?;
        file.sync_all()
    });
    made.map_err(|error| Failure::system("make", path.display(), &error))
}

/// `twinlog pool create`
pub(crate) fn create(file: &Path, overwrite: &[PathBuf], output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Created<'a> {
        pool: &'a str,
        devices: &'a [PathBuf],
    }
    let config = config::load(file)?;
    make_log_and_pool(&config, overwrite, output)?;
    let created = Created { pool: &config.pool.name, devices: &config.pool.devices };
    let devices = config.pool.devices.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    output.show(&created, || {
        format!("pool {} is made on {devices}\n  try: twinlog serve --config {}\n", created.pool, shell_word(file))
    })?;
    Ok(Exit::Done)
}

/// Makes the log (written through, if it is a file that does not exist) and an empty pool.
pub(crate) fn make_log_and_pool(config: &NodeConfig, overwrite: &[PathBuf], output: &Output) -> Result<(), Failure> {
    let absolute = |path: &PathBuf| config::device(path);
    let overwrite = overwrite.iter().map(absolute).collect::<Result<Vec<_>, io::Error>>();
    let overwrite = overwrite.map_err(|error| Failure::system("find", "a device", &error))?;
    let named = |path: &PathBuf| overwrite.contains(path);
    if let Some(stranger) =
        overwrite.iter().find(|path| !config.pool.devices.contains(path) && config.log.path.as_ref() != Some(path))
    {
        let message = format!("--overwrite names {}, which the configuration does not", stranger.display());
        return Err(Failure::new(Exit::Usage, message, "use the path as it stands in node.toml"));
    }
    let devices = Devices::offline(config.nvme);
    for path in config.pool.devices.iter().filter(|path| !named(path)) {
        let (medium, block_count) = devices.read(path)?;
        if block_count < DEVICE_BLOCKS_MIN {
            let message = format!(
                "{} has {}, too little for a pool's device",
                path.display(),
                show_bytes(block_count * BLOCK_BYTES)
            );
            return Err(Failure::new(Exit::Error, message, "give at least 4MiB; `truncate -s 4GiB FILE` makes a file"));
        }
        refuse_data(&medium, path, block_count * BLOCK_BYTES)?;
    }
    make_log(&config.log, named, output)?;
    let new = NewPool {
        id: PoolId(random_id()?),
        device_ids: config.pool.devices.iter().map(|_| random_id()).collect::<Result<_, _>>()?,
        portion: PortionId(random_id()?),
        lane_count: u16::try_from(config.reactors.count).expect("bounded by the configuration"),
        time_ns: wall_clock_ns(),
    };
    // Everything that was not named has been looked at.
    compose::create_pool(config, &devices, &new, !overwrite.is_empty())
}

/// Makes the node's portion of its partner's change log: written through, if it is a file that does not exist, and formatted for the
/// partner's pool, which exists.
pub(crate) fn make_mirror(config: &NodeConfig, output: &Output) -> Result<(), Failure> {
    let (Some(mirror), Some(pool)) = (&config.mirror, &config.partner_pool) else { return Ok(()) };
    make_log(mirror, |_| false, output)?;
    let superblock = superblocks::assemble(&Devices::offline(config.nvme), &pool.devices)?.superblock;
    let (role, portion) = (PortionRole::Mirror, PortionId(random_id()?));
    compose::create_portion(mirror, superblock.pool, role, superblock.lane_count(), portion)
}

/// Makes the secret of a pair, which only this user can read.
pub(crate) fn make_key(path: &Path) -> Result<(), Failure> {
    let digits = format!("{:032x}{:032x}", random_id()?, random_id()?);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|mut file| {
        writeln!(file, "{digits}")?;
        file.sync_all()
    });
    made.map_err(|error| Failure::system("make", path.display(), &error))
}

/// Makes the mailbox of a pair: it holds no register yet.
pub(crate) fn make_mailbox(path: &Path, nodes: [&str; 2]) -> Result<(), Failure> {
    let mut nodes = nodes.map(str::to_owned);
    nodes.sort();
    let header = MailboxHeader { pair: PairId(random_id()?), nodes };
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).and_then(|file| {
        // The header last: a mailbox that has one is whole.
        file.set_len(MAILBOX_BLOCKS * BLOCK_BYTES)?;
        file.sync_all()?;
        file.write_all_at(&header.encode()[..], HEADER_BLOCK * BLOCK_BYTES)?;
        file.sync_all()
    });
    made.map_err(|error| Failure::system("make", path.display(), &error))
}

/// Refuses a mailbox on a block device: nobody has said how much of the device is meant, and a small file does.
pub(crate) fn refuse_device_for_mailbox(path: &Path) -> Result<(), Failure> {
    if !fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
        return Ok(());
    }
    let message = format!("the mailbox {} is a block device", path.display());
    Err(Failure::new(Exit::Refused, message, "name a file, on the machine on which both nodes are"))
}

/// Makes a portion of change log, if it is a file that does not exist: written through, not formatted. One that exists must hold only zeroes, unless it is
/// `named`.
pub(crate) fn make_log(config: &LogConfig, named: impl Fn(&PathBuf) -> bool, output: &Output) -> Result<(), Failure> {
    let Some(path) = config.path.as_ref().filter(|_| config.backend != LogBackend::Memory) else {
        return Ok(());
    };
    let size = config.size.bytes();
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bar = progress_bar(output, "writing the log through");
            bar.set_length(size);
            let made = compose::create_log_file(path, size, |done| bar.set_position(done));
            bar.finish_and_clear();
            made
        }
        Err(error) => Err(Failure::system("look at", path.display(), &error)),
        Ok(_) if named(path) => Ok(()),
        Ok(_) => {
            if let Some(node) = compose::DaxNode::open(path)? {
                return refuse_found(path, node.find());
            }
            let (file, block_count) = superblocks::open(path)?;
            refuse_data(&file, path, block_count * BLOCK_BYTES)
        }
    }
}

/// Refuses a file or device that holds anything but zeroes.
pub(crate) fn refuse_data(medium: &impl ReadAt, path: &Path, bytes: u64) -> Result<(), Failure> {
    refuse_found(path, foreign::find(medium, path, bytes, true))
}

fn refuse_found(path: &Path, found: io::Result<Option<Foreign>>) -> Result<(), Failure> {
    match found.map_err(|error| Failure::system("read", path.display(), &error))? {
        None => Ok(()),
        Some(Foreign { what, byte, .. }) => {
            let message = format!("{} holds {what} (byte {byte}); nothing was written", path.display());
            let hint = format!("is it the right one? to lose it all: --overwrite {}", shell_word(path));
            Err(Failure::new(Exit::Refused, message, hint))
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a command on an ordinary thread; for people who read the superblock")]
fn wall_clock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{foreign::LOOK_BYTES, *};
    use std::os::unix::fs::FileExt;
    use twinlog::control::size::ByteSize;

    fn config(directory: &Path) -> NodeConfig {
        let text =
            "name = \"a\"\n[log]\npath = \"log\"\nsize = \"8MiB\"\n[pool]\nname = \"a\"\ndevices = [\"d0\", \"d1\"]\n";
        config::parse(text, Path::new("node.toml"), directory).expect("good")
    }

    #[test]
    fn an_image_has_room_for_its_volume_and_sizes_do_not_overflow() {
        assert_eq!(ByteSize(image_bytes(4 << 30)).to_string(), "4864MiB");
        assert!(image_bytes(0) >= DEVICE_BLOCKS_MIN * BLOCK_BYTES);
        assert!(image_bytes(u64::MAX) > u64::MAX / 2);
    }

    #[test]
    fn data_is_overwritten_only_when_it_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = config(directory.path());
        let output = Output::new(super::super::output::OutputFormat::Json);
        let [first, second] = [&config.pool.devices[0], &config.pool.devices[1]];
        for path in [first, second] {
            make_image(path, 64 << 20).expect("made");
        }
        for offset in [0, LOOK_BYTES - 1, 9 << 20, (64 << 20) - LOOK_BYTES, (64 << 20) - 1] {
            let file = OpenOptions::new().write(true).open(second).expect("there");
            file.write_all_at(b"x", offset).expect("written");
            let failure = make_log_and_pool(&config, &[], &output).expect_err("it holds data");
            assert_eq!(failure.exit, Exit::Refused);
            assert!(failure.message.contains(&format!("d1 holds data (byte {offset})")), "{}", failure.message);
            make_log_and_pool(&config, std::slice::from_ref(first), &output).expect_err("the other one was named");
            file.write_all_at(&[0], offset).expect("written");
        }
        assert!(!directory.path().join("log").exists(), "nothing was written");
        let stranger = make_log_and_pool(&config, &[directory.path().join("d2")], &output).expect_err("not configured");
        assert_eq!(stranger.exit, Exit::Usage);
        make_log_and_pool(&config, &[], &output).expect("empty devices");
        let found = superblocks::assemble(&Devices::offline(config.nvme), &config.pool.devices).expect("a pool");
        assert_eq!(found.devices.len(), 2);
        let again = make_log_and_pool(&config, &[], &output).expect_err("now they hold a pool");
        assert_eq!(again.exit, Exit::Refused);
        assert!(again.message.contains("a device of pool a ("), "{}", again.message);
        let all = [first.clone(), second.clone(), directory.path().join("log")];
        make_log_and_pool(&config, &all, &output).expect("all were named");
    }
}
