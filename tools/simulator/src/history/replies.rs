//! A turn of everything, and what is made of answers.

use super::{Flying, Halt, History, Oracle, Order, PATIENCE, TURNS_MAX, Watch, found};
use crate::{
    clients::{Answer, Ask, Refusal},
    fault::Class,
    setup::{block_bytes_of, index},
};
use twinlog::{
    base::{ObjectId, checksum},
    node::admin::{AdminReply, NodeStatus},
};

impl History {
    /// One turn of every reactor; what is answered goes to the model.
    pub(super) fn turn(&mut self) -> Result<(), Halt> {
        self.figures.turns += 1;
        self.node.as_mut().expect("a life has a node").poll(&mut self.prng);
        if self.cluster.world.crashed() {
            return Err(Halt::Crash);
        }
        if self.turns_left == 0 {
            return Err(Halt::Crash);
        }
        self.turns_left -= 1;
        self.collect()?;
        let waits = !self.flying.is_empty() || self.order.is_some() || self.is_recovering || self.is_stopping;
        self.quiet_turns = if waits { self.quiet_turns + 1 } else { 0 };
        // Also of one that waits while others do not: ids rise.
        let oldest = self.flying.first_key_value().map_or(self.figures.turns, |(_, flying)| flying.turn);
        if self.quiet_turns > PATIENCE || self.figures.turns - oldest > PATIENCE || self.figures.turns > TURNS_MAX {
            let asked: Vec<&Ask> = self.flying.values().map(|flying| &flying.ask).collect();
            let phase = self.node().phase();
            return Err(found(
                Oracle::Liveness,
                format!(
                    "nothing happens any more: {} requests {asked:?} wait, recovering {}, stopping {}, phase {phase}, {:?}",
                    self.flying.len(),
                    self.is_recovering,
                    self.is_stopping,
                    self.node().failure()
                ),
            ));
        }
        match self.node().failure() {
            Some(reason) if !self.is_steady => self.pool_stopped(reason),
            _ => Ok(()),
        }
    }

    /// Turns until `done`.
    pub(super) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> Result<(), Halt> {
        while !done(self) {
            self.turn()?;
        }
        Ok(())
    }

    /// The pool has stopped by itself. Whoever waits must hear of it; then the life is over.
    fn pool_stopped(&mut self, reason: String) -> Result<(), Halt> {
        let is_hole = self.excuse.hole && reason.contains("hole");
        if !(self.excuse.stop || self.is_damaged() || is_hole) {
            return Err(found(Oracle::Error, format!("the pool has stopped without a fault: {reason}")));
        }
        if reason.is_empty() {
            return Err(found(Oracle::Damage, "the pool has stopped and does not say why"));
        }
        self.is_steady = true;
        self.is_recovering = false;
        let mut handshakes = 0;
        let result = self.until(|history| {
            handshakes += 1;
            history.flying.is_empty() || (history.setup.is_nbd && handshakes > 3000 && !history.waits_for_replies())
        });
        self.is_steady = false;
        result?;
        Err(Halt::Stopped(reason))
    }

    fn waits_for_replies(&self) -> bool {
        self.sessions.iter().flatten().any(|session| session.is_open() && session.unanswered().next().is_some())
    }

    fn collect(&mut self) -> Result<(), Halt> {
        let mut answers = Vec::new();
        if self.setup.is_nbd {
            for position in 0..self.sessions.len() {
                let Some(session) = &mut self.sessions[position] else { continue };
                session.poll(&mut answers).map_err(|what| found(Oracle::Protocol, what))?;
                if session.is_closed() {
                    self.session_closed(position)?;
                }
            }
        } else {
            for reactor in 0..self.node().reactor_count() {
                answers.extend(std::iter::from_fn(|| self.node().port(reactor).answer()));
            }
        }
        for (id, answer) in answers {
            self.quiet_turns = 0;
            let flying = self.flying.remove(&id);
            let flying = flying.ok_or_else(|| found(Oracle::Protocol, format!("request {id} was answered twice")))?;
            self.answered(id, flying, answer)?;
        }
        self.order_answered()
    }

    fn session_closed(&mut self, position: usize) -> Result<(), Halt> {
        let Some(session) = self.sessions[position].take() else { return Ok(()) };
        let is_known = self.model.volumes().contains_key(&session.volume);
        let unanswered: Vec<u64> = session.unanswered().collect();
        let is_offline = self.is_out_of_reach(session.volume);
        let excused = self.is_stopping || self.node().failure().is_some() || !is_known || is_offline;
        if !excused && (session.was_refused() || !unanswered.is_empty()) && !self.is_being_deleted(session.volume) {
            return Err(found(Oracle::Protocol, "the server has closed a connection that did nothing wrong"));
        }
        unanswered.iter().for_each(|id| self.forget(*id));
        Ok(())
    }

    fn is_being_deleted(&self, volume: ObjectId) -> bool {
        matches!(&self.order, Some((Order::Delete { id }, _)) if *id == volume)
    }

