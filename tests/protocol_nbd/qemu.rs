//! QEMU's block layer against a running target: `qemu-img` and `qemu-io`.

use crate::common::{Target, command, folder, installed, outcome, run};
use std::fs;
use twinlog::base::Prng;

const VOLUME: &str = "128MiB";
const VOLUME_BYTES: usize = 128 << 20;

/// Where data lies in the image of these tests, in bytes; all else is a hole.
const DATA: [(usize, usize); 4] = [(0, 1 << 20), (5 << 20, 65536), (40 << 20, 4 << 20), (VOLUME_BYTES - 4096, 4096)];

/// An image with holes, as a raw file.
fn image(place: &std::path::Path) -> Vec<u8> {
    let mut bytes = vec![0; VOLUME_BYTES];
    let mut prng = Prng::new(1);
    for (start, length) in DATA {
        prng.fill(&mut bytes[start..start + length]);
    }
    fs::write(place, &bytes).expect("our own folder is writable");
    bytes
}

#[test]
fn qemu_img_converts_and_compares_and_maps() {
    if !installed(&["qemu-img"]) {
        return;
    }
    let target = Target::start(VOLUME);
    let uri = target.uri();
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    let (raw, qcow2, back) = (path("in.raw"), path("in.qcow2"), path("out.raw"));
    let bytes = image(raw.as_ref());

    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
    run("qemu-img", &["convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", &qcow2, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &uri]);
    run("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &qcow2, &uri]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, &back]);
    assert!(fs::read(&back).expect("qemu-img wrote it") == bytes, "the image that came back differs");

    // Everything that was written is data; the long hole between is no data.
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).expect("qemu-img prints JSON");
    let extents = map.as_array().expect("a list");
    let number = |extent: &serde_json::Value, key: &str| {
        usize::try_from(extent[key].as_u64().expect("a number")).expect("inside the volume")
    };
    let mut position = 0;
    for extent in extents {
        assert_eq!(number(extent, "start"), position, "the map has no gaps: {map}");
        position += number(extent, "length");
    }
    assert_eq!(position, VOLUME_BYTES, "the map ends at the end: {map}");
    let data_at = |place: usize| {
        let holds = |extent: &&serde_json::Value| {
            (number(extent, "start")..number(extent, "start") + number(extent, "length")).contains(&place)
        };
        extents.iter().find(holds).is_some_and(|extent| extent["data"] == true)
    };
    for (start, length) in DATA {
        assert!(data_at(start) && data_at(start + length - 1), "data at {start}: {map}");
    }
    assert!(!data_at(20 << 20) && !data_at(100 << 20), "holes: {map}");

    // It finds a difference of one byte.
    let mut changed = bytes;
    changed[(40 << 20) + 17] ^= 1;
    fs::write(&raw, &changed).expect("our own folder is writable");
    let compared = outcome(&mut command("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &uri]));
    assert_eq!(compared.status.code(), Some(1), "a changed byte was not seen");
}

/// Runs `qemu-io` on the volume; its exit code and output tell of wrong patterns.
fn qemu_io(target: &Target, commands: &[&str]) {
    let uri = target.uri();
    let mut arguments = vec!["-f", "raw", "-t", "none"];
    for text in commands {
        arguments.extend(["-c", text]);
    }
    arguments.push(&uri);
    let printed = run("qemu-io", &arguments);
    for complaint in ["verification failed", "failed:", "rror"] {
        assert!(!printed.contains(complaint), "{commands:?}: {printed}");
    }
}

#[test]
fn qemu_io_finds_its_patterns() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let target = Target::start(VOLUME);
    qemu_io(
        &target,
        &[
            "read -P 0 0 128M",
            "write -P 0xaa 0 1M",
            "write -P 0x55 4k 4k",
            "write -P 0x77 1000 3000",
            "read -P 0xaa 0 1000",
            "read -P 0x77 1000 3000",
            "read -P 0xaa 4000 96",
            "read -P 0x55 4k 4k",
            "read -P 0xaa 8k 1016k",
            "write -f -P 0x33 2M 64k",
            "read -P 0x33 2M 64k",
            "write -z 2M 32k",
            "read -P 0 2M 32k",
            "read -P 0x33 2080k 32k",
            "write -z -u 512k 256k",
            "read -P 0 512k 256k",
            "read -P 0xaa 768k 256k",
            "discard 0 256k",
            "read -P 0xaa 256k 256k",
            "flush",
        ],
    );
    // Many in flight at once.
    let writes: Vec<String> =
        (0..64).map(|index| format!("aio_write -P {} {}k 12k", index + 1, 10_000 + index * 12)).collect();
    let reads: Vec<String> =
        (0..64).map(|index| format!("aio_read -P {} {}k 12k", index + 1, 10_000 + index * 12)).collect();
    let flush = ["aio_flush".to_owned()];
    let all: Vec<&str> = writes.iter().chain(&flush).chain(&reads).map(String::as_str).collect();
    qemu_io(&target, &all);
}

#[test]
fn qemu_io_finds_its_patterns_after_a_kill() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let mut target = Target::start(VOLUME);
    qemu_io(&target, &["write -P 0xc1 10000 100000", "write -P 0xc2 64M 1M", "write -z 65M 1M", "discard 64M 64k"]);
    target.kill();
    target.restart();
    qemu_io(
        &target,
        &["read -P 0 0 10000", "read -P 0xc1 10000 100000", "read -P 0xc2 65600k 960k", "read -P 0 65M 1M"],
    );
}
