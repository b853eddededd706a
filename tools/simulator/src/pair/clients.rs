//! What clients ask of a pool, and what is made of the answers.

use super::{
    History, found, lines,
    setup::{DISK_BLOCKS, REACTORS_MAX},
    site::{NAMES, Process, pool_id, slot_of},
    watch::{Flying, Order, Phase, Watch},
};
use crate::{
    clients::{Answer, Ask, Refusal, withdraw},
    history::{Oracle, Violation},
    model::{DataFault, DataOracle},
    needs::Content,
    pattern::WriteId,
    setup::{BLOCK, block_bytes_of, index},
};
use std::ops::Range;
use twinlog::{
    base::{ObjectId, checksum},
    cp::coordinator::PoolState,
    format::register::Side,
    node::{
        admin::{AdminCall, AdminReply, AdminRequest, CheckReport},
        engine::Engine,
        request::VolumeService,
    },
};
use twinlog_sim::{SimDisk, SimLog};

/// Nodes that reach each other have found out who serves after so many detection times.
pub(super) const NOTICE_FACTOR: u32 = 10;
/// Names of volumes.
const VOLUMES: [&str; 2] = ["one", "two"];

impl History {
    pub(super) fn engine(&self, pool: usize, node: usize) -> Option<&Engine<SimDisk, SimLog>> {
        self.processes[node].as_ref()?.node.reactor(0)?.pools().engine(slot_of(node, pool))
    }

    /// Whether one of the node's reactors serves the pool: it answers, though the others have not heard that it is open.
    fn has_opened_somewhere(&self, pool: usize, node: usize) -> bool {
        let Some(process) = &self.processes[node] else { return false };
        let reactors = (0..process.node.reactor_count()).filter_map(|reactor| process.node.reactor(reactor));
        let mut engines = reactors.filter_map(|reactor| reactor.pools().engine(slot_of(node, pool)));
        engines.any(|engine| engine.is_serving() && !engine.is_closing())
    }

    /// Whether the pool is on its way out at its server, so that requests are refused.
    pub(super) fn is_leaving(&self, pool: usize, node: usize) -> bool {
        self.engine(pool, node).is_none_or(|engine| {
            engine.is_closing() || engine.is_stopped() || engine.pool_state() != Some(&PoolState::Serving)
        })
    }

    /// A node serves a pool that nobody served before: its volumes must be there, and every byte is read.
    pub(super) fn begin_service(&mut self, pool: usize, node: usize) -> Result<(), Violation> {
        let listed = self.engine(pool, node).map(Engine::volumes).unwrap_or_default();
        let is_excused = self.is_excused(pool);
        let watch = &mut self.pools[pool];
        watch.begin(node);
        watch.may_be_offline |= is_excused;
        if let Some((name, size_bytes)) = watch.uncertain.take()
            && let Some(volume) = listed.iter().find(|volume| volume.name == name)
        {
            watch.model.create(volume.id, &name, size_bytes);
        }
        if watch.was_forced {
            let is_missing = |id: &ObjectId| !listed.iter().any(|volume| volume.id == *id);
            let volumes = watch.model.volumes().iter().filter(|(id, volume)| !volume.is_lasting && is_missing(id));
            let missing: Vec<ObjectId> = volumes.map(|(&id, _)| id).collect();
            missing.into_iter().for_each(|id| watch.lose_volume(id));
        }
        let listed: Vec<_> = listed.into_iter().map(|volume| (volume.id, (volume.name, volume.size_bytes))).collect();
        let expected = watch.model.volumes().iter();
        let mut expected: Vec<_> =
            expected.map(|(&id, volume)| (id, (volume.name.clone(), volume.size_bytes))).collect();
        expected.sort_by(|a, b| a.1.0.cmp(&b.1.0));
        if listed != expected {
            let what = format!("pool {} at {}: there are {listed:?}, not {expected:?}", NAMES[pool], NAMES[node]);
            return Err(found(Oracle::Volumes, what));
        }
        self.meet_offline(pool, node)?;
        let offline = self.offline_volume(pool);
        let watch = &mut self.pools[pool];
        watch.phase = Phase::Reading(watch.everything_but(offline));
        self.note_replaced(pool);
        Ok(())
    }

