//! Throw-away virtual machines for Twinlog: the Linux kernel as a client of a node, and nodes whose power is cut.
//!
//! A guest is Debian's kernel under QEMU's software emulation with one file system in memory, made for the occasion; it boots in
//! seconds, needs no root, and leaves nothing behind. `docs/lab.md` says what each scenario proves.
//!
//! | module | what it is |
//! |---|---|
//! | [`host`] | programs of this machine and the packages that bring them |
//! | [`kernel`], [`modules`] | the guest's kernel and the modules that it needs, in order |
//! | [`cpio`], [`initramfs`] | the guest's file system |
//! | [`machine`], [`console`] | QEMU from start to end; how a guest ended |
//! | [`disk`] | a guest's disk that loses, when the power is cut, what was not flushed |
//! | [`node`], [`pair`] | a Twinlog node beside the guests; two, of which each can be harmed apart |
//! | [`page`] | the commands of a page of `docs` |
//! | [`user_mode`] | a kernel that is a process, in place of QEMU |
//! | [`iommufd`] | Debian's kernel with what Debian leaves out |
//! | [`relay`] | a connection that can be cut |
//! | [`scenarios`] | what is tested |
//! | [`guest`] | tools that run inside a guest |

pub mod console;
pub mod cpio;
pub mod disk;
pub mod guest;
pub mod host;
pub mod initramfs;
pub mod iommufd;
pub mod kernel;
pub mod machine;
pub mod modules;
pub mod node;
pub mod page;
pub mod pair;
pub mod random;
pub mod relay;
pub mod scenarios;
pub mod user_mode;
