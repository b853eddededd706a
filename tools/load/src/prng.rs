//! Seeded random numbers: xoshiro256** by Blackman and Vigna, seeded through SplitMix64. Same seed, same workload.

/// A seeded generator. Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct Prng([u64; 4]);

impl Prng {
    /// A generator that is determined by `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            mix(state)
        }))
    }

    /// 64 random bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`, which is at least one.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below zero");
        u64::try_from((u128::from(self.next_u64()) * u128::from(bound)) >> 64).expect("the product's upper half")
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn percent(&mut self, percent: u8) -> bool {
        percent > 0 && self.below(100) < u64::from(percent)
    }

    /// Fills `bytes`.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// The finishing step of SplitMix64: spreads every bit of `state` over the result.
pub(crate) fn mix(state: u64) -> u64 {
    let mut mixed = state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_and_bounds_are_kept() {
        let (mut first, mut second) = (Prng::new(7), Prng::new(7));
        assert!((0..1000).all(|_| first.next_u64() == second.next_u64()));
        let mut seen = [false; 6];
        (0..1000).for_each(|_| seen[crate::units::index(first.below(6))] = true);
        assert_eq!(seen, [true; 6]);
        assert!((0..100).all(|_| first.percent(100) && !first.percent(0)));
    }
}
