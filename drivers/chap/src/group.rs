//! The groups of RFC 7919, and powers in them.
//!
//! The prime of `b` bits is `2^b - 2^(b-64) + (floor(2^(b-130) e) + x) 2^64 - 1` with the least `x` for which it and its half are prime: 64 ones, the first
//! bits of e plus `x`, 64 zeroes, and one less of all that (RFC 7919, appendix A).
//!
//! Exponents have 512 bits, more than the 400 that RFC 7919 (section 5.2) asks for with the strongest group: a power costs a quarter to a sixteenth of
//! what it would with exponents as long as the prime. Its time depends on the group alone.

use crypto_bigint::{
    BoxedUint, Odd,
    modular::{BoxedMontyForm, BoxedMontyParams},
};

/// Bytes of an exponent.
pub const EXPONENT_BYTES: usize = 64;
const EXPONENT_BITS: u32 = 512;
const _: () = assert!(EXPONENT_BYTES * 8 == EXPONENT_BITS as usize);

/// A Diffie-Hellman group (base 2.0, section 8.13.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// No exchange.
    Null,
    /// The groups of RFC 7919.
    Ffdhe2048,
    /// 3072 bits.
    Ffdhe3072,
    /// 4096 bits.
    Ffdhe4096,
    /// 6144 bits.
    Ffdhe6144,
    /// 8192 bits.
    Ffdhe8192,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Null, Self::Ffdhe2048, Self::Ffdhe3072, Self::Ffdhe4096, Self::Ffdhe6144, Self::Ffdhe8192];

    /// The group with this id.
    #[must_use]
    pub fn of(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// Its id.
    #[must_use]
    pub fn id(self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 1,
            Self::Ffdhe3072 => 2,
            Self::Ffdhe4096 => 3,
            Self::Ffdhe6144 => 4,
            Self::Ffdhe8192 => 5,
        }
    }

    /// Its name, as Linux has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Ffdhe2048 => "ffdhe2048",
            Self::Ffdhe3072 => "ffdhe3072",
            Self::Ffdhe4096 => "ffdhe4096",
            Self::Ffdhe6144 => "ffdhe6144",
            Self::Ffdhe8192 => "ffdhe8192",
        }
    }

    /// Bits of its prime; zero: it has none.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Null => 0,
            Self::Ffdhe2048 => 2048,
            Self::Ffdhe3072 => 3072,
            Self::Ffdhe4096 => 4096,
            Self::Ffdhe6144 => 6144,
            Self::Ffdhe8192 => 8192,
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    /// The element for `exponent`: the generator to its power, of as many bytes as the prime has, the highest first.
    ///
    /// # Panics
    /// The group has no elements.
    #[must_use]
    pub fn element(self, exponent: &[u8; EXPONENT_BYTES]) -> Vec<u8> {
        power(self, number(self, &GENERATOR.to_be_bytes()), exponent)
    }

    /// Whether `bytes` are an element that an honest partner may send: of the group's length, and neither 0, 1, the prime less 1 nor more, with which anybody
    /// would know the result.
    #[must_use]
    pub fn is_element(self, bytes: &[u8]) -> bool {
        if self == Self::Null || bytes.len() != self.bytes() {
            return self == Self::Null && bytes.is_empty();
        }
        let (element, last) = (number(self, bytes), prime(self).get() - 1_u64);
        element > BoxedUint::one_with_precision(self.bits()) && element < last
    }

    /// What both ends have in common: the other one's element to the power of `exponent`. `other`: [`Self::is_element`] of a group that has some.
    ///
    /// # Panics
    /// It is not.
    #[must_use]
    pub fn common(self, other: &[u8], exponent: &[u8; EXPONENT_BYTES]) -> Vec<u8> {
        assert!(self.is_element(other), "the caller has looked");
        power(self, number(self, other), exponent)
    }
}

/// All groups' generator.
const GENERATOR: u64 = 2;

