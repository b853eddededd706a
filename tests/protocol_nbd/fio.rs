//! fio's NBD engine against a running target, with checksums in every block that it reads back.

use crate::common::{Target, installed, run};

/// Runs one fio job on the volume; fio fails by itself when a checksum does not match.
fn fio(target: &Target, options: &[&str]) {
    let uri = format!("--uri={}", target.uri());
    let mut arguments = vec![
        "--name=job",
        "--ioengine=nbd",
        &uri,
        "--output-format=terse",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    arguments.extend(options);
    run("fio", &arguments);
}

#[test]
fn random_writes_of_mixed_sizes_read_back() {
    if !installed(&["fio"]) {
        return;
    }
    let target = Target::start("128MiB");
    fio(
        &target,
        &["--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned", "--size=48M", "--iodepth=32", "--verify=crc32c"],
    );
    fio(&target, &["--rw=randwrite", "--bs=4k", "--size=48M", "--iodepth=32", "--verify=crc32c", "--verify_async=1"]);
    fio(&target, &["--rw=write", "--bs=1M", "--size=128M", "--iodepth=4", "--verify=crc32c"]);
}

#[test]
fn reads_trims_and_writes_mixed() {
    if !installed(&["fio"]) {
        return;
    }
    let target = Target::start("128MiB");
    fio(&target, &["--rw=randtrimwrite", "--bs=8k", "--size=32M", "--iodepth=8"]);
    fio(&target, &["--rw=randrw", "--bs=4k", "--size=32M", "--iodepth=16", "--verify=crc32c", "--fsync=64"]);
}

#[test]
fn what_was_written_before_a_kill_verifies_after_it() {
    if !installed(&["fio"]) {
        return;
    }
    let mut target = Target::start("128MiB");
    let job = ["--rw=randwrite", "--bs=4k", "--size=64M", "--iodepth=32", "--verify=crc32c", "--randseed=7"];
    fio(&target, &[&job[..], &["--do_verify=0"]].concat());
    for _ in 0..3 {
        target.kill();
        target.restart();
        fio(&target, &[&job[..], &["--verify_only=1"]].concat());
    }
}
