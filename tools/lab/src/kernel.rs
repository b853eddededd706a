//! The guest's kernel: a Debian package, installed or only unpacked.
//!
//! A kernel is a folder's `boot/vmlinuz-VERSION` and `lib/modules/VERSION`. The folder is `/` where the package is installed, or any other
//! into which the package was unpacked; [`unpack`] does that without root and without changing what the machine boots.

use crate::host;
use anyhow::{Context as _, Result, ensure};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The package that names the current kernel's.
const PACKAGE: &str = "linux-image-amd64";
/// Debian's package with a kernel's source, of the version that its backports have; `linux-source` itself is older.
pub(crate) const SOURCE: &str = "linux-source-6.12";

/// Where the head of an x86 kernel image says where its compressed part lies (Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Such as `6.1.0-9-amd64`.
    pub version: String,
    /// `vmlinuz`; of a kernel in user mode, its program.
    pub image: PathBuf,
    /// The folder with `kernel/` and `modules.builtin`; none of a kernel in user mode, which has everything built in.
    pub modules: Option<PathBuf>,
}

/// The newest kernel in the first of `folders` that holds one.
///
/// # Errors
///
/// None is found.
pub fn find(folders: &[PathBuf]) -> Result<Kernel> {
    folders.iter().find_map(|folder| newest(folder)).with_context(|| {
        let places: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!(
            "no kernel with modules in {}: run `cargo run -p twinlog-lab -- kernel`, which needs no root, or `apt-get install {PACKAGE}`",
            places.join(", ")
        )
    })
}

fn newest(folder: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(folder.join("boot")).ok()?;
    let kernels = entries.flatten().filter_map(|entry| {
        let version = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|place| folder.join(place).join(&version))
            .into_iter()
            .find(|place| place.join("kernel").is_dir())?;
        // A kernel that only root may read (so on Ubuntu) is of no use to others.
        fs::File::open(entry.path()).ok()?;
        Some(Kernel { version, image: entry.path(), modules: Some(modules) })
    });
    kernels.max_by_key(|kernel| order(&kernel.version))
}

/// Numbers of a version, so that 6.12 is newer than 6.9.
fn order(version: &str) -> Vec<u64> {
    let numbers = version.split(|letter: char| !letter.is_ascii_digit());
    numbers.filter_map(|number| number.parse().ok()).collect()
}

/// Downloads Debian's current kernel package and unpacks it into `folder`; what is there already is kept.
///
/// # Errors
///
/// `apt` or `dpkg` are missing or fail.
pub fn unpack(folder: &Path) -> Result<Kernel> {
    if let Some(kernel) = newest(folder) {
        return Ok(kernel);
    }
    let package = needed_by(PACKAGE)?;
    let download = download(&[&package], folder)?;
    // Whole or not at all: renamed when complete.
    fs::rename(download.path().join("tree"), folder).with_context(|| format!("making {}", folder.display()))?;
    newest(folder).with_context(|| format!("{package} holds no kernel"))
}

/// The package that a package which holds nothing itself stands for.
pub(crate) fn needed_by(package: &str) -> Result<String> {
    let text = host::output(Command::new("apt-cache").args(["depends", "--important", package]))?;
    let needed = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(needed.with_context(|| format!("apt knows no {package}: run apt-get update"))?.to_owned())
}

