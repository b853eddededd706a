//! The load loop: issues requests, takes answers, keeps the clock. One thread, one turn of the engine per round.
//!
//! # Life cycle
//!
//! ```text
//! Load --(time over, count reached, Ctrl-C, errors, findings)--> Drain --(all answered)--> Flush --(answered)--> Done
//!   \--(connection lost)--> recover within the limit, unanswered requests are sent once more, or the run ends as Lost
//! ```
//!
//! # Invariants
//!
//! 1. Open loop: request k is due at start + k / rate, whatever happened before, and its latency counts from then. A target that stalls
//!    is charged for every request that would have been sent meanwhile (no coordinated omission).
//! 2. The journal's records are with the kernel before the engine's turn sends what they announce.
//! 3. The flush at the end is inside the clock: the durable rate counts until its answer, the acknowledged rate until the last one before.
//! 4. Nothing is allocated per request.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    engine::{Completion, Engine, Lost, Request, Switch, Wait},
    live::Live,
    measure::Measure,
    proof::{FINDINGS_LIMIT, Proof},
    workload::Choice,
};

/// The longest wait of one turn: bounds how late Ctrl-C and the live line are noticed.
const TURN_LIMIT: Duration = Duration::from_millis(100);
/// Between two attempts to open a lost target again.
const RETRY: Duration = Duration::from_millis(20);
/// How often another request is drawn when the first would overlap one in flight; then the loop waits for an answer.
const REDRAWS: usize = 8;
/// The most pauses that are kept.
const PAUSES_LIMIT: usize = 1000;

/// How a run is paced and when it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) depth: usize,
    pub(crate) warmup: Duration,
    pub(crate) time: Duration,
    /// Ends the run after this many requests; for `None`, time alone does.
    pub(crate) count: Option<u64>,
    /// Requests per second of an open loop; `None` is a closed loop.
    pub(crate) rate: Option<u64>,
    pub(crate) busy: bool,
    /// Errors that are taken before the run ends.
    pub(crate) errors: u64,
    pub(crate) stall: Duration,
    /// How long a lost target is tried again.
    pub(crate) reconnect: Option<Duration>,
    pub(crate) final_flush: bool,
    /// A request that must wait for another is not passed by a later one.
    pub(crate) in_order: bool,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Interrupted,
    /// Too many requests failed.
    Errors,
    /// A read found what may not be there.
    Findings,
    /// The target went away.
    Lost(String),
    /// The journal could not be written.
    Journal(String),
}

/// A time without answers around a reconnection, or a switch to another path.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Pause {
    pub(crate) at_seconds: f64,
    pub(crate) seconds: f64,
    /// The part of it until the loss was noticed.
    pub(crate) detection_seconds: f64,
    pub(crate) sent_again: usize,
}

/// What a run leaves.
pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) measure: Measure,
    /// From the end of the warm-up to the last answer, and to the answer of the final flush.
    pub(crate) acknowledged_in: Duration,
    pub(crate) durable_in: Option<Duration>,
    /// Requests answered, those of the warm-up included.
    pub(crate) answers: u64,
    pub(crate) errors: BTreeMap<i32, u64>,
    pub(crate) pauses: Vec<Pause>,
    /// The longest time without an answer while requests were in flight, warm-up included.
    pub(crate) longest_pause: Duration,
    /// Open loop: requests that were due and never sent.
    pub(crate) backlog: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Load,
    Drain,
    Flush,
    Done,
}

struct Flight {
    choice: Choice,
    intended: Instant,
    version: u64,
    floors: Vec<u64>,
}

/// A loss that no answer has followed yet.
#[derive(Clone, Copy)]
struct Paused {
    /// When the last answer before it came.
    since: Instant,
    noticed: Instant,
    sent_again: usize,
}