    /// Clients of a pool go on.
    pub(super) fn lead(&mut self, pool: usize, works: bool) -> Result<(), Violation> {
        self.hear_order(pool)?;
        if works {
            self.ask_elsewhere(pool);
        }
        let Some(node) = self.pools[pool].server else { return Ok(()) };
        if self.is_paused[node] || self.is_leaving(pool, node) {
            return Ok(());
        }
        let watch = &self.pools[pool];
        match &watch.phase {
            Phase::Reading(left) => match left.front() {
                Some((volume, ask)) => {
                    if watch.depth(node) < 4 + self.setup.depth
                        && self.fly(pool, node, *volume, ask.clone(), true)
                        && let Phase::Reading(left) = &mut self.pools[pool].phase
                    {
                        left.pop_front();
                    }
                    Ok(())
                }
                None if watch.order.is_some() || watch.flying.values().any(|flying| flying.is_verification) => Ok(()),
                None => {
                    let offline = self.offline_volume(pool);
                    let watch = &mut self.pools[pool];
                    watch.model.judge_crash_but(offline).map_err(|(oracle, what)| found(Oracle::Data(oracle), what))?;
                    watch.phase = Phase::Checking;
                    let was_rotten = self.is_rotten(pool);
                    self.order(pool, node, Order::Check { was_rotten }, AdminRequest::PoolCheck);
                    Ok(())
                }
            },
            Phase::Checking => Ok(()),
            Phase::Working => {
                self.work(pool, node, works);
                Ok(())
            }
        }
    }

    fn work(&mut self, pool: usize, node: usize, works: bool) {
        let volumes = self.pools[pool].model.volumes().len() as u64;
        if volumes == 0 || (volumes < self.setup.volumes_max && self.prng.chance(1, 200)) {
            if self.pools[pool].order.is_none() {
                let size_bytes = self.prng.between(1, self.setup.volume_blocks_max) * BLOCK;
                let name = format!("{}-{}", NAMES[pool], VOLUMES[index(volumes)]);
                let block_bytes = block_bytes_of(&name);
                let request = AdminRequest::VolumeCreate { name: name.clone(), size_bytes, block_bytes };
                self.order(pool, node, Order::Create { name, size_bytes }, request);
            }
            return;
        }
        if !works {
            return;
        }
        if self.pools[pool].order.is_none() && self.prng.chance(1, 300) {
            let began = self.pools[pool].model.begin();
            self.order(pool, node, Order::Checkpoint { began }, AdminRequest::Checkpoint);
        }
        if self.pools[pool].depth(node) < self.setup.depth && self.prng.chance(1, 4) {
            self.submit(pool, node);
        }
    }

    /// Clients of nodes that do not serve the pool work too, also while nobody serves it.
    fn ask_elsewhere(&mut self, pool: usize) {
        let watch = &self.pools[pool];
        if self.setup.is_one_sided
            || watch.model.volumes().is_empty()
            || (watch.server.is_some() && watch.phase != Phase::Working)
        {
            return;
        }
        for node in 0..2 {
            let is_there = self.processes[node].is_some() && !self.is_paused[node];
            let watch = &self.pools[pool];
            let has_room = watch.server != Some(node) && watch.depth(node) < self.setup.depth;
            if is_there && has_room && self.prng.chance(1, 6) {
                self.submit(pool, node);
            }
        }
    }

    /// Now and then clients ask for what a client of the other node is changing.
    fn draw_contested(&mut self, pool: usize, node: usize) -> Option<(ObjectId, Range<u64>)> {
        let is_contested =
            |flying: &&Flying| flying.node != node && flying.write.is_some() && flying.ask.end_bytes() > 0;
        let contested = self.pools[pool].flying.values().find(is_contested)?;
        let place = (contested.volume, contested.ask.range());
        self.prng.chance(1, 2).then_some(place)
    }

