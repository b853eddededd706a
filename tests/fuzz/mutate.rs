//! Inputs made from valid ones: what libFuzzer does with coverage to guide it, done blindly from a seed.

use twinlog_device::Prng;

/// Numbers at which bounds lie, as bytes of either order.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7F,
    0xFF,
    0x100,
    0xFFFF,
    4096,
    1 << 20,
    32 << 20,
    (32 << 20) + 1,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    1 << 62,
    u64::MAX,
];

/// Longest input that is grown.
const BYTES_MAX: usize = 64 << 10;

/// A changed copy of one of `seeds`.
pub(crate) fn mutate(prng: &mut Prng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = prng.pick(seeds).clone();
    for _ in 0..prng.between(1, 6) {
        change(prng, &mut input, seeds);
    }
    input
}

fn place(prng: &mut Prng, end: usize) -> usize {
    usize::try_from(prng.below(end as u64 + 1)).expect("below a usize")
}

fn change(prng: &mut Prng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let length = input.len();
    let at = place(prng, length.saturating_sub(1));
    match prng.below(9) {
        0 if length > 0 => input[at] ^= 1 << prng.below(8),
        1 if length > 0 => input[at] = prng.next_u64().to_le_bytes()[0],
        2 => {
            let edge = *prng.pick(&EDGES);
            let width = *prng.pick(&[1, 2, 4, 8]);
            let bytes = if prng.chance(1, 2) {
                edge.to_le_bytes()[..width].to_vec()
            } else {
                edge.to_be_bytes()[8 - width..].to_vec()
            };
            let end = (at + width).min(length);
            input[at.min(end)..end].copy_from_slice(&bytes[..end - at.min(end)]);
        }
        3 => input.truncate(at),
        4 if length > 0 => {
            let until = at + place(prng, (length - at).min(64));
            input.drain(at..until);
        }
        5 if length < BYTES_MAX => {
            let until = at + place(prng, length - at);
            let piece = input[at..until].to_vec();
            let to = place(prng, length);
            input.splice(to..to, piece);
        }
        6 if length < BYTES_MAX => {
            let other = prng.pick(seeds);
            let from = place(prng, other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        7 if length < BYTES_MAX => {
            let mut noise = vec![0; place(prng, 40)];
            prng.fill(&mut noise);
            input.splice(at..at, noise);
        }
        _ if length > 0 => {
            let until = at + place(prng, (length - at).min(16));
            prng.fill(&mut input[at..until]);
        }
        _ => input.push(0),
    }
}
