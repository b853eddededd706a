//! What lies on a pool's devices: superblocks, chains, object records, nodes.

use super::take;
use twinlog::{
    base::checksum,
    format::{
        chain::{AddressRange, ChainEntry, Subtree, decode_chain_block, encode_chain_block},
        object::{Object, ObjectRecord, REGISTRANTS_PER_RECORD, records},
        reference::node,
        reservation::Reservation,
        superblock::Superblock,
    },
    fs::directory::Directory,
};
use twinlog_device::{BLOCK_BYTES, BlockBytes};

/// Bytes: one that says whether the checksum is mended, two for the block's place, then the block.
pub(crate) fn superblock(data: &[u8]) -> bool {
    let ([mend, low, high], data) = take::<3>(data);
    let own_block = u64::from(u16::from_le_bytes([low, high]));
    let (mut bytes, _) = take::<BLOCK_BYTES>(data);
    if mend % 4 != 0 {
        if mend % 4 == 1 {
            bytes[40..48].copy_from_slice(&own_block.to_le_bytes());
        }
        let sum = checksum(own_block, &bytes[..BLOCK_BYTES - 8]);
        bytes[BLOCK_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
    }
    match Superblock::verify(&bytes, own_block) {
        Ok((superblock, device)) => {
            assert!(usize::from(device) < superblock.devices.len());
            let again = superblock.encode(device, own_block);
            assert_eq!(Superblock::verify(&again, own_block), Ok((superblock, device)));
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// A block that was verified by its checksum, taken for each kind that it could be.
pub(crate) fn block(data: &[u8]) -> bool {
    let (bytes, _) = take::<BLOCK_BYTES>(data);
    let freed = chain::<AddressRange>(&bytes);
    let reap = chain::<Subtree>(&bytes);
    let mut volumes = 0;
    for record in records(&bytes) {
        match record.verify() {
            Ok(Some(Object::Volume(volume, head))) => {
                let none = Reservation::default().head();
                assert_eq!(ObjectRecord::volume(&volume).verify(), Ok(Some(Object::Volume(volume, none))));
                let _ = head.join(Vec::new());
                volumes += 1;
            }
            Ok(Some(Object::Registrants { registrants, .. })) => {
                assert!((1..=REGISTRANTS_PER_RECORD).contains(&registrants.len()));
            }
            _ => {}
        }
    }
    let mut directory = Directory::default();
    let loaded = directory.load_block(0, &bytes).is_ok();
    let _whole = directory.finish();
    assert!(directory.len() <= records(&bytes).len());
    for reference in node(&bytes) {
        let _ = (reference.is_hole(), reference.address().device(), reference.key(), reference.aux());
    }
    let _another_blocks = node(&bytes)[0].matches(&bytes);
    let sane = node(&bytes).iter().all(|reference| reference.is_sane());
    freed || reap || sane || (loaded && volumes > 0)
}

fn chain<E: ChainEntry + PartialEq + std::fmt::Debug>(bytes: &BlockBytes) -> bool {
    let Ok((entries, next)) = decode_chain_block::<E>(bytes) else { return false };
    let mut again = [0; BLOCK_BYTES];
    encode_chain_block(&mut again, &entries, next);
    assert_eq!(decode_chain_block::<E>(&again), Ok((entries, next)));
    true
}
