//! Making sure that the partner has stopped.

use crate::{
    base::{Epoch, PoolId},
    pair::decide::Fence,
};

/// What a fence has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceAnswer {
    /// For which pool it was asked.
    pub pool: PoolId,
    /// At which epoch.
    pub epoch: Epoch,
    /// What is known.
    pub result: Fence,
    /// What each kind that was tried has found, for people.
    pub said: String,
}

/// The configured fences.
pub trait Fencer {
    /// Looks whether the partner's process is gone; harms nobody.
    fn probe(&mut self, pool: PoolId, epoch: Epoch);

    /// Tries every configured kind in its order.
    fn fence(&mut self, pool: PoolId, epoch: Epoch);

    /// The next answer.
    fn poll(&mut self) -> Option<FenceAnswer>;

    /// A pool that is open here and of whose devices the partner has taken the reservation: they refuse what this node writes. Told once.
    fn lost(&mut self) -> Option<PoolId> {
        None
    }
}
