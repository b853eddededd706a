//! A session's changes that may be late: see [`Gates`](super::super::gate::Gates).

use super::{Session, Sink};
use crate::{
    base::{ObjectId, Pass},
    node::pools::PoolSlot,
    serve::{
        nvme_tcp::{gate::Verdict, session::Job, wire::command::Status},
        turn::Turn,
    },
};
use twinlog_device::Unread;

/// What a host is answered whose change is not performed because it may be late: the path is to blame, and the host may try again at once, here or elsewhere. Linux takes the best
/// path that it has, without counting the try, and without reading the access page first as after Asymmetric Access Transition.
const AGAIN: Status = Status::PATH_ERROR;

impl Session {
    /// This node begins to serve a pool: what has arrived by now may be older than what its host was answered elsewhere. Before the network's turn.
    pub(in crate::serve) fn pool_opened<N: Unread, S>(&mut self, turn: &Turn<'_, N, S>, slot: PoolSlot) {
        self.gates.begin_here(slot, turn.net.unread_bytes(turn.connection));
    }

    /// After the network's turn: answers what has waited until a gate is known.
    pub(super) fn open_gates<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>) {
        if !self.gates.is_counting() {
            return;
        }
        let (net, connection) = (&*turn.net, turn.connection);
        self.gates.count(net.received_bytes(connection), || net.unread_bytes(connection));
        let (gates, commands) = (&self.gates, &self.commands);
        let is_open = |slot: &mut u16| {
            let volume = commands.get(*slot).and_then(|active| active.volume());
            !volume.is_some_and(|volume| gates.are_counting(volume))
        };
        let open: Vec<u16> = self.parked.extract_if(.., is_open).collect();
        open.into_iter().for_each(|slot| self.finish(turn, self.blamed(slot), AGAIN, 0));
    }

    /// What a command's change is submitted with; `None`: it is not, and is answered now or soon.
    pub(super) fn pass_of<N: Unread, S>(&mut self, turn: &mut Turn<'_, N, S>, slot: u16) -> Option<Option<Pass>> {
        let active = self.commands.get(slot)?;
        let Job::Volume(request) = &active.job else { return Some(None) };
        if !request.is_change() {
            return Some(None);
        }
        match self.gates.judge(request.volume, self.beginning_of(active)) {
            Verdict::Passes(pass) => return Some(pass),
            Verdict::Late => self.finish(turn, self.blamed(slot), AGAIN, 0),
            Verdict::LateSoon => self.park(slot),
        }
        None
    }

    /// The node that serves has refused a change, and given a pass for what arrives from now on. The host hears of it when what it sends then is sure to be behind the gate. Before
    /// the network's turn.
    pub(super) fn refused<N: Unread, S>(
        &mut self,
        turn: &mut Turn<'_, N, S>,
        slot: u16,
        (volume, pass): (ObjectId, Pass),
    ) {
        self.gates.begin_pass(volume, pass, turn.net.unread_bytes(turn.connection));
        if self.gates.are_counting(volume) { self.park(slot) } else { self.finish(turn, self.blamed(slot), AGAIN, 0) }
    }

    /// A command that is refused when its gate is known. Its memory is free at once.
    fn park(&mut self, slot: u16) {
        let active = self.commands.get_mut(slot);
        active.failure = Some(AGAIN);
        active.sink = Sink::Nowhere;
        self.write_bytes -= std::mem::take(&mut active.held_bytes);
        self.parked.push(slot);
    }
}
