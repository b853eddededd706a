//! Secrets of hosts and of the controller, as people hand them on: `DHHC-1:hh:base64:` (NVMe base 2.0, section 8.13.5.8).
//!
//! `hh` names the hash function by which the secret is transformed before it is used, 00 for none; in base64 are the secret of 32, 48 or 64 bytes and
//! its CRC-32, low byte first, against typing errors.

use crate::hash::Hash;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use std::fmt;

/// Bytes of secrets.
const LENGTHS: [usize; 3] = [32, 48, 64];
const CRC_BYTES: usize = 4;
const PREFIX: &str = "DHHC-1:";
/// What the transformation adds to the name of whose secret it is.
const LABEL: &[u8] = b"NVMe-over-Fabrics";

/// A secret. Never shown, but by [`to_text`](Self::to_text).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    bytes: Vec<u8>,
    transformation: Option<Hash>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// Why a text is no secret. Does not repeat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSecret {
    /// Another form.
    #[error("it has not the form DHHC-1:hh:base64:, with hh from 00 to 03")]
    Form,
    /// Its middle is no base64.
    #[error("what is between the last two colons is no base64")]
    Base64,
    /// Too short or too long.
    #[error("a secret has 32, 48 or 64 bytes, and as many as its hash function makes")]
    Length,
    /// The checksum is wrong.
    #[error("its checksum is wrong: it was not copied whole")]
    Checksum,
}

impl Secret {
    /// The secret of 32 bytes with these bits, to be transformed by SHA-256.
    #[must_use]
    pub fn new(bits: [u8; 32]) -> Self {
        Self { bytes: bits.to_vec(), transformation: Some(Hash::Sha256) }
    }

    /// The secret that `text` stands for.
    ///
    /// # Errors
    /// It stands for none.
    pub fn parse(text: &str) -> Result<Self, NoSecret> {
        let rest = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(':')).ok_or(NoSecret::Form)?;
        let (transformation, encoded) = rest.split_once(':').ok_or(NoSecret::Form)?;
        let transformation = match transformation {
            "00" => None,
            "01" => Some(Hash::Sha256),
            "02" => Some(Hash::Sha384),
            "03" => Some(Hash::Sha512),
            _ => return Err(NoSecret::Form),
        };
        let mut bytes = STANDARD.decode(encoded).map_err(|_| NoSecret::Base64)?;
        let at = bytes.len().checked_sub(CRC_BYTES).ok_or(NoSecret::Length)?;
        let sum = bytes.split_off(at);
        let fits = transformation.is_none_or(|hash| hash.bytes() == bytes.len());
        if !LENGTHS.contains(&bytes.len()) || !fits {
            return Err(NoSecret::Length);
        }
        if crc32fast::hash(&bytes).to_le_bytes() != sum[..] {
            return Err(NoSecret::Checksum);
        }
        Ok(Self { bytes, transformation })
    }

    /// The text that stands for it: for the file that keeps it, and for whoever asked for a new one.
    #[must_use]
    pub fn to_text(&self) -> String {
        let sum = crc32fast::hash(&self.bytes).to_le_bytes();
        let transformation = self.transformation.map_or(0, Hash::id);
        format!("{PREFIX}{transformation:02}:{}:", STANDARD.encode([&self.bytes[..], &sum].concat()))
    }

    /// Whether they are the same bytes, however they are transformed.
    #[must_use]
    pub fn has_bytes_of(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }

    /// Tells secrets apart, and nothing of them: to see whether two nodes have the same.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mac = Hash::Sha256.mac(&self.bytes, &[b"twinlog fingerprint", &[self.transformation.map_or(0, Hash::id)]]);
        mac.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The key of `name`, whose secret it is.
    pub(crate) fn key(&self, name: &str) -> Vec<u8> {
        match self.transformation {
            None => self.bytes.clone(),
            Some(hash) => hash.mac(&self.bytes, &[name.as_bytes(), LABEL]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `nvme gen-dhchap-key` of nvme-cli 2.3 from a given secret; the other one is valid to its `check-dhchap-key`.
    const PLAIN: &str = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
    const TRANSFORMED: &str = "DHHC-1:02:ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoOEhYaHiImKi4yNjo+QkZKTvGwQfg==:";

    #[test]
    fn a_secret_is_read_and_written() {
        for text in [PLAIN, TRANSFORMED] {
            assert_eq!(Secret::parse(text).expect("a secret").to_text(), text);
        }
        let bits: Vec<u8> = (0..32).collect();
        assert_eq!(Secret::parse(PLAIN).expect("a secret").bytes, bits);
        let made = Secret::new([7; 32]);
        assert_eq!(Secret::parse(&made.to_text()), Ok(made.clone()));
        assert_eq!(format!("{made:?}"), "Secret(..)");
        assert_eq!(made.fingerprint().len(), 8);
        assert_ne!(made.fingerprint(), Secret::new([8; 32]).fingerprint());
    }

    #[test]
    fn what_is_no_secret_is_refused_with_its_reason() {
        let bad = |from: &str, to: &str| Secret::parse(&PLAIN.replacen(from, to, 1)).expect_err("no secret");
        assert_eq!(bad("DHHC-1", "DHHC-2"), NoSecret::Form);
        assert_eq!(bad(":00:", ":04:"), NoSecret::Form);
        assert_eq!(bad(":00:", ":0:"), NoSecret::Form);
        assert_eq!(bad(":00:", ":"), NoSecret::Form);
        assert_eq!(Secret::parse(PLAIN.trim_end_matches(':')), Err(NoSecret::Form));
        assert_eq!(bad("AAEC", "AA!C"), NoSecret::Base64);
        assert_eq!(bad("AAEC", "AAED"), NoSecret::Checksum);
        assert_eq!(bad("AAEC", ""), NoSecret::Length);
        assert_eq!(bad(":00:", ":03:"), NoSecret::Length, "64 bytes are what SHA-512 makes");
        assert_eq!(Secret::parse("DHHC-1:00::"), Err(NoSecret::Length));
        assert_eq!(Secret::parse(""), Err(NoSecret::Form));
    }

    /// Computed by Python's hmac.
    #[test]
    fn keys_are_the_secret_or_its_transformation() {
        let plain = Secret::parse(PLAIN).expect("a secret");
        assert_eq!(plain.key("nqn.2014-08.a"), plain.bytes);
        let key = Secret::parse(TRANSFORMED).expect("a secret").key("nqn.2014-08.a");
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "f38522a81c910c902c54a6724625cf44e56fcd3925f7da9bb045ec67ebfd630581175f8ec319f3f6806a64f72eafff5a"
        );
    }
}
