//! Files that are written and made durable one after another, and the proof that they are all there.
//!
//! Each step makes a file, writes one anew in place, or removes one, and then calls fsync on the file and on its folder. What a file
//! must hold follows from its number and version, so the proof needs no copies.

use crate::random::Random;
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Files that are there at most; more steps write and remove.
const FILES_MAX: u64 = 300;
const FILE_BYTES_MAX: usize = 48 << 10;

/// What must be there: version by number.
type Expected = BTreeMap<u64, u64>;

fn content(seed: u64, number: u64, version: u64) -> Vec<u8> {
    // The size belongs to the number alone: a new version is written in place.
    let size = 1 + Random::new(seed ^ number).below(FILE_BYTES_MAX);
    let mut bytes = vec![0; size];
    Random::new(seed ^ (number << 32) ^ version).fill(&mut bytes);
    bytes
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:06}"))
}

/// Writes until the file `stop` appears, with a `rest` after each step; then writes the list. Every step that is durable adds a line to the progress.
pub(super) fn write(folder: &Path, seed: u64, stop: &Path, to: (&Path, &Path), rest: Duration) -> Result<()> {
    let (list, progress) = to;
    fs::create_dir(folder).with_context(|| format!("making {}", folder.display()))?;
    let handle = File::open(folder)?;
    let mut progress = File::create(progress)?;
    let mut random = Random::new(seed);
    let mut expected = Expected::new();
    let mut step = 0_u64;
    while !stop.exists() {
        step += 1;
        let number = random.number() % FILES_MAX;
        let known = expected.get(&number).copied();
        let path = path(folder, number);
        let doing = || format!("step {step}: {}", path.display());
        if known.is_some() && random.below(4) == 0 {
            fs::remove_file(&path).with_context(doing)?;
            expected.remove(&number);
        } else {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(false).open(&path).with_context(doing)?;
            file.write_all(&content(seed, number, step)).and_then(|()| file.sync_all()).with_context(doing)?;
            expected.insert(number, step);
        }
        handle.sync_all().with_context(doing)?;
        writeln!(progress, "{step}")?;
        thread::sleep(rest);
    }
    let mut text = String::new();
    for (number, version) in &expected {
        writeln!(text, "{number} {version}")?;
    }
    fs::write(list, text)?;
    println!("{step} steps, {} files", expected.len());
    Ok(())
}

/// Proves that exactly the listed files are there, each with its last version.
pub(super) fn verify(folder: &Path, seed: u64, list: &Path) -> Result<()> {
    let mut expected = Expected::new();
    for line in fs::read_to_string(list)?.lines() {
        let (number, version) = line.split_once(' ').with_context(|| format!("line {line:?}"))?;
        expected.insert(number.parse()?, version.parse()?);
    }
    let mut wrong = Vec::new();
    for (number, version) in &expected {
        let path = path(folder, *number);
        match fs::read(&path) {
            Ok(found) if found == content(seed, *number, *version) => {}
            Ok(_) => wrong.push(format!("{} does not hold version {version}", path.display())),
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    let count = fs::read_dir(folder)?.count();
    if count != expected.len() {
        wrong.push(format!("{count} files are there, not {}", expected.len()));
    }
    if !wrong.is_empty() {
        bail!("{} of {} files are wrong:\n{}", wrong.len(), expected.len(), wrong.join("\n"));
    }
    println!("{} files are as they were made durable", expected.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_proved_and_what_changed_is_found() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let (folder, list) = (at("files"), at("list"));
        let stopper = {
            let (stop, progress) = (at("stop"), at("progress"));
            thread::spawn(move || {
                while fs::read_to_string(&progress).unwrap_or_default().lines().count() < 50 {
                    thread::yield_now();
                }
                fs::write(stop, b"").unwrap();
            })
        };
        write(&folder, 5, &at("stop"), (&list, &at("progress")), Duration::ZERO).unwrap();
        stopper.join().unwrap();
        verify(&folder, 5, &list).unwrap();

        let victim = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&victim).unwrap();
        bytes[0] ^= 1;
        fs::write(&victim, &bytes).unwrap();
        assert!(verify(&folder, 5, &list).unwrap_err().to_string().contains("does not hold"));
        fs::remove_file(&victim).unwrap();
        assert!(verify(&folder, 5, &list).unwrap_err().to_string().contains("No such file"));
    }
}
