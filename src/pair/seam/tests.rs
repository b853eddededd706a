//! Every interleaving of both halves' turns and of what happens to the carrier between them, up to a length; and each planted bug of the seam shows in one.

use super::*;
use crate::{
    base::{Epoch, Incarnation, LaneIndex, Lsn, ObjectId, PoolId},
    pair::{
        decide::Word,
        interconnect::{Event, PoolWord},
        wire::{Ack, Request, RequestKind},
    },
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering},
};

const POOL: PoolId = PoolId(7);
const EPOCH: Epoch = Epoch(1);
/// Batches that the user of the near half has for every path, more than fit.
const BATCHES: u64 = 5;
const BATCH_BYTES: usize = 100;
const LIMITS: Limits = Limits { count_max: 2, bytes_max: 150, patience: Duration::from_millis(8) };
/// Long enough for a loss between what was sent and what was heard, with both windows full.
const LENGTH: u32 = 6;

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The near half's reactor has a turn.
    Near,
    /// The far half has one.
    Far,
    /// The carrier loses a path, and has another one.
    Lose,
    /// It loses the last one, and a session begins.
    Restart,
    /// The partner says something.
    Receive,
    /// The carrier has no room any more, or has it again.
    Jam,
}

const STEPS: [Step; 6] = [Step::Near, Step::Far, Step::Lose, Step::Restart, Step::Receive, Step::Jam];

/// What the carrier tells, numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Up,
    PathLost,
    Down,
    Frame(u64),
}

/// What the carrier was given on its present path.
#[derive(Default)]
struct Given {
    batches: Vec<u64>,
    ack: Option<u64>,
    has_word: bool,
    requests: usize,
}

#[derive(Default)]
struct Wire {
    untold: VecDeque<Told>,
    /// All that was ever to be told.
    history: Vec<Told>,
    frames: u64,
    given: Given,
    is_jammed: bool,
    polls: usize,
    lent: u64,
    fault: Option<String>,
}

impl Wire {
    fn happen(&mut self, told: Told) {
        self.untold.push_back(told);
        self.history.push(told);
    }

    fn take_step(&mut self, step: Step) {
        match step {
            Step::Near | Step::Far => {}
            Step::Lose => {
                self.given = Given::default();
                self.happen(Told::PathLost);
            }
            Step::Restart => {
                self.given = Given::default();
                self.happen(Told::Down);
                self.happen(Told::Up);
            }
            Step::Receive => {
                self.frames += 1;
                self.happen(Told::Frame(self.frames));
            }
            Step::Jam => self.is_jammed = !self.is_jammed,
        }
    }

    fn find(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
    }
}

/// A carrier that does what the test says.
struct TestCarrier(Rc<RefCell<Wire>>);

impl Interconnect for TestCarrier {
    fn poll(&mut self, _now: Nanos) -> bool {
        self.0.borrow_mut().polls += 1;
        false
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        let mut wire = self.0.borrow_mut();
        Some(match wire.untold.pop_front()? {
            Told::Up => Event::Up(Partner { incarnation: Incarnation(1), unit_bytes: Vec::new() }),
            Told::PathLost => Event::PathLost,
            Told::Down => Event::Down("lost".to_owned()),
            Told::Frame(number) => {
                wire.lent = number;
                let (start, end) = (Lsn(number), Lsn(number + 1));
                Event::Message(Message::Write { pool: POOL, lane: LaneIndex(0), epoch: EPOCH, start, end, bytes: &[] })
            }
        })
    }

    fn has_room(&self) -> bool {
        !self.0.borrow().is_jammed
    }

    fn send(&mut self, message: Message) {
        let mut wire = self.0.borrow_mut();
        let wire = &mut *wire;
        match message {
            Message::Write { start, .. } => {
                let next = wire.given.batches.last().map_or(0, |last| last + 1);
                if start.0 != next || wire.is_jammed {
                    wire.find(format!("batch {start} where {next} follows, jammed: {}", wire.is_jammed));
                }
                wire.given.batches.push(start.0);
            }
            Message::Mirrored(ack) => {
                if wire.given.ack.is_some_and(|before| before > ack.durable.0) {
                    wire.find(format!("acknowledgement {} comes after a later one", ack.durable));
                }
                wire.given.ack = Some(ack.durable.0);
            }
            Message::Word(_) => wire.given.has_word = true,
            Message::Request { .. } => wire.given.requests += 1,
            other => wire.find(format!("{other:?} was not sent")),
        }
    }

    fn flush(&mut self) {}

    fn paths(&self) -> Paths {
        Paths { up: 1, all: 1, ..Paths::default() }
    }
}

impl Carrier for TestCarrier {
    fn lend(&self) -> Lent {
        let number = u8::try_from(self.0.borrow().lent).expect("few");
        Lent::new(vec![number; BATCH_BYTES])
    }

