//! The blocks of a pool's device as a stopped node has left them.

use std::{fs::File, os::unix::fs::FileExt, path::Path};
use twinlog::{
    base::CpNumber,
    format::{
        object::{VolumeRecord, records},
        reference::{BlockRef, node},
        superblock::{Superblock, TreeRoot, slot_blocks},
    },
};
use twinlog_device::{BLOCK_BYTES, BlockBytes};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A device.
pub(crate) struct Disk(File);

impl Disk {
    pub(crate) fn open(path: &Path) -> Self {
        Self(File::options().read(true).write(true).open(path).expect("there"))
    }

    pub(crate) fn read(&self, block: u64) -> BlockBytes {
        let mut bytes = [0; BLOCK_BYTES];
        self.0.read_exact_at(&mut bytes, block * BLOCK).expect("within the device");
        bytes
    }

    pub(crate) fn newest_superblock(&self) -> Superblock {
        let blocks = self.0.metadata().expect("there").len() / BLOCK;
        let places = [CpNumber(0), CpNumber(1)].into_iter().flat_map(|cp| slot_blocks(cp, blocks));
        let whole = places.filter_map(|place| Superblock::verify(&self.read(place), place).ok());
        whole.map(|(superblock, _)| superblock).max_by_key(|superblock| superblock.cp).expect("a pool")
    }

    /// Tells `each` of every block of a tree, whole as the pool is, with its level: parents first.
    pub(crate) fn walk(&self, tree: &TreeRoot, each: &mut dyn FnMut(BlockRef, u8, &BlockBytes)) {
        if tree.root.is_hole() {
            return;
        }
        let bytes = self.read(tree.root.address().block());
        assert!(tree.root.matches(&bytes), "the pool is whole before it is damaged");
        each(tree.root, tree.levels, &bytes);
        if tree.levels > 0 {
            for child in node(&bytes) {
                self.walk(&TreeRoot { root: *child, levels: tree.levels - 1 }, each);
            }
        }
    }

    /// The volumes of a pool.
    pub(crate) fn volumes(&self) -> Vec<VolumeRecord> {
        let mut volumes = Vec::new();
        self.walk(&self.newest_superblock().object_table, &mut |_, level, bytes| {
            if level == 0 {
                volumes
                    .extend(records(bytes).iter().filter_map(|record| record.verify().expect("whole")?.into_volume()));
            }
        });
        volumes
    }

    /// Flips bits of a byte, through the file system to the device.
    pub(crate) fn flip(&self, offset: u64, mask: u8) {
        let mut byte = [0];
        self.0.read_exact_at(&mut byte, offset).expect("within the file");
        self.0.write_all_at(&[byte[0] ^ mask], offset).expect("written");
        self.0.sync_all().expect("written");
    }
}
