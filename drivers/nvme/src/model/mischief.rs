//! What a controller may do wrong, and how often.

use twinlog_device::Prng;

/// How many times in a thousand each thing is done wrong where it could be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mischief {
    /// A command is never performed and never answered.
    pub no_answer: u64,
    /// A command is performed, but not answered.
    pub lost_answer: u64,
    /// A command takes very long; its data may come after the driver has given it up.
    pub late: u64,
    /// An answer is not signalled.
    pub lost_signal: u64,
    /// An answer comes twice.
    pub duplicate: u64,
    /// An answer comes with an identifier that is drawn.
    pub invented: u64,
    /// One of the answers before comes once more.
    pub stale: u64,
    /// An answer names another submission queue.
    pub foreign_queue: u64,
    /// An answer names a position of the submission queue that is drawn.
    pub wrong_head: u64,
    /// An answer has the wrong phase bit.
    pub wrong_phase: u64,
    /// An answer has a status that is drawn.
    pub bad_status: u64,
    /// A part of what identify or a log page returns is drawn.
    pub lie: u64,
    /// The fatal status appears; drawn each turn, like the next seven.
    pub fatal: u64,
    /// The ready bit disappears.
    pub not_ready: u64,
    /// The same, but it goes on with what it has.
    pub hides_ready: u64,
    /// Every register reads as all ones.
    pub vanish: u64,
    /// The same, and the kernel tells.
    pub removed: u64,
    /// The kernel asks for the function, which is still there.
    pub wanted_back: u64,
    /// A health event is reported.
    pub event: u64,
    /// A firmware is activated: it pauses for a while, or for ever.
    pub pause: u64,
    /// The controller does not become ready; drawn once each time it is enabled.
    pub never_ready: u64,
    /// It does not stop when it is disabled.
    pub never_stops: u64,
    /// An abort is not performed.
    pub ignored_abort: u64,
    /// The function cannot be reset.
    pub no_reset: u64,
}

impl Mischief {
    /// A mixture that is drawn: of each thing nothing, a little or much.
    #[must_use]
    pub fn draw(prng: &mut Prng) -> Self {
        let mut rate = |often: u64| match prng.below(8) {
            0 => often,
            1 => often.div_ceil(10),
            _ => 0,
        };
        Self {
            no_answer: rate(100),
            lost_answer: rate(100),
            late: rate(200),
            lost_signal: 0,
            duplicate: rate(50),
            invented: rate(50),
            stale: rate(50),
            foreign_queue: rate(50),
            wrong_head: rate(50),
            wrong_phase: rate(50),
            bad_status: rate(300),
            lie: rate(300),
            fatal: rate(20),
            not_ready: rate(20),
            hides_ready: rate(20),
            vanish: rate(10),
            removed: rate(10),
            wanted_back: rate(10),
            event: rate(300),
            pause: rate(20),
            never_ready: rate(500),
            never_stops: rate(500),
            ignored_abort: rate(700),
            no_reset: rate(700),
        }
    }
}

/// Overwrites a part of `bytes` with what controllers are known to get wrong: zeroes, ones, or anything.
pub(super) fn lie(prng: &mut Prng, bytes: &mut [u8]) {
    // Where the fields that matter lie: front, MDTS, limits, entry sizes, commands; formats of a namespace.
    let places = [0, 16, 24, 26, 77, 128, 258, 512, 516, 520, 525, 536];
    for _ in 0..prng.between(1, 4) {
        let length = usize::try_from(prng.between(1, 16)).expect("small");
        let start = match prng.chance(3, 4) {
            true => *prng.pick(&places),
            false => usize::try_from(prng.below(bytes.len() as u64)).expect("small"),
        };
        let Some(part) = bytes.get_mut(start..start + length) else { continue };
        match prng.below(3) {
            0 => part.fill(0),
            1 => part.fill(0xFF),
            _ => prng.fill(part),
        }
    }
}
