//! What proves that one end knows its secret: HMAC under its key, of the other end's challenge and of who is who.

use crate::{group::Group, hash::Hash, secret::Secret};

/// No secure channel follows (SC_C): there is none, and a response says so.
const NO_CHANNEL: u8 = 0;

/// Which end proves itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host.
    Host,
    /// The controller, to a host that wants to know.
    Controller,
}

impl Role {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Host => b"HostHost",
            Self::Controller => b"Controller",
        }
    }
}

/// Who proves what to whom.
#[derive(Clone, Copy, Debug)]
pub struct Prover<'a> {
    /// The end that does.
    pub role: Role,
    /// Its qualified name; a controller has that of its subsystem.
    pub name: &'a str,
    /// What it knows.
    pub secret: &'a Secret,
    /// The other end's name.
    pub examiner: &'a str,
}

/// A challenge as the one who proves and the one who examines see it.
#[derive(Clone, Copy)]
pub struct Challenge<'a> {
    /// What the transaction has agreed on.
    pub hash: Hash,
    /// The same.
    pub group: Group,
    /// The transaction.
    pub transaction: u16,
    /// The challenge's own bytes: as many as the hash function makes.
    pub value: &'a [u8],
    /// Its sequence number.
    pub sequence: u32,
    /// What both ends have in common ([`Group::common`]); nothing with the null group.
    pub common: &'a [u8],
}

impl Challenge<'_> {
    /// The response of `prover` (base 2.0, sections 8.13.5.4 and 8.13.5.5).
    #[must_use]
    pub fn response(&self, prover: Prover<'_>) -> Vec<u8> {
        self.over(prover, |key, parts| self.hash.mac(key, parts))
    }

    /// Whether `response` is that. Takes the same time wherever a wrong one differs.
    #[must_use]
    pub fn is_answered(&self, prover: Prover<'_>, response: &[u8]) -> bool {
        self.over(prover, |key, parts| self.hash.is_mac(key, parts, response))
    }

    /// Gives `take` the key of `prover`, and the parts of what it proves itself with.
    fn over<T>(&self, prover: Prover<'_>, take: impl FnOnce(&[u8], &[&[u8]]) -> T) -> T {
        let (sequence, transaction) = (self.sequence.to_le_bytes(), self.transaction.to_le_bytes());
        let parts: [&[u8]; 8] = [
            &self.augmented(),
            &sequence,
            &transaction,
            &[NO_CHANNEL],
            prover.role.label(),
            prover.name.as_bytes(),
            &[0],
            prover.examiner.as_bytes(),
        ];
        take(&prover.secret.key(prover.name), &parts)
    }

    /// The challenge, bound to what both ends have in common.
    fn augmented(&self) -> Vec<u8> {
        match self.group {
            Group::Null => self.value.to_vec(),
            _ => self.hash.mac(&self.hash.digest(self.common), &[self.value]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "DHHC-1:02:ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoOEhYaHiImKi4yNjo+QkZKTvGwQfg==:";
    const HOST: &str = "nqn.2014-08.a";
    const SUBSYSTEM: &str = "nqn.2014-08.b";

    fn begins(bytes: &[u8]) -> String {
        bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Computed by Python's hmac and hashlib: how responses begin, per role and hash function without a group and with one.
    #[test]
    fn responses_are_those_of_another_implementation() {
        let expected = [
            (Role::Host, Hash::Sha256, ["f28cbe294bf078a0", "2bfd4c6e78f0f7bb"]),
            (Role::Host, Hash::Sha384, ["f77a083b8624199b", "0cac4f952eb91c53"]),
            (Role::Host, Hash::Sha512, ["3163801a21a55613", "b06ed491418f2acf"]),
            (Role::Controller, Hash::Sha256, ["8a1970dd1b5ce754", "2303e25ff568aa6b"]),
            (Role::Controller, Hash::Sha384, ["fb2b23a5423c1c35", "5ac28eb762569cec"]),
            (Role::Controller, Hash::Sha512, ["81e29e131478ac19", "24408764286a010d"]),
        ];
        let secret = &Secret::parse(SECRET).expect("a secret");
        let value: Vec<u8> = (0..64).collect();
        for (role, hash, beginnings) in expected {
            let (name, examiner) = if role == Role::Host { (HOST, SUBSYSTEM) } else { (SUBSYSTEM, HOST) };
            let prover = Prover { role, name, secret, examiner };
            for (group, beginning) in [Group::Null, Group::Ffdhe2048].into_iter().zip(beginnings) {
                let value = &value[..hash.bytes()];
                let challenge =
                    Challenge { hash, group, transaction: 0x0506, value, sequence: 0x0102_0304, common: &[9; 256] };
                let mut response = challenge.response(prover);
                assert_eq!(
                    (begins(&response).as_str(), response.len()),
                    (beginning, hash.bytes()),
                    "{hash:?} {group:?}"
                );
                assert!(challenge.is_answered(prover, &response));
                assert!(!challenge.is_answered(Prover { name: examiner, ..prover }, &response), "of another name");
                assert!(!challenge.is_answered(prover, &response[1..]) && !challenge.is_answered(prover, &[]));
                response[hash.bytes() - 1] ^= 1;
                assert!(!challenge.is_answered(prover, &response));
            }
        }
    }
}
