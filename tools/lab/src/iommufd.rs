//! Debian's kernel with IOMMUFD and nodes of devices, which other distributions' kernels have and Debian leaves out.
//!
//! The kernel itself is Debian's as it is. VFIO and IOMMUFD are modules: they are built from Debian's source of the same version, against Debian's headers, with
//! those options switched on, and take the place of Debian's VFIO. Its container is among them, so that a driver has the choice, and one that takes the wrong way is seen.

use crate::{
    host::{self, Missing},
    kernel::{self, Kernel, SOURCE},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// The package that names the headers of the kernel whose source that is.
const HEADERS: &str = "linux-headers-6.12-amd64";
/// What is built, of the source.
const FOLDERS: [&str; 2] = ["drivers/iommu/iommufd", "drivers/vfio"];
/// What else of the source that needs.
const FILES: [&str; 2] = ["drivers/iommu/iommu-priv.h", INTERVAL_TREE];
const INTERVAL_TREE: &str = "lib/interval_tree.c";
/// Options as the makefiles know them, and as the code does.
const OPTIONS: [&str; 3] = [
    "CONFIG_IOMMUFD=m",
    "CONFIG_VFIO_DEVICE_CDEV=y",
    "KCFLAGS=-DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1",
];

/// Makes it in `folder`; what is there already is kept.
///
/// # Errors
///
/// A program is missing, a package cannot be downloaded, or the modules do not build.
pub fn build(folder: &Path) -> Result<Kernel> {
    if let Ok(kernel) = find(folder) {
        return Ok(kernel);
    }
    host::programs(&["make", "gcc", "xz", "tar"])?;
    let headers = kernel::needed_by(HEADERS)?;
    let release = headers.strip_prefix("linux-headers-").context("a package of headers")?;
    let version = release.strip_suffix("-amd64").context("headers for amd64")?;
    let image = format!("linux-image-{release}");
    let (common, tools) = (format!("linux-headers-{version}-common"), format!("linux-kbuild-{version}"));
    let download = kernel::download(&[&image, &headers, &common, &tools, SOURCE], folder)?;
    let tree = download.path().join("tree");
    let sources = download.path().join("modules");
    unpack(&tree.join("usr/src").join(format!("{SOURCE}.tar.xz")), &sources)?;
    make(&tree.join("usr/src"), &common, &headers, &sources)?;
    let modules = tree.join("lib/modules").join(release).join("kernel");
    fs::remove_dir_all(modules.join("drivers/vfio")).context("removing the modules that are replaced")?;
    for folder in FOLDERS {
        place(&sources.join(folder), &modules.join(folder))?;
    }
    // Whole or not at all: renamed when complete.
    fs::remove_dir_all(tree.join("usr"))?;
    fs::rename(&tree, folder).with_context(|| format!("making {}", folder.display()))?;
    find(folder)
}

/// What was made in `folder`.
///
/// # Errors
///
/// There is nothing.
pub fn find(folder: &Path) -> Result<Kernel> {
    let found = kernel::find(&[folder.to_owned()]);
    found.map_err(|_| {
        let folder = folder.display();
        Missing(format!("no kernel in {folder}: run `cargo run -p twinlog-lab -- kernel --iommufd`")).into()
    })
}

/// Unpacks what is built from the archive of the source, and makes one tree of modules of it.
fn unpack(archive: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let wanted = FOLDERS.iter().chain(&FILES).map(|name| format!("{SOURCE}/{name}"));
    host::output(Command::new("tar").arg("--strip-components=1").arg("-xf").arg(archive).args(wanted).current_dir(to))?;
    let targets: Vec<String> = FOLDERS.iter().map(|folder| format!("{folder}/")).collect();
    fs::write(to.join("Kbuild"), format!("obj-m += {}\n", targets.join(" ")))?;
    // A part of the kernel's library that is compiled only for IOMMUFD.
    let iommufd = to.join(FOLDERS[0]);
    fs::write(iommufd.join("spans.c"), spans(&fs::read_to_string(to.join(INTERVAL_TREE))?))?;
    let mut makefile = fs::File::options().append(true).open(iommufd.join("Makefile"))?;
    Ok(makefile.write_all(b"\niommufd-y += spans.o\n")?)
}

/// The source of the interval tree without what the kernel has of it, and exports.
fn spans(source: &str) -> String {
    let mut text = String::new();
    let mut is_inside = false;
    for line in source.lines() {
        is_inside |= line.starts_with("INTERVAL_TREE_DEFINE(");
        if !is_inside && !line.starts_with("EXPORT_SYMBOL") {
            text.push_str(line);
            text.push('\n');
        }
        is_inside &= !line.ends_with(");");
    }
    text
}

fn make(packages: &Path, common: &str, headers: &str, modules: &Path) -> Result<()> {
    let mut make = Command::new("make");
    make.arg("-C").arg(packages.join(common)).arg(format!("O={}", packages.join(headers).display()));
    make.arg(format!("M={}", modules.display())).args(OPTIONS);
    // Neither a key nor the debug information of Debian's build is here.
    make.args(["CONFIG_MODULE_SIG_ALL=", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    host::output(&mut make).map(drop)
}

/// Copies the modules in a folder and below it.
fn place(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).with_context(|| format!("reading {}", from.display()))?;
    let paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for path in paths {
        let Some(name) = path.file_name() else { bail!("{} has no name", path.display()) };
        if path.is_dir() {
            place(&path, &to.join(name))?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            fs::create_dir_all(to)?;
            fs::copy(&path, to.join(name)).with_context(|| format!("placing {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_lacks_is_left_of_the_interval_tree() {
        let source = "#include <linux/interval_tree.h>\n\
                      INTERVAL_TREE_DEFINE(struct interval_tree_node, rb,\n\t\t     interval_tree)\n\t\t     ,);\n\
                      EXPORT_SYMBOL_GPL(interval_tree_insert);\n\
                      void spans(void)\n{\n\tnext();\n}\nEXPORT_SYMBOL_GPL(spans);\n";
        assert_eq!(spans(source), "#include <linux/interval_tree.h>\nvoid spans(void)\n{\n\tnext();\n}\n");
    }

    #[test]
    fn modules_are_placed_where_they_were_built() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("pci")).unwrap();
        for name in ["vfio.ko", "vfio.o", "pci/vfio-pci.ko", "pci/vfio_pci.c"] {
            fs::write(from.join(name), name).unwrap();
        }
        place(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("pci/vfio-pci.ko")).unwrap(), "pci/vfio-pci.ko");
        assert!(to.join("vfio.ko").is_file() && !to.join("vfio.o").exists() && !to.join("pci/vfio_pci.c").exists());
    }

    #[test]
    fn who_has_none_is_told_the_command() {
        let error = find(Path::new("/nowhere")).unwrap_err();
        assert!(error.downcast_ref::<Missing>().is_some() && error.to_string().contains("kernel --iommufd"), "{error}");
    }
}
