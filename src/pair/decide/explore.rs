//! Every history of the model: safety in every state; and from every state a way back to a pool that is served, once faults have healed.

use super::{
    Action, Beat, Command, Fence, Link, Mirror, Open, Replies, View, Word, decide,
    flaw::{Flaw, Setting},
    model::{Event, Process, Seen, Stream, World},
};
use crate::base::FixedMap;

/// The worlds that can be reached, in the order in which they were found, with the way to each.
struct Reached {
    worlds: Vec<World>,
    /// Position of the world before, and what happened there.
    ways: Vec<Option<(usize, Event)>>,
}

impl Reached {
    /// What happened on the way to world `position`, for people.
    fn history(&self, mut position: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((before, event)) = self.ways[position] {
            events.push(event);
            position = before;
        }
        events.reverse();
        events
    }

    /// Everything that can be reached from a new pool; or the shortest history to what must never be.
    fn explore(flaw: Flaw) -> Result<Self, String> {
        let mut setting = Setting::new(flaw);
        let mut found: FixedMap<World, ()> = FixedMap::default();
        let mut reached = Self { worlds: vec![World::new()], ways: vec![None] };
        found.insert(World::new(), ());
        let mut position = 0;
        while position < reached.worlds.len() {
            let world = reached.worlds[position];
            for event in world.events(&mut setting) {
                let after = world.after(event, flaw).map_err(|broken| {
                    let history = reached.history(position);
                    format!("{broken}, after {history:#?} and {event:?}")
                })?;
                if found.insert(after, ()).is_none() {
                    reached.worlds.push(after);
                    reached.ways.push(Some((position, event)));
                }
            }
            position += 1;
        }
        Ok(reached)
    }
}

/// Which processes run from now on, without further faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Healed {
    Both,
    /// Only this one; the other is dead and can be fenced.
    Only(usize),
}

/// The world in which faults end. A swap that is on its way arrives first, or never.
fn heal(mut world: World, healed: Healed, swaps_arrive: bool) -> World {
    for n in 0..2 {
        if world.nodes[n].on_its_way.is_some() && swaps_arrive {
            world = world.after(Event::Arrives(n), Flaw::None).expect("safety was shown");
        }
        world.nodes[n].on_its_way = None;
    }
    for n in 0..2 {
        let runs = healed == Healed::Both || healed == Healed::Only(n);
        // What one that is left alone has given up comes back with a command, or a restart.
        let is_passive = healed != Healed::Both && world.nodes[n].open == Open::Yielded && world.register.owner != n;
        let must_end = world.nodes[n].open == Open::Failed || is_passive || !runs;
        if must_end && world.nodes[n].process == Process::Running {
            world = world.after(Event::Crash(n), Flaw::None).expect("safety was shown");
        }
        if runs && world.nodes[n].process == Process::Dead {
            world = world.after(Event::Restart(n), Flaw::None).expect("safety was shown");
        }
    }
    world
}

/// What node `n` sees when nothing hinders it.
fn sees(world: &World, n: usize, healed: Healed, command: Command) -> View {
    let portion = world.portions(n)[0];
    let view = world.view(n, portion, command);
    let said = world.word(1 - n, Command::None);
    let follows = said == Word::Mirroring && world.nodes[n].stream != Stream::Caught;
    match healed {
        Healed::Both => View { word: if follows { Word::Standby } else { said }, ..view },
        Healed::Only(_) => View { link: Link::Cut, beat: Beat::Silent, fence: Fence::Confirmed, ..view },
    }
}

/// The command that is in force: a pool that is served away goes home, as the giveback delay has passed.
fn command(world: &World, n: usize, healed: Healed) -> Command {
    let is_away = n == 1 && world.register.owner == 1 && healed == Healed::Both;
    if is_away { Command::Giveback } else { Command::None }
}

/// Each node that runs reads the register, decides, acts, and what it has begun ends.
fn round(mut world: World, healed: Healed, forced: Option<usize>) -> World {
    let go = |world: World, event| world.after(event, Flaw::None).expect("safety was shown");
    for n in 0..2 {
        if world.nodes[n].process == Process::Dead {
            continue;
        }
        if world.nodes[n].seen != Seen::Fresh {
            let was_other = world.nodes[n].open == Open::Yielded && !world.rests(n);
            world = go(world, Event::Read(n));
            if was_other && world.rests(n) {
                // The partner has handed it over.
                world = go(world, Event::TriesAgain(n));
            }
        }
        let command = if forced == Some(n) { Command::Forced } else { command(&world, n, healed) };
        let action = decide(&sees(&world, n, healed, command)).action();
        let idle = [Action::Rest, Action::Wait, Action::Refuse, Action::Probe, Action::Fence, Action::Ask];
        if !idle.contains(&action) {
            world = go(world, Event::Act(n, action));
        }
        match world.nodes[n].open {
            Open::Opening => world = go(world, Event::Opened(n)),
            Open::Draining => world = go(world, Event::Drained(n)),
            _ => {}
        }
    }
    world
}