    fn order(&mut self, pool: usize, node: usize, order: Order, request: AdminRequest) {
        let (reply, replies) = crossbeam_channel::bounded(1);
        let reactor = self.processes[node].as_mut().and_then(|process| process.node.reactor_mut(0));
        let engine = reactor.and_then(|reactor| reactor.pools_mut().engine_mut(slot_of(node, pool)));
        engine.expect("the pool is served").call(AdminCall { request, reply });
        self.processes[node].iter().for_each(Process::wake);
        self.pools[pool].order = Some((order, replies));
    }

    fn hear_order(&mut self, pool: usize) -> Result<(), Violation> {
        let Some((_, replies)) = &self.pools[pool].order else { return Ok(()) };
        let Ok(reply) = replies.try_recv() else { return Ok(()) };
        let Some((order, _)) = self.pools[pool].order.take() else { return Ok(()) };
        let is_leaving = self.pools[pool].server.is_none_or(|node| self.is_leaving(pool, node));
        let is_excused = self.is_excused(pool);
        let watch = &mut self.pools[pool];
        match (order, reply) {
            (Order::Create { name, size_bytes }, AdminReply::Volumes { volumes }) => {
                let Some(volume) = volumes.first() else {
                    return Err(found(Oracle::Volumes, format!("{name} was made, and is not shown")));
                };
                watch.model.create(ObjectId(volume.id), &name, size_bytes);
            }
            (Order::Checkpoint { began }, AdminReply::Done) => {
                watch.model.flushed(None, began);
                watch.model.end(began);
            }
            (Order::Check { was_rotten }, AdminReply::Report(report)) => self.heard_check(pool, &report, was_rotten)?,
            (order, AdminReply::Refused { message, .. }) => {
                if !is_leaving && !is_excused && !message.contains("shutting down") && !message.contains("stopp") {
                    return Err(found(Oracle::Error, format!("an order was refused: {message}")));
                }
                match order {
                    Order::Checkpoint { began } => watch.model.end(began),
                    Order::Create { name, size_bytes } => watch.uncertain = Some((name, size_bytes)),
                    Order::Check { .. } => watch.look_again(),
                }
            }
            (_, reply) => {
                return Err(found(Oracle::Protocol, format!("an order got the answer to another: {reply:?}")));
            }
        }
        Ok(())
    }

    fn heard_check(&mut self, pool: usize, report: &CheckReport, was_rotten: bool) -> Result<(), Violation> {
        self.figures.checks += 1;
        let is_excused = self.is_excused(pool);
        // What lies below a block that the disk did not return was not looked at.
        let is_blind = is_excused && report.problems.iter().any(|line| line.contains(": read of block "));
        if was_rotten && !is_blind {
            self.judge_damage(pool, report)?;
        }
        let watch = &mut self.pools[pool];
        if is_excused && !report.problems.is_empty() {
            // What could not be read is looked at again.
            watch.look_again();
            return Ok(());
        }
        if let Some(first) = report.problems.first().filter(|_| !was_rotten) {
            let what = format!("pool {}: {} problems, the first: {first}", NAMES[pool], report.problems.len());
            return Err(found(Oracle::Check, what));
        }
        watch.was_forced = false;
        if watch.phase == Phase::Checking {
            watch.phase = Phase::Working;
        }
        watch.may_be_offline &= !report.offline.is_empty();
        watch.openings += 1;
        self.figures.recoveries += 1;
        Ok(())
    }

    fn draw_range(&mut self, size_bytes: u64, length_max: u64) -> Range<u64> {
        let grain = match self.prng.below(4) {
            0 | 1 => BLOCK,
            _ if self.setup.is_uniform => BLOCK,
            _ if self.setup.any_byte => 1,
            _ => 512,
        };
        let units = size_bytes / grain;
        // Half of all requests meet in the first blocks.
        let near = if self.prng.chance(1, 2) { (3 * BLOCK / grain).min(units) } else { units };
        let first = self.prng.below(near);
        let count = self.prng.between(1, (length_max / grain).clamp(1, units - first));
        first * grain..(first + count) * grain
    }

