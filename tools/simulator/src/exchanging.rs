//! Clients that compare and write. What they draw, they draw from a stream of their own: the rest of a seed's history is drawn as it is without them.

use crate::{clients::Ask, model::Model, pattern::WriteId};
use twinlog::base::ObjectId;
use twinlog_device::Prng;

/// The clients of one pool.
#[derive(Debug)]
pub(crate) struct Exchanging {
    prng: Prng,
    /// One of so many requests is theirs.
    rarity: u64,
}

impl Exchanging {
    /// In half of the histories.
    pub(crate) fn draw(seed: u64) -> Option<Self> {
        let mut prng = Prng::new(seed ^ 0xE8C4);
        let rarity = prng.between(2, 8);
        prng.chance(1, 2).then_some(Self { prng, rarity })
    }

    /// Now and then a compare-and-write, in the place of another request. `are_whole`: of whole blocks.
    pub(crate) fn draw_ask(&mut self, model: &Model, volume: ObjectId, are_whole: bool) -> Option<Ask> {
        if !self.prng.chance(1, self.rarity) {
            return None;
        }
        let (range, expected) = model.draw_exchange(volume, &mut self.prng, are_whole)?;
        Some(Ask::Exchange(range, expected, WriteId(0), self.prng.chance(1, 8)))
    }
}