/// Rounds after which a pair must have come to rest. The longest way: give up, take over, discard, open, resync in three, drain, give back, claim, open, attach.
const ROUNDS_MAX: usize = 16;

/// The world in which nothing changes any more, and the number of rounds up to there.
fn settle(mut world: World, healed: Healed, forced: Option<usize>) -> (World, usize) {
    for rounds in 0..=ROUNDS_MAX {
        let next = round(world, healed, forced);
        let resting = (0..2).find(|&n| next == world && world.rests(n));
        world = match resting {
            // Nobody has taken over what it has given up.
            Some(n) => world.after(Event::TriesAgain(n), Flaw::None).expect("safety was shown"),
            None if next == world => return (world, rounds),
            None => next,
        };
    }
    panic!("no rest within {ROUNDS_MAX} rounds: {world:#?}")
}

fn is_served_in_sync(world: &World) -> bool {
    let home = &world.nodes[0];
    // Who has given the pool up mirrors it as well; people know when that may end.
    let rests = |n| {
        let decision = decide(&sees(world, n, Healed::Both, Command::None));
        decision.is_final() || decision.name() == "standby, given up"
    };
    let both_rest = (0..2).all(rests);
    let mirrored = home.stream == Stream::Caught && home.replies == Replies::Mirrored && world.nodes[1].receives;
    world.register.owner == 0 && home.open == Open::Serving && mirrored && both_rest
}

/// The owner's portion is the one that the register names, and can be read.
fn owner_has_all(world: &World) -> bool {
    world.register.owner_portion_is_there && world.nodes[world.register.owner].readable
}

/// The same of the other node's.
fn mirror_has_all(world: &World) -> bool {
    world.register.mirror == Mirror::Named && world.nodes[1 - world.register.owner].readable
}

/// No portion that holds everything answered is left at the node that the register says has it.
fn is_lost(world: &World) -> bool {
    !owner_has_all(world) && !mirror_has_all(world)
}

/// Every world that healing can begin with.
fn healed_worlds(reached: &Reached, healed: Healed) -> Vec<World> {
    let mut worlds: FixedMap<World, ()> = FixedMap::default();
    for world in &reached.worlds {
        for arrives in [false, true] {
            worlds.insert(heal(*world, healed, arrives), ());
        }
    }
    worlds.into_keys().collect()
}

#[test]
fn nothing_answered_is_lost_and_faults_that_end_leave_a_pool_that_is_served() {
    let reached = Reached::explore(Flaw::None).unwrap_or_else(|broken| panic!("{broken}"));
    println!("{} worlds", reached.worlds.len());

    let mut longest = 0;
    for world in healed_worlds(&reached, Healed::Both) {
        let (rest, rounds) = settle(world, Healed::Both, None);
        longest = longest.max(rounds);
        if is_served_in_sync(&rest) {
            continue;
        }
        assert!(is_lost(&rest), "from {world:#?} to {rest:#?}");
        for n in 0..2 {
            let view = sees(&rest, n, Healed::Both, Command::None);
            assert!(!decide(&view).is_final(), "a loss is not final");
        }
        let (forced, _) = settle(rest, Healed::Both, Some(0));
        assert!(is_served_in_sync(&forced), "an operator can give the lost changes up: from {rest:#?} to {forced:#?}");
    }
    println!("at rest within {longest} rounds");

    for survivor in 0..2 {
        let (mut served, mut refused) = (0, 0);
        for world in healed_worlds(&reached, Healed::Only(survivor)) {
            let register = world.register;
            let owns = register.owner == survivor && owner_has_all(&world);
            let can_take = register.owner != survivor && mirror_has_all(&world);
            let (rest, _) = settle(world, Healed::Only(survivor), None);
            let serves = rest.nodes[survivor].open == Open::Serving && rest.nodes[survivor].replies == Replies::Alone;
            assert_eq!(serves, owns || can_take, "from {world:#?} to {rest:#?}");
            if serves {
                served += 1;
            } else {
                refused += 1;
                let (forced, _) = settle(rest, Healed::Only(survivor), Some(survivor));
                assert_eq!(forced.nodes[survivor].open, Open::Serving, "forced, from {world:#?}");
            }
        }
        println!("node {survivor} alone: serves in {served} cases, refuses in {refused}");
        assert!(served > 0 && refused > 0);
    }
}

#[test]
fn the_model_notices_every_flaw() {
    let unnoticed: Vec<Flaw> = Flaw::ALL.into_iter().filter(|&flaw| Reached::explore(flaw).is_ok()).collect();
    assert_eq!(unnoticed, []);
}