    fn submit(&mut self, pool: usize, node: usize) {
        let volumes = self.pools[pool].model.volumes();
        let place = index(self.prng.below(volumes.len() as u64));
        let (&volume, model) = volumes.iter().nth(place).expect("it was counted");
        let size_bytes = model.size_bytes;
        if let Some((volume, range)) = self.draw_contested(pool, node) {
            let length = (range.end - range.start).min(self.setup.write_bytes_max);
            let ask = match self.prng.chance(1, 2) {
                true => Ask::Read(range),
                false => Ask::Write(range.start..range.start + length, WriteId(0), false),
            };
            self.fly(pool, node, volume, ask, false);
            return;
        }
        let durable = self.prng.chance(1, 8);
        let ask = match self.prng.below(100) {
            0..=54 => {
                let length_max = if self.setup.is_uniform { BLOCK } else { self.setup.write_bytes_max };
                Ask::Write(self.draw_range(size_bytes, length_max), WriteId(0), durable)
            }
            55..=82 => Ask::Read(self.draw_range(size_bytes, 8 * BLOCK)),
            83..=87 => Ask::Discard(self.draw_range(size_bytes, size_bytes), durable),
            88..=93 => {
                let (range, may_free) = (self.draw_range(size_bytes, 16 * BLOCK), self.prng.chance(1, 2));
                Ask::Zero(range, may_free, durable)
            }
            _ => Ask::Flush,
        };
        let deed = self.pools[pool].reserving.as_mut().and_then(|reserving| reserving.draw_deed(volume, Some(node)));
        let model = &self.pools[pool].model;
        let exchange = self.exchanging.as_mut();
        let exchange = exchange.and_then(|exchanging| exchanging.draw_ask(model, volume, self.setup.is_uniform));
        let ask = deed.or(exchange).unwrap_or(ask);
        self.fly(pool, node, volume, ask, false);
    }

    /// Sends a request; false while memory is short.
    fn fly(&mut self, pool: usize, node: usize, volume: ObjectId, mut ask: Ask, is_verification: bool) -> bool {
        let model = &mut self.pools[pool].model;
        let begun = ask.begin(model, volume);
        self.next_id += 1;
        let id = self.next_id;
        let host = self.pools[pool].reserving.as_mut().map_or(0, |reserving| reserving.host_of(&ask, Some(node)));
        let process = self.processes[node].as_ref().expect("it serves");
        let since = process.clock();
        let reactor = index(self.prng.below(process.node.reactor_count() as u64));
        let outside = slot_of(node, pool).outside(volume);
        if !process.node.port(reactor).submit(&self.site.blocks[node], (id, host), outside, &ask) {
            let model = &mut self.pools[pool].model;
            withdraw(model, begun);
            return false;
        }
        let (write, began) = begun;
        self.note(|_| format!("  {id}: {ask:?} of {}:{volume} at {} by host {host}", NAMES[pool], NAMES[node]));
        let watch = &mut self.pools[pool];
        if let Some(reserving) = &mut watch.reserving {
            reserving.begin((id, host), volume, &ask, write);
        }
        let services = watch.services;
        let is_local = watch.server == Some(node);
        let (parted, has_outlived, has_lost_volume) = (None, false, false);
        let flying = Flying {
            ask,
            volume,
            write,
            began,
            node,
            since,
            services,
            is_local,
            parted,
            has_outlived,
            has_lost_volume,
            is_verification,
        };
        watch.flying.insert(id, flying);
        true
    }

