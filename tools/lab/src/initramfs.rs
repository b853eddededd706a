//! The guest's first and only file system: an archive in memory.
//!
//! | path | what it is |
//! |---|---|
//! | `/init` | mounts, loads the modules, runs the payload, reports its result |
//! | `/bin` | busybox with its applets, dash as `sh`, programs of this machine |
//! | `/lib`, `/lib64` | the libraries that those programs are linked with |
//! | `/lab/lib.sh` | functions for payloads: `step`, `event`, `await` |
//! | `/lab/payload` | the scenario's script |
//! | `/lab/modules/` | kernel modules, named so that their order is the order of loading |

use crate::{cpio::Archive, host, modules::Modules};
use anyhow::{Context as _, Result};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

const INIT: &str = include_str!("../guest/init.sh");
const LIBRARY: &str = include_str!("../guest/lib.sh");

/// What every guest needs to find its disks, its network and the lab.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtio_net", "virtio_blk"];
/// Debian's busybox shell runs its own applets before programs in `PATH`, so `sh` is dash.
const PROGRAMS: [&str; 2] = ["busybox", "dash"];

/// What one guest holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The script that is run.
    pub payload: &'static str,
    /// Programs of this machine, by name.
    pub programs: Vec<&'static str>,
    /// Programs by path: the project's own.
    pub binaries: Vec<PathBuf>,
    /// Kernel modules.
    pub modules: Vec<&'static str>,
    /// More files.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Contents {
    /// Writes the archive.
    ///
    /// # Errors
    ///
    /// A program or module is missing, a file cannot be read or written.
    pub fn pack(&self, modules: &Modules, to: &Path) -> Result<()> {
        let mut tree = Tree::new();
        let paths = host::programs(&[&PROGRAMS[..], &self.programs].concat())?;
        for path in &paths {
            tree.program(path)?;
        }
        // Programs that say where their libraries are (RUNPATH) say it so.
        tree.links.insert("usr/lib".to_owned(), "../lib".to_owned());
        let busybox = &paths[0];
        for applet in host::output(Command::new(busybox).arg("--list"))?.lines() {
            tree.links.insert(format!("bin/{applet}"), "busybox".to_owned());
        }
        tree.links.insert("bin/sh".to_owned(), "dash".to_owned());
        for binary in &self.binaries {
            tree.binary(binary)?;
        }
        tree.files.insert("init".to_owned(), INIT.into());
        tree.files.insert("lab/lib.sh".to_owned(), LIBRARY.into());
        tree.files.insert("lab/payload".to_owned(), self.payload.into());
        let wanted = [&MODULES[..], &self.modules].concat();
        for (index, module) in modules.resolve(&wanted)?.into_iter().enumerate() {
            tree.files.insert(format!("lab/modules/{index:03}-{}.ko", module.name), module.content);
        }
        tree.files.extend(self.files.clone());
        tree.write(to).with_context(|| format!("writing {}", to.display()))
    }
}

/// What will be in the archive.
struct Tree {
    files: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<String, String>,
    folders: BTreeSet<String>,
}

impl Tree {
    fn new() -> Self {
        let folders = ["dev", "etc", "lab/modules", "mnt", "proc", "root", "run", "sys", "tmp"];
        let folders = folders.map(str::to_owned).into_iter().collect();
        let usr = [("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("usr/lib", "../lib")];
        let links = [("sbin", "bin"), ("etc/mtab", "../proc/mounts")].into_iter().chain(usr);
        let links = links.map(|(path, target)| (path.to_owned(), target.to_owned())).collect();
        Self { files: BTreeMap::new(), links, folders }
    }

    /// A program of this machine and its libraries.
    fn program(&mut self, path: &Path) -> Result<()> {
        let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        self.executable(path, content)
    }

    /// A program of our own, without its symbols, which are most of it.
    fn binary(&mut self, path: &Path) -> Result<()> {
        host::programs(&["strip"])?;
        let stripped = tempfile::NamedTempFile::new()?;
        host::output(Command::new("strip").arg("-o").arg(stripped.path()).arg(path))?;
        self.executable(path, fs::read(stripped.path())?)
    }

    fn executable(&mut self, path: &Path, content: Vec<u8>) -> Result<()> {
        let name = path.file_name().context("a program has a name")?.to_string_lossy();
        let path_inside = format!("bin/{name}");
        self.links.remove(&path_inside);
        self.files.insert(path_inside, content);
        for library in libraries(path)? {
            let inside = library.to_string_lossy().trim_start_matches('/').replacen("usr/lib", "lib", 1);
            let content = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
            self.files.insert(inside, content);
        }
        Ok(())
    }

    fn write(mut self, to: &Path) -> Result<()> {
        self.links.retain(|path, _| !self.files.contains_key(path));
        for path in self.files.keys().chain(self.links.keys()) {
            let parents = Path::new(path).ancestors().skip(1);
            self.folders
                .extend(parents.map(|path| path.to_string_lossy().into_owned()).filter(|path| !path.is_empty()));
        }
        let nested: Vec<String> = self
            .folders
            .iter()
            .flat_map(|path| Path::new(path).ancestors())
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        self.folders.extend(nested.into_iter().filter(|path| !path.is_empty()));
        let mut archive = Archive::new(BufWriter::new(File::create(to)?));
        // In the order of a sorted set a folder precedes what lies in it.
        for path in &self.folders {
            archive.folder(path)?;
        }
        for (path, content) in &self.files {
            archive.file(path, content)?;
        }
        for (path, target) in &self.links {
            archive.link(path, target)?;
        }
        archive.finish()?;
        Ok(())
    }
}

/// The shared libraries that a program is linked with, and the loader; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    Ok(listed(&String::from_utf8_lossy(&output.stdout)))
}

/// Paths in what `ldd` prints: `name => /path (0x...)`, or the loader's `/path (0x...)`.
fn listed(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let line = line.split("=>").last()?.trim();
        let path = line.split(" (").next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    };
    text.lines().filter(|line| line.starts_with('\t')).filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(listed(text), paths);
        assert!(listed("\tnot a dynamic executable\n\tstatically linked\n").is_empty());
    }

    #[test]
    fn every_folder_precedes_its_contents_and_programs_replace_links() {
        let mut tree = Tree::new();
        tree.files.insert("a/b/c".to_owned(), b"content".to_vec());
        tree.files.insert("bin/ls".to_owned(), b"real".to_vec());
        tree.links.insert("bin/ls".to_owned(), "busybox".to_owned());
        let file = tempfile::NamedTempFile::new().unwrap();
        tree.write(file.path()).unwrap();
        let bytes = fs::read(file.path()).unwrap();
        let at = |text: &str| {
            let text = format!("{text}\0");
            bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
        };
        assert!(at("a") < at("a/b") && at("a/b") < at("a/b/c"));
        assert!(at("lab") < at("lab/modules"));
        assert!(!bytes.windows(7).any(|window| window == b"busybox"));
    }
}
