//! The pair's key, and how a node proves that it knows it without saying it.
//!
//! Each hello carries a challenge that was never used before. The proof of a node is HMAC-SHA256 under the pair's key of a label, the
//! node's part on the connection, both hellos as they were sent, and the binding of an encrypted connection. So a proof holds for one
//! connection, one direction and exactly what both nodes have said; repeating or reflecting it proves nothing, and neither does passing it
//! on from one encrypted connection to another.
//!
//! # What it does not do
//!
//! Without encryption what follows the proofs is neither hidden nor authenticated frame by frame: whoever can change packets on their way
//! between the nodes can change data. A way that others reach belongs encrypted (`[pair] encrypt`), or into a tunnel.

use super::wire::Role;
use crate::base::{Incarnation, PairId};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;

/// Bytes of a challenge and of a proof.
pub const PROOF_BYTES: usize = 32;

/// What only the two nodes of a pair know: 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub struct PairKey([u8; 32]);

impl fmt::Debug for PairKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("PairKey(..)")
    }
}

/// Both hellos as they were sent, the connecting node's first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transcript<'a> {
    pub(super) connecting: &'a [u8],
    pub(super) listening: &'a [u8],
    /// [`Network::binding`](twinlog_device::Network::binding) of the connection; empty: it is not encrypted.
    pub(super) binding: &'a [u8],
}

impl PairKey {
    /// The key with these bits.
    #[must_use]
    pub fn new(bits: [u8; 32]) -> Self {
        Self(bits)
    }

    fn begin(&self, label: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(label);
        mac
    }

    /// Which key it is, for whoever has several. Tells nothing of the key itself; the pair's id where no mailbox gives it one.
    #[must_use]
    pub fn id(&self) -> PairId {
        let mac: [u8; PROOF_BYTES] = self.begin(b"twinlog key id").finalize().into_bytes().into();
        let (half, _) = mac.split_at(size_of::<u128>());
        PairId(u128::from_le_bytes(half.try_into().expect("half of a proof")))
    }

    fn over_parts(&self, label: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = self.begin(label);
        parts.iter().for_each(|part| mac.update(part));
        mac
    }

    /// The seal of a message of fixed parts. `label` says what kind of message it is, and by whom.
    #[must_use]
    pub(super) fn seal(&self, label: &[u8], parts: &[&[u8]]) -> [u8; PROOF_BYTES] {
        self.over_parts(label, parts).finalize().into_bytes().into()
    }

    /// Whether that is its seal. Takes the same time wherever a wrong one differs.
    #[must_use]
    pub(super) fn is_seal(&self, label: &[u8], parts: &[&[u8]], seal: &[u8]) -> bool {
        self.over_parts(label, parts).verify_slice(seal).is_ok()
    }

    /// A challenge: nobody without the key can foresee it, and `count` makes it new in this life of the process.
    #[must_use]
    pub(super) fn challenge(&self, incarnation: Incarnation, count: u64, random: u64) -> [u8; PROOF_BYTES] {
        let mut mac = self.begin(b"twinlog challenge");
        mac.update(&incarnation.0.to_le_bytes());
        mac.update(&count.to_le_bytes());
        mac.update(&random.to_le_bytes());
        mac.finalize().into_bytes().into()
    }

    fn over(&self, prover: Role, transcript: Transcript<'_>) -> Hmac<Sha256> {
        let mut mac = self.begin(match prover {
            Role::Connects => b"twinlog connects",
            Role::Listens => b"twinlog listens ",
        });
        // Each hello says in its header how long it is: where each ends is beyond doubt.
        mac.update(transcript.connecting);
        mac.update(transcript.listening);
        mac.update(transcript.binding);
        mac
    }

    /// The proof of the node that plays the part `prover`.
    #[must_use]
    pub(super) fn prove(&self, prover: Role, transcript: Transcript<'_>) -> [u8; PROOF_BYTES] {
        self.over(prover, transcript).finalize().into_bytes().into()
    }

    /// Whether that node knows the key. Takes the same time wherever a wrong proof differs.
    #[must_use]
    pub(super) fn is_proof(&self, prover: Role, transcript: Transcript<'_>, proof: &[u8; PROOF_BYTES]) -> bool {
        self.over(prover, transcript).verify_slice(proof).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSCRIPT: Transcript<'static> = Transcript { connecting: b"hello a", listening: b"hello b", binding: b"" };

    #[test]
    fn a_proof_holds_for_one_key_one_part_and_one_connection() {
        let (key, other) = (PairKey::new([7; 32]), PairKey::new([8; 32]));
        let proof = key.prove(Role::Connects, TRANSCRIPT);
        assert!(key.is_proof(Role::Connects, TRANSCRIPT, &proof));
        assert!(!other.is_proof(Role::Connects, TRANSCRIPT, &proof));
        assert!(!key.is_proof(Role::Listens, TRANSCRIPT, &proof), "a proof cannot be reflected");
        for transcript in [
            Transcript { connecting: b"hello A", ..TRANSCRIPT },
            Transcript { listening: b"hello B", ..TRANSCRIPT },
            Transcript { binding: &[0; 32], ..TRANSCRIPT },
        ] {
            assert!(!key.is_proof(Role::Connects, transcript, &proof));
        }
        for bit in 0..PROOF_BYTES * 8 {
            let mut wrong = proof;
            wrong[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.is_proof(Role::Connects, TRANSCRIPT, &wrong));
        }
    }

    #[test]
    fn challenges_are_new_and_nobody_else_s() {
        let key = PairKey::new([7; 32]);
        let first = key.challenge(Incarnation(1), 1, 1);
        let others = [(1, 1, 2), (1, 2, 1), (2, 1, 1)];
        assert!(others.iter().all(|&(life, count, random)| key.challenge(Incarnation(life), count, random) != first));
        assert_ne!(PairKey::new([8; 32]).challenge(Incarnation(1), 1, 1), first);
        assert!(!format!("{key:?}").contains('7'), "a key is not shown");
    }

    /// HMAC-SHA256 of RFC 4231, test case 1 with its key of 20 bytes padded by zeroes: what HMAC does to a short key itself.
    #[test]
    fn the_function_is_hmac_sha256() {
        let mut bits = [0; 32];
        bits[..20].fill(0x0b);
        let mac: [u8; 32] = PairKey::new(bits).begin(b"Hi There").finalize().into_bytes().into();
        let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }
}