    /// Takes the answers of a node.
    pub(super) fn collect(&mut self, node: usize) -> Result<(), Violation> {
        for reactor in 0..REACTORS_MAX {
            while let Some((id, answer)) = self.next_answer(node, reactor) {
                let pool = (0..2).find(|&pool| self.pools[pool].flying.contains_key(&id));
                match pool {
                    Some(pool) => self.answered(pool, id, answer)?,
                    None => return Err(found(Oracle::Protocol, format!("request {id} was answered twice"))),
                }
            }
        }
        Ok(())
    }

    fn next_answer(&self, node: usize, reactor: usize) -> Option<(u64, Answer)> {
        let node = &self.processes[node].as_ref()?.node;
        (reactor < node.reactor_count()).then(|| node.port(reactor).answer())?
    }

    fn answered(&mut self, pool: usize, id: u64, answer: Answer) -> Result<(), Violation> {
        let flying = self.pools[pool].flying.remove(&id).expect("the caller has found it");
        if self.is_traced {
            let what = match &answer {
                Answer::Data(bytes) => format!("{} bytes", bytes.len()),
                other => format!("{other:?}"),
            };
            self.note(|_| format!("  {id}: {:?} of {}:{} -> {what}", flying.ask, NAMES[pool], flying.volume));
        }
        self.digest = self.digest.rotate_left(7) ^ id ^ self.site.world.now().0;
        if !matches!(answer, Answer::Refused(_)) {
            self.may_answer(pool, &flying)?;
            self.judge_done(pool, id, &flying)?;
        }
        if !flying.is_local {
            let is_done = !matches!(answer, Answer::Refused(_));
            self.tell(lines::FORWARDED, is_done);
            if flying.has_outlived {
                self.tell(lines::FORWARDED_OUTLIVED, is_done);
            }
        }
        let Watch { model, reserving, .. } = &mut self.pools[pool];
        if let Some(reserving) = reserving {
            reserving.end(id, flying.volume, (&flying.ask, &answer), model)?;
        }
        match (answer, &flying.ask) {
            (Answer::Refused(refusal), _) => self.refused(pool, (id, &flying), &refusal),
            (Answer::Done, Ask::Write(..) | Ask::Discard(..) | Ask::Zero(..)) => {
                model.end_write(flying.write.expect("it is a change"), false);
                self.pools[pool].answered += 1;
                self.figures.answered_changes += 1;
                Ok(())
            }
            (Answer::Done, Ask::Exchange(..)) => {
                let what = model.end_exchange(flying.write.expect("it is a change"), false);
                self.pools[pool].answered += 1;
                self.figures.answered_changes += 1;
                self.figures.exchanges += 1;
                what.map_err(|(oracle, what)| found(Oracle::Data(oracle), format!("pool {}: {what}", NAMES[pool])))
            }
            (Answer::Done, Ask::Flush | Ask::Reserve(..)) | (Answer::Reservation(_), Ask::Reserve(..)) => {
                model.end(flying.began);
                Ok(())
            }
            (Answer::Data(bytes), Ask::Read(range)) => {
                if bytes.len() as u64 != range.end - range.start {
                    return Err(found(Oracle::Protocol, format!("a read of {range:?} returned {} bytes", bytes.len())));
                }
                self.figures.reads += 1;
                if self.has_digest {
                    self.digest ^= checksum(range.start, &bytes);
                }
                let result = if flying.is_verification {
                    model.check_recovered(flying.volume, range.start, &bytes, flying.began)
                } else {
                    model.check_read(flying.volume, range.start, &bytes, flying.began)
                };
                model.end(flying.began);
                result.map_err(|(oracle, what)| {
                    let twice = self.performed_twice(pool, flying.volume, range.start, &bytes);
                    let (oracle, what) = twice.unwrap_or((oracle, what));
                    found(Oracle::Data(oracle), format!("pool {}: {what}", NAMES[pool]))
                })
            }
            (answer, ask) => Err(found(Oracle::Protocol, format!("{ask:?} was answered with {answer:?}"))),
        }
    }

