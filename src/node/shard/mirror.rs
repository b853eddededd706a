//! The mirror of a shard's lane: orders of the coordinator, and what goes to the partner. The lane itself keeps the books
//! (`changelog/lane/mirroring.rs`).

use super::{Shard, State};
use crate::{
    changelog::lane::MirrorItem,
    cp::message::{MirrorNews, MirrorOrder, ToCoordinator},
};
use twinlog_device::LogMemory;

impl<L: LogMemory> Shard<L> {
    /// What goes to the partner next.
    pub fn next_mirror_item(&mut self) -> Option<MirrorItem> {
        let State::Serving(lane) = &mut self.state else { return None };
        lane.next_mirror_item()
    }

    /// Performs an order. One that comes when the lane does not serve any more is void: the pool has stopped.
    pub(super) fn mirror(&mut self, order: MirrorOrder) {
        let State::Serving(lane) = &mut self.state else { return };
        let heard = match order {
            MirrorOrder::Start { unit_bytes } => {
                lane.start_mirroring(unit_bytes);
                self.catches_up = false;
                self.mirror_news(MirrorNews::Started);
                return;
            }
            MirrorOrder::Require => {
                lane.require_mirror();
                self.catches_up = true;
                return;
            }
            MirrorOrder::InSync(epoch) => {
                lane.set_epoch(epoch);
                return;
            }
            MirrorOrder::Alone(epoch) => {
                lane.set_epoch(epoch);
                lane.stop_mirroring();
                self.catches_up = false;
                return;
            }
            MirrorOrder::Mirrored(lsn) => lane.mirrored(lsn),
            MirrorOrder::Resend(expected) => lane.resend_from(expected),
        };
        if let Err(error) = heard {
            self.mirror_news(MirrorNews::Lost(error.to_string()));
        }
    }

    /// Tells when everything that may have been answered is with the partner, once.
    pub(super) fn tell_caught_up(&mut self) {
        if let State::Serving(lane) = &self.state
            && self.catches_up
            && lane.is_caught_up()
        {
            self.catches_up = false;
            self.mirror_news(MirrorNews::CaughtUp);
        }
    }

    fn mirror_news(&mut self, news: MirrorNews) {
        self.messages.push_back(ToCoordinator::Mirror { lane: self.options.lane, news });
    }
}
