//! A real file system in a volume whose target is killed again and again under load.

use crate::common::{self, Target, command, folder, installed, run};
use std::{
    fs::{self, File},
    os::unix::{self, fs::FileExt},
    path::{Path, PathBuf},
    process::Child,
};
use twinlog::base::Prng;

/// The image fills the first part of the volume, the load another.
const VOLUME: &str = "256MiB";
const IMAGE_BYTES: u64 = 96 << 20;
const KILLS: u64 = 4;

/// This project's own sources, and what they lack: large, sparse, empty and linked files.
fn tree(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    fs::create_dir(&tree).expect("our own folder is writable");
    for part in ["src", "drivers", "docs", "tests", "README.md"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
        run("cp", &["-a".as_ref(), source.as_os_str(), tree.as_os_str()]);
    }
    let mut bytes = vec![0; 24 << 20];
    Prng::new(3).fill(&mut bytes);
    fs::write(tree.join("large"), &bytes).expect("our own folder is writable");
    fs::write(tree.join("empty"), []).expect("our own folder is writable");
    let sparse = File::create(tree.join("sparse")).expect("our own folder is writable");
    sparse.write_all_at(b"in the middle", 7 << 20).expect("our own folder is writable");
    sparse.set_len(16 << 20).expect("our own folder is writable");
    unix::fs::symlink("large", tree.join("link")).expect("our own folder is writable");
    tree
}

/// A writer beside the image, until the target dies under it.
fn load(target: &Target, round: u64) -> Child {
    let uri = format!("--uri={}", target.uri());
    let seed = format!("--randseed={}", round + 1);
    let place = ["--offset=128M", "--size=96M", "--io_size=4G", "--rw=randwrite", "--bsrange=4k-128k", "--iodepth=16"];
    let mut fio = command("fio", &["--name=load", "--ioengine=nbd", &uri, &seed, "--output-format=terse"]);
    fio.args(place).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    fio.spawn().expect("coreutils' timeout can be started")
}

#[test]
fn an_ext4_image_survives_kills_under_load() {
    if !installed(&["mke2fs", "e2fsck", "nbdcopy", "fio", "cp"]) {
        return;
    }
    let seed = common::seed();
    println!("seed {seed}");
    let mut prng = Prng::new(seed);
    let folder = folder();
    let tree = tree(folder.path());
    let image = folder.path().join("image");
    let result = folder.path().join("result");
    let (image, result) = (image.to_str().expect("plain"), result.to_str().expect("plain"));
    let size = format!("{}k", IMAGE_BYTES >> 10);
    run("mke2fs", &["-q", "-t", "ext4", "-d", tree.to_str().expect("plain"), image, &size]);
    run("e2fsck", &["-fn", image]);

    let mut target = Target::start(VOLUME);
    run("nbdcopy", &[image, &target.uri()]);
    for round in 0..KILLS {
        let mut load = load(&target, round);
        // In later rounds the image is also written over itself, and the kill comes in the middle of it.
        let copy =
            (round > 0).then(|| command("nbdcopy", &[image, &target.uri()]).spawn().expect("timeout can be started"));
        common::pause_ms(prng.between(50, 1500));
        target.kill();
        load.wait().expect("a child of ours");
        if let Some(mut copy) = copy {
            copy.wait().expect("a child of ours");
        }
        target.restart();
    }
    run("nbdcopy", &[&target.uri(), result]);
    let file = File::options().write(true).open(result).expect("nbdcopy wrote it");
    file.set_len(IMAGE_BYTES).expect("our own folder is writable");
    assert!(fs::read(image).expect("ours") == fs::read(result).expect("ours"), "the image differs (seed {seed})");
    run("e2fsck", &["-fn", result]);
}