    /// Changes that clients have read, and others have overwritten, wait for their answers: what the opened pool holds in their places is not of them.
    fn note_replaced(&mut self, pool: usize) {
        let (watch, model) = (&self.pools[pool], &self.pools[pool].model);
        let parts = watch.flying.values().filter_map(|flying| Some((flying.write?, flying.volume)));
        let parts =
            parts.flat_map(|(write, volume)| model.replaced(write).into_iter().map(move |part| (write, volume, part)));
        let parts: Vec<_> = parts.collect();
        let content =
            (!parts.is_empty()).then(|| Content::newest(std::slice::from_ref(&self.site.media[pool]), DISK_BLOCKS));
        let is_gone = |(write, volume, part): &(WriteId, ObjectId, Range<u64>)| {
            let bytes = content.as_ref().and_then(|content| content.as_ref()?.read(*volume, part));
            bytes.is_some_and(|bytes| !model.is_of(*write, part.start, &bytes))
        };
        self.pools[pool].replaced = parts.into_iter().filter(is_gone).collect();
    }

    /// Whether what was read, and must not be there, is of a change that had been read and overwritten before the pool was opened, and was not there then.
    fn performed_twice(&self, pool: usize, volume: ObjectId, start: u64, bytes: &[u8]) -> Option<DataFault> {
        let watch = &self.pools[pool];
        let is_there = |(write, of, part): &&(WriteId, ObjectId, Range<u64>)| {
            let within = part.start.max(start)..part.end.min(start + bytes.len() as u64);
            // What was overwritten a second time in between proves nothing.
            let mut pieces = within.clone().step_by(8).map(|at| at..(at + 8).min(within.end));
            let bytes_of = |piece: &Range<u64>| &bytes[index(piece.start - start)..index(piece.end - start)];
            *of == volume && pieces.any(|piece| watch.model.is_of(*write, piece.start, bytes_of(&piece)))
        };
        let (write, _, part) = watch.replaced.iter().find(is_there)?;
        let what = format!(
            "write {} of bytes {part:?} was read, overwritten, not there when the pool was opened, and is there again",
            write.0
        );
        Some((DataOracle::Twice, what))
    }

    /// Rule R2: only the owner answers, and only while its lease lasts.
    fn may_answer(&self, pool: usize, flying: &Flying) -> Result<(), Violation> {
        let (watch, node) = (&self.pools[pool], flying.node);
        let is_single = self.setup.reactors[node] == 1;
        let is_here = flying.is_local && watch.server == Some(node) && flying.services == watch.services;
        // A node decides before its engine has its turn; with several reactors some hear of it later.
        if is_here && is_single && self.engine(pool, node).is_none_or(Engine::is_closing) {
            let what = format!("{} answers for pool {} after it has decided to close it", NAMES[node], NAMES[pool]);
            return Err(found(Oracle::Protocol, what));
        }
        if watch.server == Some(1 - node) && flying.is_local && watch.open_at[node] {
            let what = format!("{} answers for pool {}, which was taken away from it", NAMES[node], NAMES[pool]);
            return Err(found(Oracle::TwoOwners, what));
        }
        if watch.server != Some(node) {
            let is_closed = watch.server.is_none() && flying.parted == Some(watch.services) && flying.is_local;
            let is_anew = is_closed && !is_single && self.has_opened_somewhere(pool, node);
            if is_closed && !is_anew {
                let what = format!("{} has answered for pool {} after it had closed it", NAMES[node], NAMES[pool]);
                return Err(found(Oracle::Protocol, what));
            }
            if !is_anew {
                // The owner's answer has come from the other node.
                return Ok(());
            }
        }
        let desk = self.site.desk.borrow();
        let owner = desk.registers.get(&pool_id(pool)).map(|register| register.owner);
        let own = if node == pool { Side::Home } else { Side::Away };
        if owner != Some(own) {
            let what = format!("{} answers for pool {}, and the register says {owner:?}", NAMES[node], NAMES[pool]);
            return Err(found(Oracle::TwoOwners, what));
        }
        let lease = self.setup.detection * super::site::LEASE_FACTOR;
        // What has waited for an owner, or been with one, goes from the hub to its client's port a turn before it is answered: it is answered then, and the
        // node may have stood still since (seed `0x68aeead3d69eb4ac`).
        let [now, before] = self.clocks[node];
        let clock = if is_here { now } else { before };
        // Only reactor 0 has a clock for it; the others hear from it.
        if is_single && clock > desk.beat_heard[node] + lease {
            let what = format!("{} answers for pool {} after its lease has ended", NAMES[node], NAMES[pool]);
            return Err(found(Oracle::Lease, what));
        }
        Ok(())
    }