    fn next_deadline(&self) -> Option<Nanos> {
        Some(Nanos(1))
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Waker for Flag {
    fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Both halves, and a user of the near one as the controller is: after every loss it says everything again.
struct Bench {
    wire: Rc<RefCell<Wire>>,
    near: Near,
    far: Far<TestCarrier>,
    /// Whether each half has a turn before it sleeps: it was woken, or had something to do in its last one.
    is_awake: [bool; 2],
    wakers: [Arc<Flag>; 2],
    heard: Vec<Told>,
    is_up: bool,
    next: u64,
    word_said: bool,
    request_sent: bool,
    frames: u64,
    now: Nanos,
}

impl Bench {
    fn new() -> Self {
        let wakers = [Arc::new(Flag::default()), Arc::new(Flag::default())];
        let (near, far) = seam(LIMITS, wakers[0].clone(), wakers[1].clone());
        let wire = Rc::new(RefCell::new(Wire::default()));
        let far = Far::new(far, TestCarrier(wire.clone()), Nanos(0));
        wire.borrow_mut().happen(Told::Up);
        Self {
            wire,
            near,
            far,
            is_awake: [true; 2],
            wakers,
            heard: Vec::new(),
            is_up: false,
            next: 0,
            word_said: false,
            request_sent: false,
            frames: 0,
            now: Nanos(0),
        }
    }

    fn hear(&mut self) -> bool {
        let mut is_any = false;
        while let Some(event) = self.near.next_event() {
            is_any = true;
            let told = match event {
                Event::Up(_) => Told::Up,
                Event::PathLost => Told::PathLost,
                Event::Down(_) => Told::Down,
                Event::Message(Message::Write { start, bytes, .. }) => {
                    let is_whole = bytes.len() == BATCH_BYTES && bytes.iter().all(|byte| u64::from(*byte) == start.0);
                    if !is_whole {
                        self.wire.borrow_mut().find(format!("frame {start} has other bytes"));
                    }
                    Told::Frame(start.0)
                }
                Event::Message(other) => panic!("{other:?}"),
            };
            self.heard.push(told);
            match told {
                Told::Frame(number) => {
                    self.frames = number;
                    let durable = Lsn(number);
                    let (pool, lane, epoch, expected) = (POOL, LaneIndex(0), EPOCH, durable);
                    self.near.send(Message::Mirrored(Ack { pool, lane, epoch, durable, expected }));
                }
                Told::Up | Told::PathLost | Told::Down => {
                    (self.is_up, self.next) = (told != Told::Down, 0);
                    (self.word_said, self.request_sent, self.frames) = (false, false, 0);
                }
            }
        }
        is_any
    }

    fn near_turn(&mut self) -> bool {
        let mut is_busy = self.near.poll(self.now);
        is_busy |= self.hear();
        if self.is_up && !std::mem::replace(&mut self.word_said, true) {
            let word = PoolWord { pool: POOL, word: Word::Standby, epoch: EPOCH, portion: None, expected: Vec::new() };
            self.near.send(Message::Word(word));
        }
        while self.is_up && self.next < BATCHES && self.near.has_room() {
            let (start, end, bytes) = (Lsn(self.next), Lsn(self.next + 1), Arc::new(vec![0; BATCH_BYTES]));
            self.near.send(Message::Write { pool: POOL, lane: LaneIndex(0), epoch: EPOCH, start, end, bytes });
            self.next += 1;
            is_busy = true;
        }
        if self.is_up && !self.request_sent && self.near.has_room_to_forward() {
            self.request_sent = true;
            let request = Request {
                id: 1,
                volume: ObjectId(1),
                host: None,
                pass: None,
                kind: RequestKind::Flush,
                durable: false,
                may_free: false,
                offset_bytes: 0,
                length_bytes: 0,
                extents_max: 0,
            };
            self.near.send(Message::Request { pool: POOL, epoch: EPOCH, request, bytes: Arc::default() });
        }
        self.near.flush();
        is_busy
    }

    fn turn(&mut self, half: usize) {
        self.now = self.now + Duration::from_micros(1);
        self.wakers[half].0.store(false, Ordering::Relaxed);
        self.is_awake[half] = if half == 0 { self.near_turn() } else { self.far.poll(self.now) };
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Near => self.turn(0),
            Step::Far => self.turn(1),
            // The network wakes whoever polls the carrier.
            event => {
                self.wire.borrow_mut().take_step(event);
                self.is_awake[1] = true;
            }
        }
        self.look()
    }

    /// What holds at any time.
    fn look(&self) -> Result<(), String> {
        let wire = self.wire.borrow();
        if let Some(fault) = &wire.fault {
            return Err(fault.clone());
        }
        if !wire.history.starts_with(&self.heard) {
            return Err(format!("heard {:?}, told {:?}", self.heard, wire.history));
        }
        let crossing = wire.history.len() - wire.untold.len() - self.heard.len();
        // One of each kind that takes the place of the one before, and a request.
        if crossing as u64 > LIMITS.count_max || self.near.late_count() > 3 {
            return Err(format!("{crossing} events on their way, {} messages late", self.near.late_count()));
        }
        Ok(())
    }

    /// Nothing happens any more: whoever is woken has turns, nobody else.
    fn settle(&mut self) -> Result<(), String> {
        self.wire.borrow_mut().is_jammed = false;
        self.is_awake[1] = true;
        for _ in 0..200 {
            let is_due = [0, 1].map(|half| self.is_awake[half] || self.wakers[half].0.load(Ordering::Relaxed));
            if is_due == [false; 2] {
                return self.look_at_end();
            }
            for half in (0..2).filter(|half| is_due[*half]) {
                self.turn(half);
                self.look()?;
            }
        }
        Err("the halves wake each other for ever".to_owned())
    }

    /// What was to be told was heard, and what was to be sent is with the carrier, on the path that is left.
    fn look_at_end(&self) -> Result<(), String> {
        let wire = self.wire.borrow();
        let Given { batches, ack, has_word, requests } = &wire.given;
        let is_acknowledged = self.frames == 0 || *ack == Some(self.frames);
        if self.heard == wire.history
            && batches.len() as u64 == BATCHES
            && *has_word
            && *requests == 1
            && is_acknowledged
            && self.near.paths().up == 1
        {
            return Ok(());
        }
        Err(format!(
            "both halves sleep: heard {} of {}, batches {batches:?}, word {has_word}, {requests} requests, ack {ack:?} of {}",
            self.heard.len(),
            wire.history.len(),
            self.frames
        ))
    }
}

/// What every sequence begins with: nothing; a session in which all is said; one whose carrier is jammed, the seam full, and an acknowledgement late.
const BEGINNINGS: [(bool, &[Step]); 3] = [
    (false, &[]),
    (true, &[]),
    (
        false,
        &[Step::Jam, Step::Far, Step::Near, Step::Receive, Step::Far, Step::Near, Step::Receive, Step::Far, Step::Near],
    ),
];

/// Runs every sequence of steps after every beginning; the first that shows something wrong.
fn explore() -> Result<(), String> {
    let count = STEPS.len();
    for ((is_settled, beginning), code) in
        BEGINNINGS.into_iter().flat_map(|beginning| (0..count.pow(LENGTH)).map(move |code| (beginning, code)))
    {
        let steps: Vec<Step> = (0..LENGTH).map(|place| STEPS[code / count.pow(place) % count]).collect();
        let mut bench = Bench::new();
        let run = |bench: &mut Bench| {
            if is_settled {
                bench.settle()?;
            }
            beginning.iter().chain(&steps).try_for_each(|step| bench.step(*step))?;
            bench.settle()
        };
        run(&mut bench).map_err(|fault| format!("settled: {is_settled}, {beginning:?}, {steps:?}: {fault}"))?;
    }
    Ok(())
}

#[test]
fn no_interleaving_loses_reorders_or_forgets_anything() {
    assert_eq!(explore(), Ok(()));
}

/// A reactor that hangs keeps its partner waiting no longer than the patience: then the far half says nothing any more, and sleeps.
fn stands_still_without_the_near_half() -> Result<(), String> {
    let mut bench = Bench::new();
    bench.settle()?;
    bench.now = bench.now + LIMITS.patience / 2;
    bench.turn(1);
    let polls = bench.wire.borrow().polls;
    bench.now = bench.now + LIMITS.patience;
    bench.turn(1);
    if bench.wire.borrow().polls > polls || bench.far.next_deadline().is_some() {
        return Err("the far half speaks for a near one that has no turns".to_owned());
    }
    // A reactor that only looks at its clock is alive.
    bench.turn(0);
    bench.turn(1);
    if bench.wire.borrow().polls == polls || bench.far.next_deadline().is_none() {
        return Err("the far half does not go on".to_owned());
    }
    Ok(())
}

#[test]
fn the_far_half_does_not_speak_for_a_near_one_that_hangs() {
    assert_eq!(stands_still_without_the_near_half(), Ok(()));
}

#[test]
fn what_is_sent_while_there_is_no_partner_goes_nowhere() {
    let mut bench = Bench::new();
    bench.near.poll(Nanos(1));
    bench.near.send(Message::Ask { pool: POOL, epoch: EPOCH });
    assert_eq!((bench.near.late_count(), bench.near.has_room_to_forward()), (0, false));
    assert_eq!(bench.settle(), Ok(()), "no Ask comes to the carrier");
}

#[cfg(feature = "planted-bugs")]
mod planted {
    use super::*;
    use crate::base::planted;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// Whether a bug shows: by what is looked at, or by an assertion.
    fn shows(bug: &'static str) -> bool {
        planted::choose(bug);
        let found = catch_unwind(AssertUnwindSafe(|| explore().and_then(|()| stands_still_without_the_near_half())));
        planted::choose("");
        !matches!(found, Ok(Ok(())))
    }

    #[test]
    fn every_bug_of_the_seam_shows_in_some_interleaving() {
        for bug in [
            "seam-bound-not-kept",
            "seam-generation-not-compared",
            "seam-late-dropped",
            "seam-late-overtaken",
            "seam-loss-told-last",
            "seam-losses-not-awaited",
            "seam-room-not-said",
            "seam-speaks-for-the-dead",
        ] {
            assert!(shows(bug), "{bug} shows in none");
        }
    }
}
