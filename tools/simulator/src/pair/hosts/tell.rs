//! What comes after a history in which hosts have reserved the volume: two more hosts, one with a path to each node and the other one over any of them. The other one
//! ends the first one's registration again and again, while the pool may go from node to node, and the first one must be told of each time, over each path,
//! once. So whatever the history has left, at whichever reactors the queues are, notices are neither lost nor doubled between two nodes that live.

use super::{History, NAMES, PATIENCE_TURNS, TOLD_THERE, target};
use crate::{
    clients::{Answer, Ask, Refusal, nvme},
    history::{Oracle, Violation},
    model::reservation::Deed,
    pair::found,
    setup::index,
};

/// Their numbers: none of the history's hosts has them.
const LISTENER: u8 = 10;
const ACTOR: u8 = 11;

/// "Reservation preempted", which all registrants are told when registrations are cleared.
const CLEARED: u8 = 3;

/// Turns in which the listener must have been told, and turns after which nothing more comes: a message between the nodes takes some dozens.
const TELLING_TURNS: u64 = 20_000;
const QUIET_TURNS: u64 = 1_000;

/// Both paths of the listener, by node, and the actor's.
type Paths = [nvme::Session; 3];
const TO_ACT: usize = 2;

impl History {
    /// Ends a registration several times, and looks whether its host is told.
    pub(super) fn tell_all(&mut self) -> Result<(), Violation> {
        let actor_at = index(self.prng.below(2));
        let mut paths = [self.open((0, LISTENER))?, self.open((1, LISTENER))?, self.open((actor_at, ACTOR))?];
        for round in 1..=self.prng.between(1, 3) {
            let over = index(self.prng.below(2));
            self.ask(&mut paths, over, Deed::Register(true))?;
            self.ask(&mut paths, TO_ACT, Deed::Register(true))?;
            if self.changes_hands && self.prng.chance(1, 2) {
                self.hand_over();
            }
            self.ask(&mut paths, TO_ACT, Deed::Clear)?;
            for node in [0, 1] {
                let forwards = node == usize::from(self.processes[0].node.is_serving());
                self.hear(&mut paths, node, round)?;
                self.count(TOLD_THERE, forwards);
            }
        }
        self.hear_nothing(&mut paths)
    }

    /// A path of a host to a node.
    fn open(&mut self, (at, number): (usize, u8)) -> Result<nvme::Session, Violation> {
        let reactor = index(self.prng.below(u64::from(self.setup.reactors[at])));
        let in_capsule = self.prng.chance(1, 2);
        let namespace = u32::try_from(2 * self.volume.0 - 1).expect("the first volume");
        let listener = self.processes[at].node.listener(reactor).expect("the node lives");
        let mut session = nvme::Session::connect(listener, target(at).subsystem(), (number, namespace), in_capsule);
        let last = self.figures.turns + PATIENCE_TURNS;
        while !session.is_open() {
            if self.figures.turns > last || session.is_closed() {
                return Err(found(Oracle::Liveness, format!("a host is not let in at {}", NAMES[at])));
            }
            self.turn_with(std::slice::from_mut(&mut session))?;
        }
        Ok(session)
    }

    /// A turn, of these paths too. Returns what was answered there.
    fn turn_with(&mut self, paths: &mut [nvme::Session]) -> Result<Vec<(u64, Answer)>, Violation> {
        self.turn(false)?;
        let mut answers = Vec::new();
        for path in paths {
            path.poll(&mut answers).map_err(|what| found(Oracle::Protocol, what))?;
        }
        Ok(answers)
    }

    /// A command about the reservation to its end; sent again while its path is to blame.
    fn ask(&mut self, paths: &mut Paths, over: usize, deed: Deed) -> Result<(), Violation> {
        let last = self.figures.turns + PATIENCE_TURNS;
        let mut may_be_done = false;
        loop {
            self.next_id += 1;
            let id = self.next_id;
            // A session knows whose the deed is.
            paths[over].send(id, &Ask::Reserve(0, deed));
            let answer = loop {
                if self.figures.turns > last {
                    return Err(found(Oracle::Liveness, format!("{deed:?} is not answered")));
                }
                let answers = self.turn_with(paths)?;
                if let Some((_, answer)) = answers.into_iter().find(|(answered, _)| *answered == id) {
                    break answer;
                }
            };
            self.note(|_| format!("  {deed:?} over path {over}: {answer:?}"));
            match answer {
                Answer::Done => return Ok(()),
                Answer::Refused(Refusal::Unserved) => may_be_done = true,
                Answer::Refused(Refusal::Failed(_) | Refusal::ShuttingDown) => {}
                // Who has cleared registrations has none any more.
                Answer::Refused(Refusal::Reserved) if may_be_done => return Ok(()),
                answer => {
                    return Err(found(Oracle::Reservations, format!("{deed:?} was answered with {answer:?}")));
                }
            }
        }
    }

    /// What the listener is told next over a path; of all zeroes: nothing.
    fn read(&mut self, paths: &mut Paths, path: usize) -> Result<nvme::Notification, Violation> {
        let last = self.figures.turns + PATIENCE_TURNS;
        paths[path].ask_for_notification();
        loop {
            if let Some(notification) = paths[path].take_notification() {
                return Ok(notification);
            }
            if self.figures.turns > last {
                return Err(found(Oracle::Liveness, "a log page is not answered"));
            }
            self.turn_with(paths)?;
        }
    }

    /// The listener is told over a path for the time number `round`.
    fn hear(&mut self, paths: &mut Paths, path: usize, round: u64) -> Result<(), Violation> {
        let last = self.figures.turns + TELLING_TURNS;
        while self.figures.turns <= last {
            let notification = self.read(paths, path)?;
            let nvme::Notification { count, kind, .. } = notification;
            if (count, kind) == (round, CLEARED) {
                return Ok(());
            }
            if count > 0 {
                let what = format!("{notification:?} is told at {}, in round {round}", NAMES[path]);
                return Err(found(Oracle::Reservations, what));
            }
        }
        let what = format!("a host is not told at {} that registrations were cleared", NAMES[path]);
        Err(found(Oracle::Reservations, what))
    }

    /// The listener is told nothing more.
    fn hear_nothing(&mut self, paths: &mut Paths) -> Result<(), Violation> {
        for _ in 0..QUIET_TURNS {
            self.turn_with(paths)?;
        }
        for (path, name) in NAMES.into_iter().enumerate() {
            let notification = self.read(paths, path)?;
            if notification.count > 0 {
                return Err(found(Oracle::Reservations, format!("{notification:?} is told at {name}, for nothing")));
            }
        }
        Ok(())
    }
}
