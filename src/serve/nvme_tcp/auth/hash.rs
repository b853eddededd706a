//! HMAC and hash functions by their identifiers.

use crate::serve::nvme_tcp::wire::auth::Hash;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};

fn over<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// HMAC of `parts`, one after the other.
pub(super) fn mac(hash: Hash, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    match hash {
        Hash::Sha256 => over::<Hmac<Sha256>>(key, parts).finalize().into_bytes().to_vec(),
        Hash::Sha384 => over::<Hmac<Sha384>>(key, parts).finalize().into_bytes().to_vec(),
        Hash::Sha512 => over::<Hmac<Sha512>>(key, parts).finalize().into_bytes().to_vec(),
    }
}

/// Whether `said` is that. Takes the same time wherever a wrong one differs.
pub(super) fn is_mac(hash: Hash, key: &[u8], parts: &[&[u8]], said: &[u8]) -> bool {
    let verified = match hash {
        Hash::Sha256 => over::<Hmac<Sha256>>(key, parts).verify_slice(said),
        Hash::Sha384 => over::<Hmac<Sha384>>(key, parts).verify_slice(said),
        Hash::Sha512 => over::<Hmac<Sha512>>(key, parts).verify_slice(said),
    };
    verified.is_ok()
}

/// The hash of `bytes`.
pub(super) fn digest(hash: Hash, bytes: &[u8]) -> Vec<u8> {
    match hash {
        Hash::Sha256 => Sha256::digest(bytes).to_vec(),
        Hash::Sha384 => Sha384::digest(bytes).to_vec(),
        Hash::Sha512 => Sha512::digest(bytes).to_vec(),
    }
}
