//! One path: a controller of the subsystem with its queues, its health, and how it leads to the namespace.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    controller::{Access, Facts, LOG_ACCESS, Opened, access_log, access_of},
    link::{Link, LinkError, Reply},
    queue::{Outcomes, Queue, Shape},
    table::{Place, Table},
    wire::{Command, Status, opcode},
};
use crate::{engine::Lost, stream::Stream};

/// How long a path is left alone that has refused a command without saying for how long.
const REST: Duration = Duration::from_millis(100);

/// Commands of the admin queue in flight, by their ids.
#[derive(Debug, Default)]
struct Pending {
    keep_alive: Option<u16>,
    event: Option<u16>,
    access: Option<u16>,
    /// There was a reason to read the access log while it was being read.
    access_again: bool,
}

/// An open path.
pub(super) struct Path {
    admin: Link<Stream>,
    pub(super) queues: Vec<Queue>,
    pub(super) facts: Facts,
    pending: Pending,
    /// When something came last, and when a keep-alive was sent last.
    alive_at: Instant,
    asked_at: Instant,
    rests_until: Option<Instant>,
}

impl Path {
    /// The path that was opened, at place `seat` of its host.
    pub(super) fn new(opened: Opened<Stream>, seat: usize, now: Instant) -> io::Result<Self> {
        let Opened { admin, queues, facts } = opened;
        admin.stream().set_nonblocking()?;
        let shape = Shape {
            depth: facts.depth,
            in_capsule: facts.in_capsule,
            namespace: facts.namespace,
            block_bytes: facts.geometry.block_bytes,
        };
        let queue = |(number, stream)| Queue::new(stream, Place { seat, queue: number }, shape);
        let queues = queues.into_iter().enumerate().map(queue).collect::<io::Result<_>>()?;
        let pending = Pending::default();
        let mut path = Self { admin, queues, facts, pending, alive_at: now, asked_at: now, rests_until: None };
        if path.facts.has_events {
            path.ask_for_event();
            // What changed between the first look and the request has no event.
            path.ask_for_access();
        }
        Ok(path)
    }

    /// The admin queue's link, to be waited for.
    pub(super) fn admin(&self) -> &Link<Stream> {
        &self.admin
    }

    /// Whether commands can go this way now.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.facts.access != Access::Closed && self.rests_until.is_none_or(|until| until <= now)
    }

    /// The queue for a slot's command, if one has room: the slot's own, or else any.
    pub(super) fn queue_for(&mut self, slot: usize) -> Option<&mut Queue> {
        let count = self.queues.len();
        let number = (0..count).map(|step| (slot + step) % count).find(|number| self.queues[*number].has_room())?;
        self.queues.get_mut(number)
    }

    /// The queues that have commands without an answer, as bits.
    pub(super) fn busy(&self) -> u64 {
        self.queues.iter().rev().fold(0, |bits, queue| bits << 1 | u64::from(queue.in_flight() > 0))
    }

    /// Sends on every queue, and receives on those whose bit is in `ready`.
    pub(super) fn exchange(
        &mut self,
        ready: u64,
        now: Instant,
        table: &mut Table,
        outcomes: &mut Outcomes<'_>,
    ) -> Result<(), Lost> {
        let mut result = Ok(());
        for (number, queue) in self.queues.iter_mut().enumerate() {
            let sent = queue.send(table);
            if sent.is_ok() && ready & 1 << number == 0 {
                continue;
            }
            // What the target answered before it went away still counts.
            match queue.receive(table, outcomes) {
                Ok(true) => self.alive_at = now,
                Ok(false) => {}
                Err(lost) => result = Err(lost),
            }
            result = result.and(sent);
        }
        result
    }

    /// Serves the admin queue: answers, keep alive. Lost when the target is silent for `keep_alive`, unless that is zero.
    pub(super) fn tend(&mut self, now: Instant, keep_alive: Duration) -> Result<(), Lost> {
        let lost = |error: LinkError| Lost(error.to_string());
        if self.admin.pump().map_err(lost)? {
            self.alive_at = now;
        }
        while let Some(reply) = self.admin.take() {
            self.take(&reply, now);
        }
        if !keep_alive.is_zero() {
            let is_due = now > self.due(keep_alive);
            match self.pending.keep_alive {
                // All that has come was taken before: what is late is late at the other side.
                Some(_) if is_due => return Err(Lost(format!("it is silent for {} s", keep_alive.as_secs_f64()))),
                None if is_due => {
                    self.asked_at = now;
                    self.pending.keep_alive = Some(self.admin.post(Command::new(opcode::KEEP_ALIVE, 0), 0, &[]));
                }
                _ => {}
            }
        }
        // The answer may be there as soon as the question is sent.
        if self.admin.wants_to_send() && self.admin.pump().map_err(lost)? {
            self.alive_at = now;
        }
        Ok(())
    }

    /// When the target is to be asked for a sign of life, or has owed one for too long: for half of `keep_alive` since it was asked, and all of it since it gave one.
    fn due(&self, keep_alive: Duration) -> Instant {
        let asked = self.asked_at + keep_alive / 2;
        if self.pending.keep_alive.is_some() { asked.max(self.alive_at + keep_alive) } else { asked }
    }

    /// An answer of the admin queue.
    fn take(&mut self, Reply { answer, data }: &Reply, now: Instant) {
        let id = Some(answer.id);
        if self.pending.keep_alive == id {
            self.pending.keep_alive = None;
        } else if self.pending.access == id {
            self.pending.access = None;
            if answer.status.is_success() {
                self.facts.access = access_of(data, self.facts.group);
            } else {
                self.rests_until = Some(now + REST);
            }
            if std::mem::take(&mut self.pending.access_again) {
                self.ask_for_access();
            }
        } else if self.pending.event == id {
            self.pending.event = None;
            if answer.status.is_success() {
                self.ask_for_event();
                let [_, _, page, ..] = answer.result.to_le_bytes();
                if page == LOG_ACCESS {
                    self.ask_for_access();
                }
            }
        }
    }

    /// A command was refused because of the path.
    pub(super) fn refuse(&mut self, status: Status, now: Instant) {
        if !status.is_path_error() {
            return;
        }
        if status.is_access_error() && self.facts.group != 0 {
            self.facts.access = Access::Closed;
            self.ask_for_access();
        } else {
            self.rests_until = Some(now + REST);
        }
    }

    fn ask_for_event(&mut self) {
        self.pending.event = Some(self.admin.post(Command::new(opcode::EVENT_REQUEST, 0), 0, &[]));
    }

    /// Reads the access log; once more where that is under way, because the answer may be older than the reason to ask.
    fn ask_for_access(&mut self) {
        if self.pending.access.is_some() {
            self.pending.access_again = true;
        } else if self.facts.group != 0 {
            self.pending.access = Some(self.admin.post(access_log(&self.facts), self.facts.access_bytes, &[]));
        }
    }
}