/// One run over an engine.
pub(crate) struct Load<'a, E> {
    engine: &'a mut E,
    pace: Pace,
    proof: Option<&'a mut Proof>,
    stop: &'a AtomicBool,
    phase: Phase,
    end: End,
    measure: Measure,
    start: Instant,
    flights: Vec<Flight>,
    free: Vec<usize>,
    done: Vec<Completion>,
    held: Option<Choice>,
    issued: u64,
    changed: bool,
    /// Requests answered, with or without an error, and when the last one was.
    answers: u64,
    answered: Instant,
    /// When an answer came, or the first request was sent after there was none in flight.
    progress: Instant,
    /// The same, whatever reconnections there were meanwhile.
    silent_since: Instant,
    acknowledged: Instant,
    durable: Option<Instant>,
    errors: BTreeMap<i32, u64>,
    pauses: Vec<Pause>,
    /// From a loss until the next answer.
    paused: Option<Paused>,
    longest_pause: Duration,
    /// How many answers had come when the target was last opened again.
    recovered: Option<u64>,
}

impl<'a, E: Engine> Load<'a, E> {
    /// A run that has not begun. `stop` ends it early.
    pub(crate) fn new(engine: &'a mut E, proof: Option<&'a mut Proof>, pace: Pace, stop: &'a AtomicBool) -> Self {
        let start = Instant::now();
        let flight = || Flight { choice: Choice::FLUSH, intended: start, version: 0, floors: Vec::new() };
        Self {
            engine,
            pace,
            proof,
            stop,
            phase: Phase::Load,
            end: End::Finished,
            measure: Measure::new(start + pace.warmup, pace.time),
            start,
            flights: std::iter::repeat_with(flight).take(pace.depth).collect(),
            free: (0..pace.depth).rev().collect(),
            done: Vec::with_capacity(pace.depth),
            held: None,
            issued: 0,
            changed: false,
            answers: 0,
            answered: start,
            progress: start,
            silent_since: start,
            acknowledged: start,
            durable: None,
            errors: BTreeMap::new(),
            pauses: Vec::new(),
            paused: None,
            longest_pause: Duration::ZERO,
            recovered: None,
        }
    }

    /// Runs to the end. `next` gives requests until it gives none.
    pub(crate) fn run(mut self, next: &mut dyn FnMut() -> Option<Choice>, live: &mut Live) -> Outcome {
        let mut now = Instant::now();
        while self.phase != Phase::Done {
            // In this order, what was due before the end is still sent when the end is noticed late.
            self.issue(now, next);
            self.advance(now);
            if let Err(error) = self.proof.as_mut().map_or(Ok(()), |proof| proof.write_out()) {
                self.end = End::Journal(error.to_string());
                break;
            }
            let turned = self.engine.turn(self.wait(now), &mut self.done);
            now = Instant::now();
            self.take_switches(live);
            self.take_answers(now);
            if let Err(lost) = turned.and_then(|()| self.check_stall(now))
                && !self.recover(lost, live)
            {
                break;
            }
            live.load(now, self.start, &self.measure, self.pace);
        }
        self.finish()
    }

    /// Moves to the next phase when it is time.
    fn advance(&mut self, now: Instant) {
        if self.phase == Phase::Load {
            let over = now >= self.planned_end() || self.pace.count.is_some_and(|count| self.issued >= count);
            if self.stop.load(Ordering::Relaxed) {
                self.end_load(End::Interrupted);
            } else if over {
                self.end_load(End::Finished);
            }
        }
        if self.phase == Phase::Drain && self.free.len() == self.pace.depth {
            self.phase = if self.pace.final_flush && self.changed { Phase::Flush } else { Phase::Done };
            if self.phase == Phase::Flush {
                self.start_request(Choice::FLUSH, now, now);
            }
        }
    }

    fn planned_end(&self) -> Instant {
        self.start + self.pace.warmup + self.pace.time
    }

    fn end_load(&mut self, end: End) {
        if self.phase == Phase::Load {
            self.phase = Phase::Drain;
            self.end = end;
        }
    }