    /// Nobody will hear the answer to a request: it stays undecided.
    pub(super) fn forget(&mut self, id: u64) {
        if let Some(flying) = self.flying.remove(&id)
            && flying.write.is_none()
        {
            self.model.end(flying.began);
        }
    }

    fn answered(&mut self, id: u64, flying: Flying, answer: Answer) -> Result<(), Halt> {
        if self.watch == Watch::Trace {
            let what = match &answer {
                Answer::Data(bytes) => format!("{} bytes", bytes.len()),
                other => format!("{other:?}"),
            };
            self.note(|_| format!("  {id}: {:?} of {} -> {what}", flying.ask, flying.volume));
        }
        self.digest = self.digest.rotate_left(7) ^ id ^ self.cluster.world.now().0;
        if let Some(reserving) = &mut self.reserving {
            let told = (&flying.ask, &answer);
            reserving.end(id, flying.volume, told, &mut self.model).map_err(Halt::Found)?;
        }
        let is_refused = matches!(answer, Answer::Refused(_));
        if !is_refused && self.offline == Some(flying.volume) {
            return Err(found(Oracle::Damage, format!("{:?} of a volume that is offline was done", flying.ask)));
        }
        if !is_refused && flying.ask.end_bytes() > flying.sizes.largest {
            let (ask, sizes) = (&flying.ask, flying.sizes);
            return Err(found(
                Oracle::Volumes,
                format!("{ask:?} was done, though the volume's end is before: {sizes:?}"),
            ));
        }
        match answer {
            Answer::Refused(refusal) => self.refused(&flying, refusal),
            Answer::Done => {
                match (&flying.ask, flying.write) {
                    (Ask::Write(_, _, durable) | Ask::Discard(_, durable) | Ask::Zero(_, _, durable), Some(write)) => {
                        self.model.end_write(write, *durable);
                        self.figures.answered_changes += 1;
                    }
                    (Ask::Exchange(_, _, _, durable), Some(write)) => {
                        self.model.end_exchange(write, *durable)?;
                        self.figures.answered_changes += 1;
                        self.figures.exchanges += 1;
                    }
                    (Ask::Flush, _) => {
                        self.model.flushed(Some(flying.volume), flying.began);
                        self.model.end(flying.began);
                    }
                    (Ask::Reserve(..), _) => self.model.end(flying.began),
                    _ => return Err(found(Oracle::Protocol, format!("{:?} was answered without data", flying.ask))),
                }
                Ok(())
            }
            Answer::Reservation(_) => {
                self.model.end(flying.began);
                Ok(())
            }
            Answer::Data(bytes) => self.read_answered(&flying, &bytes),
            Answer::Extents(extents) => {
                let Ask::Status(range) = &flying.ask else {
                    return Err(found(Oracle::Protocol, "extents of something else"));
                };
                let mut offset = range.start;
                for extent in extents {
                    let length = extent.length_bytes.min(range.end - offset);
                    if !extent.allocated {
                        let zeroes = vec![0; index(length)];
                        self.model.check_read(flying.volume, offset, &zeroes, flying.began)?;
                    }
                    offset += length;
                }
                self.model.end(flying.began);
                if offset == range.start {
                    return Err(found(Oracle::Protocol, "block status tells nothing"));
                }
                Ok(())
            }
        }
    }

    fn read_answered(&mut self, flying: &Flying, bytes: &[u8]) -> Result<(), Halt> {
        let Ask::Read(range) = &flying.ask else { return Err(found(Oracle::Protocol, "data of something else")) };
        if bytes.len() as u64 != range.end - range.start {
            let count = bytes.len();
            return Err(found(Oracle::Protocol, format!("a read of {range:?} returned {count} bytes")));
        }
        self.figures.reads += 1;
        if self.watch != Watch::Verdict {
            self.digest ^= checksum(range.start, bytes);
        }
        if flying.is_verification {
            self.model.check_recovered(flying.volume, range.start, bytes, flying.began)?;
        } else {
            self.model.check_read(flying.volume, range.start, bytes, flying.began)?;
        }
        self.model.end(flying.began);
        Ok(())
    }