/// The first bits of e, from the two before the point on: as many as the longest prime needs.
const E: &str = "\
    adf85458a2bb4a9aafdc5620273d3cf1d8b9c583ce2d3695a9e13641146433fbcc939dce249b3ef97d2fe363630c75d8f681b202aec4617a\
    d3df1ed5d5fd65612433f51f5f066ed0856365553ded1af3b557135e7f57c935984f0c70e0e68b77e2a689daf3efe8721df158a136ade735\
    30acca4f483a797abc0ab182b324fb61d108a94bb2c8e3fbb96adab760d7f4681d4f42a3de394df4ae56ede76372bb190b07a7c8ee0a6d70\
    9e02fce1cdf7e2ecc03404cd28342f619172fe9ce98583ff8e4f1232eef28183c3fe3b1b4c6fad733bb5fcbc2ec22005c58ef1837d1683b2\
    c6f34a26c1b2effa886b4238611fcfdcde355b3b6519035bbc34f4def99c023861b46fc9d6e6c9077ad91d2691f7f7ee598cb0fac186d91c\
    aefe130985139270b4130c93bc437944f4fd4452e2d74dd364f2e21e71f54bff5cae82ab9c9df69ee86d2bc522363a0dabc521979b0deada\
    1dbf9a42d5c4484e0abcd06bfa53ddef3c1b20ee3fd59d7c25e41d2b669e1ef16e6f52c3164df4fb7930e9e4e58857b6ac7d5f42d69f6d18\
    7763cf1d5503400487f55ba57e31cc7a7135c886efb4318aed6a1e012d9e6832a907600a918130c46dc778f971ad0038092999a333cb8b7a\
    1a1db93d7140003c2a4ecea9f98d0acc0a8291cdcec97dcf8ec9b55a7f88a46b4db5a851f44182e1c68a007e5e0dd9020bfd64b645036c7a\
    4e677d2c38532a3a23ba4442caf53ea63bb454329b7624c8917bdd64b1c0fd4cb38e8c334c701c3acdad0657fccfec719b1f5c3e4e46041f\
    388147fb4cfdb477a52471f7a9a96910b855322edb6340d8a00ef092350511e30abec1fff9e3a26e7fb29f8c183023c3587e38da0077d9b4\
    763e4e4b94b2bbc194c6651e77caf992eeaac0232a281bf6b3a739c1226116820ae8db5847a67cbef9c9091b462d538cd72b03746ae77f5e\
    62292c311562a846505dc82db854338ae49f5235c95b91178ccf2dd5cacef403ec9d1810c6272b045b3b71f9dc6b80d63fdd4a8e9adb1e69\
    62a69526d43161c1a41d570d7938dad4a40e329ccff46aaa36ad004cf600c8381e425a31d951ae64fdb23fcec9509d43687feb69edd1cc5e\
    0b8cc3bdf64b10ef86b63142a3ab8829555b2f747c932665cb2c0f1cc01bd70229388839d2af05e454504ac78b7582822846c0ba35c35f5c\
    59160cc046fd8251541fc68c9c86b022bb7099876a460e7451a8a93109703fee1c217e6c3826e52c51aa691e0e423cfc99e9e31650c1217b\
    624816cdad9a95f9d5b8019488d9c0a0a1fe3075a577e23183f81d4a3f2fa4571efc8ce0ba8a4fe8b6855dfe72b0a66eded2fbabfbe58a30\
    fafabe1c5d71a87e2f741ef8c1fe86fea6bbfde530677f0d97d11d49f7a8443d0822e506a9f4614e011e2a94838ff88cd68c8bb7c51eef6d\
";
const E_BITS: u32 = 8064;
/// What a prime begins with, and what the sum ends with of which it is one less.
const ONES: [u8; 8] = [0xff; 8];
const ZEROES: [u8; 8] = [0; 8];

/// `x` of the group's prime.
fn addend(group: Group) -> Option<u128> {
    Some(match group {
        Group::Null => return None,
        Group::Ffdhe2048 => 560_316,
        Group::Ffdhe3072 => 2_625_351,
        Group::Ffdhe4096 => 5_736_041,
        Group::Ffdhe6144 => 15_705_020,
        Group::Ffdhe8192 => 10_965_728,
    })
}

/// The group's prime; it must have one.
fn prime(group: Group) -> Odd<BoxedUint> {
    let digits = BoxedUint::from_be_hex(E, E_BITS).expect("hexadecimal digits").to_be_bytes();
    let middle = digits.get(..group.bytes() - ONES.len() - ZEROES.len()).expect("as many as the longest prime needs");
    let sum = number(group, &[&ONES[..], middle, &ZEROES].concat());
    let addend = addend(group).expect("a group with a prime") << 64;
    (sum + (addend - 1)).into_odd().expect("its last bits are ones")
}

/// `bytes` as a number of the group's size.
fn number(group: Group, bytes: &[u8]) -> BoxedUint {
    BoxedUint::from_be_slice(bytes, group.bits()).expect("as many bytes as the group has")
}