    /// When the next request is to be sent: now in a closed loop, by the schedule in an open one.
    fn due(&self, now: Instant) -> Instant {
        let Some(rate) = self.pace.rate else { return now };
        let nanoseconds = u128::from(self.issued) * 1_000_000_000 / u128::from(rate);
        self.start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX / 4))
    }

    /// Sends what is due, as far as there are free slots.
    fn issue(&mut self, now: Instant, next: &mut dyn FnMut() -> Option<Choice>) {
        while self.phase == Phase::Load && !self.free.is_empty() {
            let intended = self.due(now);
            if intended > now
                || intended >= self.planned_end()
                || self.pace.count.is_some_and(|count| self.issued >= count)
            {
                return;
            }
            let Some(choice) = self.choose(next) else { return };
            self.issued += 1;
            self.start_request(choice, intended, now);
        }
    }

    /// The next request that overlaps no change in flight; none when all drawn ones do (the last is kept) or the source is dry.
    fn choose(&mut self, next: &mut dyn FnMut() -> Option<Choice>) -> Option<Choice> {
        for draw in 0..=REDRAWS {
            let Some(choice) = self.held.take().or_else(&mut *next) else {
                self.end_load(End::Finished);
                return None;
            };
            if self.proof.as_ref().is_none_or(|proof| proof.may_start(&choice)) {
                return Some(choice);
            }
            if self.pace.in_order || draw == REDRAWS {
                self.held = Some(choice);
                return None;
            }
        }
        None
    }

    fn start_request(&mut self, choice: Choice, intended: Instant, now: Instant) {
        if self.free.len() == self.pace.depth {
            (self.progress, self.silent_since) = (now, now);
        }
        let slot = self.free.pop().expect("the caller saw a free slot");
        let flight = &mut self.flights[slot];
        flight.choice = choice;
        flight.intended = intended;
        if let Some(proof) = &mut self.proof {
            flight.version = proof.begin(&choice, self.engine.buffer(slot), &mut flight.floors);
        }
        self.changed |= choice.kind.changes();
        let Choice { kind, fua, offset, length } = choice;
        self.engine.submit(Request { slot, kind, fua, offset, length });
    }

    /// How long the next turn may wait.
    fn wait(&self, now: Instant) -> Wait {
        if self.pace.busy {
            return Wait::Never;
        }
        let limit = now + TURN_LIMIT;
        let due = if self.phase == Phase::Load && !self.free.is_empty() && self.held.is_none() {
            self.due(limit)
        } else {
            limit
        };
        Wait::Until(due.min(limit))
    }

    fn take_answers(&mut self, now: Instant) {
        let mut done = std::mem::take(&mut self.done);
        if !done.is_empty() {
            self.end_pause(now);
            self.answers += done.len() as u64;
            self.longest_pause = self.longest_pause.max(now.saturating_duration_since(self.silent_since));
            (self.answered, self.progress, self.silent_since) = (now, now, now);
        }
        for completion in done.drain(..) {
            self.take_answer(completion, now);
        }
        self.done = done;
    }

    fn take_answer(&mut self, Completion { slot, errno }: Completion, now: Instant) {
        let flight = &self.flights[slot];
        let choice = flight.choice;
        if let Some(proof) = &mut self.proof {
            proof.end(&choice, flight.version, errno, (self.engine.buffer(slot), &flight.floors));
            if proof.findings.first.len() >= FINDINGS_LIMIT {
                self.end_load(End::Findings);
            }
        }
        self.free.push(slot);
        let intended = self.flights[slot].intended;
        if errno != 0 {
            *self.errors.entry(errno).or_default() += 1;
            if self.errors.values().sum::<u64>() > self.pace.errors {
                self.end_load(End::Errors);
            }
        } else if intended >= self.start + self.pace.warmup {
            self.measure.record(choice.kind, choice.length, now.saturating_duration_since(intended), now);
        }
        if self.phase == Phase::Flush {
            self.durable = (errno == 0).then_some(now);
            self.phase = Phase::Done;
        } else {
            self.acknowledged = now;
        }
    }

    /// Another path is taken: what was in flight over the lost one pauses.
    fn take_switches(&mut self, live: &mut Live) {
        while let Some(Switch { at, what, again }) = self.engine.switched() {
            live.say(&format!("{what}: {again} requests are sent again"));
            if let Some(proof) = &mut self.proof {
                proof.session();
            }
            if again > 0 {
                self.pause(at, again);
            }
        }
    }

    fn pause(&mut self, noticed: Instant, sent_again: usize) {
        let paused = self.paused.unwrap_or(Paused { since: self.answered, noticed, sent_again });
        self.paused = Some(Paused { sent_again, ..paused });
    }

    fn check_stall(&mut self, now: Instant) -> Result<(), Lost> {
        if self.free.len() < self.pace.depth && now > self.progress + self.pace.stall {
            self.engine.abandon();
            return Err(Lost(format!("no answer for {} s", self.pace.stall.as_secs_f64())));
        }
        Ok(())
    }

    /// Tries to open the lost target again; false when the run is over.
    fn recover(&mut self, lost: Lost, live: &mut Live) -> bool {
        if let Some(proof) = &mut self.proof {
            proof.session();
        }
        let Some(limit) = self.pace.reconnect else {
            self.end = End::Lost(lost.0);
            return false;
        };
        // A server that lets clients in and goes away at once is not asked in a tight loop, nor reported each time.
        let is_repeated = self.recovered.replace(self.answers) == Some(self.answers);
        if is_repeated {
            std::thread::sleep(RETRY);
        } else {
            live.say(&format!("connection lost ({lost}): trying again for {} s", limit.as_secs_f64()));
        }
        let since = Instant::now();
        let mut reason = lost;
        while since.elapsed() < limit && !self.stop.load(Ordering::Relaxed) {
            match self.engine.recover() {
                Ok(again) => {
                    if !is_repeated {
                        let took = since.elapsed().as_secs_f64();
                        live.say(&format!("connected again after {took:.3} s, {again} requests are sent again"));
                    }
                    self.pause(since, again);
                    self.progress = Instant::now();
                    return true;
                }
                Err(lost) => reason = lost,
            }
            std::thread::sleep(RETRY);
        }
        self.end = End::Lost(reason.0);
        false
    }

    fn end_pause(&mut self, now: Instant) {
        let Some(Paused { since, noticed, sent_again }) = self.paused.take() else { return };
        if self.pauses.len() < PAUSES_LIMIT {
            let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
            self.pauses.push(Pause {
                at_seconds: seconds(self.start, since),
                seconds: seconds(since, now),
                detection_seconds: seconds(since, noticed),
                sent_again,
            });
        }
    }

    fn finish(mut self) -> Outcome {
        if let Some(Err(error)) = self.proof.as_mut().map(|proof| proof.write_out()) {
            self.end = End::Journal(error.to_string());
        }
        let begin = self.start + self.pace.warmup;
        let planned = self.planned_end().min(self.answered);
        let backlog = self.pace.rate.map_or(0, |rate| {
            let due = planned.saturating_duration_since(self.start).as_nanos() * u128::from(rate) / 1_000_000_000;
            u64::try_from(due).unwrap_or(u64::MAX).min(self.pace.count.unwrap_or(u64::MAX)).saturating_sub(self.issued)
        });
        self.measure.finish();
        Outcome {
            end: self.end,
            measure: self.measure,
            acknowledged_in: self.acknowledged.saturating_duration_since(begin),
            durable_in: self.durable.map(|durable| durable.saturating_duration_since(begin)),
            answers: self.answers,
            errors: self.errors,
            pauses: self.pauses,
            longest_pause: self.longest_pause,
            backlog,
        }
    }
}
