//! Foreign clients of an NBD export: libnbd, QEMU, fio, and file systems on a disk image.

#[path = "../common/mod.rs"]
mod common;

mod filesystem;
mod fio;
mod libnbd;
mod qemu;
