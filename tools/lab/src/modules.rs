//! Kernel modules: which files a module needs, in the order in which they must be loaded.
//!
//! The files themselves say it: their `.modinfo` section holds `depends=a,b`. So an unpacked kernel package is enough; nobody needs to have
//! run `depmod`, and the guest needs no `modprobe`. What a module asks for at run time (a checksum of the crypto layer, say) is not
//! among its dependencies and must be named.

use anyhow::{Context as _, Result, bail};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The modules of one kernel. By default it loads none, and has everything built in.
#[derive(Debug, Default)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module as it is loaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_`.
    pub name: String,
    /// The ELF file, not compressed.
    pub content: Vec<u8>,
}

/// A module's name from the name of its file: `nd-pmem.ko.xz` is `nd_pmem`.
fn name_of(file: &str) -> Option<String> {
    let (name, suffix) = file.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"].contains(&suffix).then(|| name.replace('-', "_"))
}

/// The modules that `content`'s `.modinfo` says must be there first.
fn depends(content: &[u8]) -> Vec<String> {
    let tag = b"\0depends=";
    let Some(start) = content.windows(tag.len()).position(|window| window == tag) else { return Vec::new() };
    let text = content[start + tag.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn content(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("reading {}", path.display())),
    };
    let output = Command::new(program).arg("-dc").arg(path).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{program} -dc {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

impl Modules {
    /// Looks through `folder`, such as `/lib/modules/6.1.0-9-amd64`.
    ///
    /// # Errors
    ///
    /// A folder that cannot be read, or holds no modules.
    pub fn find(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.join("kernel")];
        while let Some(inside) = folders.pop() {
            let entries = fs::read_dir(&inside).with_context(|| format!("reading {}", inside.display()))?;
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = name_of(&entry.file_name().to_string_lossy()) {
                    files.insert(name, entry.path());
                }
            }
        }
        if files.is_empty() {
            bail!("{} holds no modules", folder.display());
        }
        let list = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let builtin = list.lines().filter_map(|line| name_of(line.rsplit('/').next().unwrap_or(line))).collect();
        Ok(Self { files, builtin })
    }

    /// `wanted` and all that they depend on, each once, a dependency before what depends on it. What is built in needs nothing.
    ///
    /// # Errors
    ///
    /// A module that this kernel does not have.
    pub fn resolve(&self, wanted: &[&str]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        let wanted = if self.files.is_empty() { &[] } else { wanted };
        for name in wanted {
            self.add(&name.replace('-', "_"), &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, seen: &mut BTreeSet<String>, ordered: &mut Vec<Module>) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
        let content = content(path)?;
        for dependency in depends(&content) {
            self.add(&dependency, seen, ordered)?;
        }
        ordered.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("kernel/drivers")).unwrap();
        for (file, depends) in modules {
            let content = format!("\x7fELF...\0license=GPL\0depends={depends}\0retpoline=Y\0");
            fs::write(folder.path().join("kernel/drivers").join(file), content).unwrap();
        }
        fs::write(folder.path().join("modules.builtin"), builtin).unwrap();
        folder
    }

    fn order(folder: &tempfile::TempDir, wanted: &[&str]) -> Vec<String> {
        let modules = Modules::find(folder.path()).unwrap();
        modules.resolve(wanted).unwrap().into_iter().map(|module| module.name).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let folder = kernel(
            &[("net.ko", "failover,virtio"), ("failover.ko", ""), ("virtio.ko", "virtio-ring"), ("virtio_ring.ko", "")],
            "",
        );
        assert_eq!(order(&folder, &["net"]), ["failover", "virtio_ring", "virtio", "net"]);
        assert_eq!(order(&folder, &["virtio", "net"]), ["virtio_ring", "virtio", "failover", "net"]);
    }

    #[test]
    fn names_are_written_with_either_dash() {
        let folder = kernel(&[("nvme-core.ko", ""), ("nvme.ko", "nvme-core")], "");
        assert_eq!(order(&folder, &["nvme"]), ["nvme_core", "nvme"]);
        assert_eq!(order(&folder, &["nvme-core"]), ["nvme_core"]);
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        let folder = kernel(&[("nbd.ko", "virtio")], "kernel/drivers/virtio/virtio.ko\n");
        assert_eq!(order(&folder, &["nbd", "virtio"]), ["nbd"]);
    }

    #[test]
    fn a_missing_module_is_named() {
        let folder = kernel(&[("nbd.ko", "gone")], "");
        let error = Modules::find(folder.path()).unwrap().resolve(&["nbd"]).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let folder = kernel(&[("plain.ko", "")], "");
        let path = folder.path().join("kernel/drivers/plain.ko");
        assert!(Command::new("gzip").arg(&path).status().unwrap().success());
        let modules = Modules::find(folder.path()).unwrap().resolve(&["plain"]).unwrap();
        assert!(modules[0].content.starts_with(b"\x7fELF"));
    }
}