fn power(group: Group, base: BoxedUint, exponent: &[u8; EXPONENT_BYTES]) -> Vec<u8> {
    let parameters = BoxedMontyParams::new_vartime(prime(group));
    let exponent = BoxedUint::from_be_slice(exponent, EXPONENT_BITS).expect("as many bits");
    let power = BoxedMontyForm::new(base, &parameters).pow_bounded_exp(&exponent, EXPONENT_BITS);
    power.retrieve().to_be_bytes().into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    const GROUPS: [Group; 5] =
        [Group::Ffdhe2048, Group::Ffdhe3072, Group::Ffdhe4096, Group::Ffdhe6144, Group::Ffdhe8192];

    fn sum(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn exponents() -> [[u8; EXPONENT_BYTES]; 2] {
        let byte = |number: usize| u8::try_from(number % 256).expect("a byte");
        [std::array::from_fn(byte), std::array::from_fn(|index| byte(7 * index + 3))]
    }

    /// Primes from the series of e, tested for being prime with their halves, and powers: by Python's integers.
    #[test]
    fn primes_elements_and_what_is_common_are_those_of_another_implementation() {
        let expected = [
            (
                Group::Ffdhe2048,
                [
                    "9cd3b7f336872f46c09428d1bbc19877a4d440512cda8d1c1cf0cd6e33698966",
                    "2a0199e924494317f21660a90b0d1d18238389a2d85f800bd08cfba82e1b60ef",
                    "7ae56fb670078d625cb8ef599595e444f63c1616e77cebc42f4c6d73767f9119",
                ],
            ),
            (
                Group::Ffdhe3072,
                [
                    "0eaf67db3a839156d5013494a5318a772b5697d270d721f37f092efc69ea5a17",
                    "e83464b6d4a36955a05dcc356ac64559af81268fe7cc34f5948aaaf9bba93383",
                    "7120fe5d9540f068edf10760a5398b79df236b77a850d8d5795cbc3778fd6664",
                ],
            ),
            (
                Group::Ffdhe4096,
                [
                    "4648414224ac881b3d0dc59b466f96d06a558278776807797ecf1f66ff397b3e",
                    "ce9e3e4cdee8b7603a15f69739d55cf2cbafe1d32d5bf700888976c91554496a",
                    "d15aa8ae719a8bfa6aa789df4ebcb81a309f2c963e7c8ac9e1845810c37bfd06",
                ],
            ),
            (
                Group::Ffdhe6144,
                [
                    "227ac9066b3ddd9e193670cda2388fa884f65ba0cf98b742d1fe77a6687c79c7",
                    "ccc0c127315888eb301fedbbc8df874b59c9c635e7f61511682aaea88bd1434d",
                    "b8fd5b4c75f16b9805829bc7b2cb42650ddf1b1c2b5ed9952c18dbe5735884c4",
                ],
            ),
            (
                Group::Ffdhe8192,
                [
                    "770b14efaf6f049929c523113b3fa99a8d11dab1b18af3609590122075d19833",
                    "af82394e0273911c27ff62adaebfa44b27f5ff717a007b59e4d014966aaf5329",
                    "13be8543e3b1b23ce8d5b62c2d0e2f8f837694eb0d4d49beddac5d646de6ab34",
                ],
            ),
        ];
        let [own, other] = exponents();
        for (group, sums) in expected {
            let theirs = group.element(&other);
            let found =
                [sum(&prime(group).to_be_bytes()), sum(&group.element(&own)), sum(&group.common(&theirs, &own))];
            assert_eq!(found, sums, "{group:?}");
        }
    }

    #[test]
    fn primes_begin_and_end_as_the_rfc_prints_them() {
        let ends: [&[u8]; 5] = [
            b"\x88\x6b\x42\x38\x61\x28\x5c\x97",
            b"\x25\xe4\x1d\x2b\x66\xc6\x2e\x37",
            b"\xc6\x8a\x00\x7e\x5e\x65\x5f\x6a",
            b"\xa4\x0e\x32\x9c\xd0\xe4\x0e\x65",
            b"\xd6\x8c\x8b\xb7\xc5\xc6\x42\x4c",
        ];
        for (group, end) in GROUPS.into_iter().zip(ends) {
            let bytes = prime(group).to_be_bytes();
            assert_eq!(bytes.len(), group.bytes());
            assert_eq!(bytes[..16], *b"\xff\xff\xff\xff\xff\xff\xff\xff\xad\xf8\x54\x58\xa2\xbb\x4a\x9a");
            assert_eq!(bytes[bytes.len() - 16..], [end, &ONES].concat());
        }
    }

    #[test]
    fn both_ends_find_the_same() {
        let [own, other] = exponents();
        let group = Group::Ffdhe3072;
        assert_eq!(group.common(&group.element(&other), &own), group.common(&group.element(&own), &other));
    }

    #[test]
    fn elements_that_tell_the_result_are_refused() {
        for group in GROUPS {
            let prime = prime(group).get();
            let bits = group.bits();
            let one = BoxedUint::one_with_precision(bits);
            let zero = BoxedUint::zero_with_precision(bits);
            for bad in [zero, one.clone(), prime.clone() - 1_u64, prime.clone(), prime.clone() + 1_u64] {
                assert!(!group.is_element(&bad.to_be_bytes()), "{group:?}");
            }
            for good in [one + 1_u64, prime - 2_u64] {
                assert!(group.is_element(&good.to_be_bytes()), "{group:?}");
            }
            let good = group.element(&[7; EXPONENT_BYTES]);
            assert!(!group.is_element(&good[1..]) && !group.is_element(&[&[0], &good[..]].concat()));
            assert!(!group.is_element(&[]));
        }
        assert!(Group::Null.is_element(&[]) && !Group::Null.is_element(&[2]));
    }
}