    /// A node that closes the pool may refuse what it has begun; what waits for an owner, or is with it, ends in no other error than that nobody
    /// has served it for too long.
    fn refused(&mut self, pool: usize, (id, flying): (u64, &Flying), refusal: &Refusal) -> Result<(), Violation> {
        let watch = &self.pools[pool];
        let is_leaving = flying.parted.is_some() || (watch.open_at[flying.node] && self.is_leaving(pool, flying.node));
        let is_held_up = self.may_be_held_up(pool, id, flying);
        let is_offline = (watch.may_be_offline || is_held_up)
            && matches!(refusal, Refusal::Failed(reason) if reason.starts_with("the volume is offline"));
        let (is_excused, never_happens) = match refusal {
            Refusal::NoVolume => (is_leaving || watch.may_have_lost_volume(flying), true),
            Refusal::ShuttingDown => (is_leaving, true),
            Refusal::Failed(_) if is_offline => (true, true),
            Refusal::Failed(_) => (is_leaving || is_held_up || self.is_excused(pool), false),
            Refusal::Unserved => (self.may_be_unserved(pool, flying), false),
            // Whether it was right is known already.
            Refusal::Reserved | Refusal::Preempted => (watch.reserving.is_some(), true),
            // It lay at a node that did not serve the pool, when it came.
            Refusal::Late => (watch.reserving.is_some() && (!flying.is_local || is_leaving), true),
            Refusal::Beyond | Refusal::NoSpace => (false, true),
            Refusal::Differs => (matches!(flying.ask, Ask::Exchange(..)), true),
        };
        if !is_excused {
            let what = format!("pool {}: {:?} was refused without a fault: {refusal:?}", NAMES[pool], flying.ask);
            return Err(found(Oracle::Error, what));
        }
        let is_failed = matches!(refusal, Refusal::Failed(_)) && !is_offline && !is_held_up && !self.is_excused(pool);
        if is_offline && is_held_up {
            self.tell_refused_offline(flying);
        }
        if *refusal == Refusal::Unserved {
            self.tell(lines::FORWARDED_UNSERVED, true);
        }
        let watch = &mut self.pools[pool];
        if is_failed && flying.services == watch.services {
            watch.refused_in = Some(watch.services);
        }
        match flying.write {
            Some(write) if *refusal == Refusal::Differs => {
                self.figures.differences += 1;
                watch.model.differs(write).map_err(|(oracle, what)| found(Oracle::Data(oracle), what))?;
            }
            Some(write) if never_happens => {
                watch.model.refuse_write(write).map_err(|(oracle, what)| found(Oracle::Data(oracle), what))?;
            }
            Some(write) if matches!(refusal, Refusal::Failed(_)) => watch.model.doubt_write(write),
            // The other node may still have it in hand.
            Some(_) => {}
            None => watch.model.end(flying.began),
        }
        if let (true, Phase::Reading(left)) = (flying.is_verification, &mut watch.phase) {
            left.push_back((flying.volume, flying.ask.clone()));
        }
        Ok(())
    }

    /// Whether a request has waited for as long as it must, and the nodes had no time to find each other.
    fn may_be_unserved(&self, pool: usize, flying: &Flying) -> bool {
        let now = self.site.world.now();
        let has_waited = now.since(flying.since) >= self.site.deadline();
        has_waited && now.since(self.pools[pool].calm_since) <= self.setup.detection * NOTICE_FACTOR
    }
}