    fn refused(&mut self, flying: &Flying, refusal: Refusal) -> Result<(), Halt> {
        let has_stopped = self.node().failure().is_some();
        let is_nbd = self.setup.is_nbd;
        let (may_be_gone, is_beyond) = (flying.sizes.may_be_gone, flying.ask.end_bytes() > flying.sizes.smallest);
        let (is_excused, never_happens) = match &refusal {
            Refusal::NoVolume => (may_be_gone, true),
            Refusal::Beyond => (is_beyond, true),
            // NBD has one number for both.
            Refusal::NoSpace if is_nbd && is_beyond => (true, true),
            Refusal::NoSpace if self.setup.fills_pool => {
                self.tally.count(Class::FullPool, true);
                (true, true)
            }
            Refusal::NoSpace => (false, true),
            Refusal::ShuttingDown => (self.is_stopping, true),
            // Whether it was right is known already.
            Refusal::Reserved | Refusal::Preempted => (self.reserving.is_some(), true),
            // Every change comes straight to the owner here.
            Refusal::Late | Refusal::Unserved => (false, false),
            Refusal::Differs => (matches!(flying.ask, Ask::Exchange(..)), true),
            Refusal::Failed(_) if self.offline == Some(flying.volume) => (true, true),
            Refusal::Failed(_) => {
                let has_fault = self.excuse.read || self.excuse.stop || has_stopped || self.is_damaged();
                (has_fault || (is_nbd && may_be_gone), false)
            }
        };
        if !is_excused {
            return Err(found(Oracle::Error, format!("{:?} was refused without a fault: {refusal:?}", flying.ask)));
        }
        match flying.write {
            Some(write) if refusal == Refusal::Differs => {
                self.figures.differences += 1;
                self.model.differs(write)?;
            }
            Some(write) if never_happens => self.model.refuse_write(write)?,
            Some(_) => {}
            None => self.model.end(flying.began),
        }
        if let (Refusal::Failed(reason), true, false) = (refusal, flying.is_verification, has_stopped) {
            self.unreadable = Some(reason);
        }
        Ok(())
    }

    fn order_answered(&mut self) -> Result<(), Halt> {
        let Some((_, replies)) = &self.order else { return Ok(()) };
        let Ok(reply) = replies.try_recv() else { return Ok(()) };
        self.quiet_turns = 0;
        let Some((order, _)) = self.order.take() else { return Ok(()) };
        if let AdminReply::Refused { message, .. } = &reply {
            return self.order_refused(order, message);
        }
        match (order, reply) {
            (Order::Create { name, size_bytes }, AdminReply::Volumes { volumes }) => {
                let Some(volume) = volumes.first() else {
                    return Err(found(Oracle::Volumes, format!("{name} was made, and is not shown")));
                };
                self.model.create(ObjectId(volume.id), &name, size_bytes);
            }
            (Order::Resize { cut, .. }, AdminReply::Volumes { .. }) => self.model.end_resize(cut),
            (Order::Delete { id }, AdminReply::Done) => {
                self.model.delete(id);
                // A handshake that is under way might enter the next volume of this name.
                for session in &mut self.sessions {
                    drop(session.take_if(|session| session.volume == id && !session.is_open()));
                }
            }
            (Order::Grow, AdminReply::Done) => {
                self.machine().configure_spare(true);
                self.figures.joined_disks += 1;
            }
            (Order::Checkpoint { began }, AdminReply::Done) => {
                self.model.flushed(None, began);
                self.model.end(began);
            }
            (Order::Check, AdminReply::Report(report)) => {
                self.figures.checks += 1;
                self.judge_check(&report.problems)?;
            }
            (Order::Status, AdminReply::Status(status)) => self.look_at(&status),
            (Order::List, AdminReply::Volumes { volumes }) => {
                if let Some(volume) = volumes.iter().find(|volume| volume.block_bytes != block_bytes_of(&volume.name)) {
                    let text = format!("{} has blocks of {} bytes", volume.name, volume.block_bytes);
                    return Err(found(Oracle::Volumes, text));
                }
                let line =
                    |volume: twinlog::node::admin::VolumeStatus| (ObjectId(volume.id), volume.name, volume.size_bytes);
                self.listed = Some(volumes.into_iter().map(line).collect());
            }
            (Order::Online, AdminReply::Volumes { .. }) if self.refuses_online => {
                return Err(found(Oracle::Damage, "a volume came back though its block has not"));
            }
            (Order::Online, AdminReply::Volumes { .. }) | (Order::Stop, AdminReply::Done) => {}
            (_, reply) => {
                return Err(found(Oracle::Protocol, format!("an order got the answer to another: {reply:?}")));
            }
        }
        Ok(())
    }

    fn order_refused(&mut self, order: Order, message: &str) -> Result<(), Halt> {
        let has_stopped = self.node().failure().is_some();
        let is_full = self.setup.fills_pool && (message.contains("space") || message.contains("too full"));
        let is_offline = matches!(order, Order::Online) && self.refuses_online;
        if !(has_stopped || is_offline || is_full || self.is_damaged() || self.excuse.stop) {
            return Err(found(Oracle::Error, format!("an order was refused: {message}")));
        }
        match order {
            Order::Checkpoint { began } => self.model.end(began),
            order if order.is_lasting() && has_stopped => self.uncertain = Some(order),
            Order::Resize { cut, .. } => self.model.refuse_write(cut)?,
            _ => {}
        }
        Ok(())
    }

    fn look_at(&mut self, status: &NodeStatus) {
        self.figures.replayed_records += if self.is_recovering { status.replayed_records } else { 0 };
        for lane in &status.lanes {
            if lane.throttle_ns > 0 {
                self.tally.count(Class::FullLog, lane.used_bytes * 100 > lane.size_bytes * 60);
            }
        }
    }
}