/// Downloads packages and unpacks them into `tree` of a new folder beside `folder`, which goes with the value.
pub(crate) fn download(packages: &[&str], folder: &Path) -> Result<tempfile::TempDir> {
    let parent = folder.parent().context("a folder for the kernel has a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    let download = tempfile::tempdir_in(parent)?;
    // As root apt would drop its rights, and then cannot write here.
    let plain = ["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"];
    host::output(Command::new("apt-get").args(plain).args(packages).current_dir(download.path()))?;
    let files: Vec<PathBuf> = fs::read_dir(download.path())?.flatten().map(|entry| entry.path()).collect();
    ensure!(files.len() == packages.len(), "apt-get did not download all of {}", packages.join(", "));
    for file in files {
        host::output(Command::new("dpkg-deb").arg("-x").args([&file, &download.path().join("tree")]))?;
    }
    Ok(download)
}

impl Kernel {
    /// A file that QEMU boots, or a program: the ELF kernel inside the image, unpacked into `folder`, which saves the guest the unpacking under
    /// emulation; or the image itself where its packing is unknown.
    ///
    /// # Errors
    ///
    /// The image cannot be read, or the result not written.
    pub fn bootable(&self, folder: &Path) -> Result<PathBuf> {
        if self.modules.is_none() {
            return Ok(self.image.clone());
        }
        let unpacked = folder.join(format!("vmlinux-{}", self.version));
        if newer(&unpacked, &self.image) {
            return Ok(unpacked);
        }
        let image = fs::read(&self.image).with_context(|| format!("reading {}", self.image.display()))?;
        let Some(elf) = payload(&image).and_then(decompress).filter(|bytes| bytes.starts_with(b"\x7fELF")) else {
            return Ok(self.image.clone());
        };
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&elf)?;
        file.persist(&unpacked)?;
        Ok(unpacked)
    }
}

fn newer(file: &Path, than: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    matches!((time(file), time(than)), (Some(file), Some(than)) if file > than)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

/// The compressed part of a kernel image.
fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let protected = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512;
    let start = protected + word(image, PAYLOAD_OFFSET)?;
    // The last four bytes are the unpacked size, which a decompressor would take for rubbish.
    let end = start + word(image, PAYLOAD_LENGTH)?.checked_sub(4)?;
    image.get(start..end)
}

fn decompress(payload: &[u8]) -> Option<Vec<u8>> {
    let program = match payload.get(..4)? {
        [0xfd, b'7', b'z', b'X'] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd] => "zstd",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return None,
    };
    // From a file, so that nothing can block on two pipes at once.
    let mut file = tempfile::tempfile().ok()?;
    file.write_all(payload).ok()?;
    std::io::Seek::rewind(&mut file).ok()?;
    let output = Command::new(program).arg("-dc").stdin(Stdio::from(file)).stderr(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(folder: &Path, version: &str) {
        fs::create_dir_all(folder.join("boot")).unwrap();
        fs::create_dir_all(folder.join("lib/modules").join(version).join("kernel")).unwrap();
        fs::write(folder.join(format!("boot/vmlinuz-{version}")), b"").unwrap();
    }

    #[test]
    fn the_newest_kernel_is_found_by_number() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["6.9.0-1-amd64", "6.12.0-2-amd64", "6.12.0-1-amd64"] {
            place(folder.path(), version);
        }
        // A kernel without modules is useless.
        fs::write(folder.path().join("boot/vmlinuz-7.0"), b"").unwrap();
        let kernel = find(&["/nowhere".into(), folder.path().into()]).unwrap();
        assert_eq!(kernel.version, "6.12.0-2-amd64");
        let error = find(&["/nowhere".into()]).unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains(PACKAGE), "{error}");
    }

    /// An image as the boot protocol describes it, with `payload` and a size behind.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * 512];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512_u32.to_le_bytes());
        let length = u32::try_from(payload.len() + 4).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        [&image[..], payload, &[1, 2, 3, 4], b"behind"].concat()
    }

    #[test]
    fn the_kernel_inside_an_image_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let elf = [&b"\x7fELF"[..], &[7; 5000]].concat();
        fs::write(folder.path().join("elf"), &elf).unwrap();
        let packed = match Command::new("xz").arg("-c").arg(folder.path().join("elf")).output() {
            Ok(output) => output.stdout,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "xz: {error}");
                // The test runner would keep what `eprintln!` says of a test that passes.
                let _ = writeln!(std::io::stderr(), "SKIPPED: xz not found: sudo apt-get install xz-utils");
                return;
            }
        };
        let path = folder.path().join("vmlinuz");
        fs::write(&path, image(&packed)).unwrap();
        let kernel = Kernel { version: "1".into(), image: path.clone(), modules: Some("/".into()) };
        let unpacked = kernel.bootable(&folder.path().join("cache")).unwrap();
        assert_eq!(fs::read(&unpacked).unwrap(), elf);
        // Another packing, or none: the image is booted as it is.
        fs::write(&path, image(b"????")).unwrap();
        assert_eq!(kernel.bootable(&folder.path().join("other")).unwrap(), path);
    }
}
