//! The pair for people.

use super::{
    Controller,
    act::command_patience,
    side::{Known, Side},
};
use crate::{
    format::register::{MirrorState, Register},
    node::{
        admin::{PairPoolStatus, PairStatus},
        pools::PoolSlot,
    },
    pair::{
        decide::{Action, Decision, Names, Open},
        interconnect::Interconnect,
    },
};
use twinlog_device::LogMemory;

impl<L: LogMemory> Controller<L> {
    /// How the pair is. The engines' part, and where the way runs, is added by whoever has them.
    #[must_use]
    pub fn status(&self, way: &dyn Interconnect) -> PairStatus {
        let paths = way.paths();
        PairStatus {
            partner: self.partner.clone(),
            link: self.link().words().to_owned(),
            paths_up: paths.up as u64,
            paths: paths.all as u64,
            round_trip_ns: u64::try_from(paths.round_trip.as_nanos()).unwrap_or(u64::MAX),
            placement: String::new(),
            refusal: way.refusal().unwrap_or_default(),
            pools: (0..self.sides.len()).map(|index| self.pool_status(index)).collect(),
            offline_there: Vec::new(),
            taken_over: None,
        }
    }

    pub(super) fn names(&self, index: usize) -> Names<'_> {
        Names { me: &self.name, partner: &self.partner, pool: &self.sides[index].name }
    }

    fn pool_status(&self, index: usize) -> PairPoolStatus {
        let side = &self.sides[index];
        let names = self.names(index);
        let mut status = PairPoolStatus {
            name: side.name.clone(),
            open: side.open.words().to_owned(),
            takeovers: side.takeovers,
            unmirrored_ns: side.unmirrored_ns,
            fence: side.fence_said.clone(),
            command: self.armed(side),
            mirror_lag_bytes: side.mirror.waiting_bytes(),
            mirrored: side.mirror.figures().status(),
            ..PairPoolStatus::default()
        };
        if let Known::Register(register) = &side.known {
            let owner = if register.owner == side.me() { &self.name } else { &self.partner };
            status.owner.clone_from(owner);
            status.epoch = register.epoch.0;
            status.kept = register.kept;
            status.mirror = match register.mirror {
                MirrorState::Stale => "stale",
                MirrorState::InSync(_) => "in sync",
            }
            .to_owned();
            status.if_dies = self.if_dies(index, register);
        }
        if let Some((decision, _)) = side.decided {
            status.row = decision.name().to_owned();
            status.action = decision.action().words().to_owned();
            // A pool that serves away from home is as it should be only until it is given back.
            status.is_final = decision.is_final();
            status.is_resync = matches!(decision.action(), Action::Resync);
            status.is_away = side.open == Open::Serving && side.slot == PoolSlot::Partner;
            status.why = decision.why(&names);
            status.deadline = decision.deadline().words().to_owned();
            status.next = decision.next(&names);
        }
        if let Some(trouble) = side.open_trouble().or(side.trouble.as_deref()).or(side.portion.failure()) {
            status.trouble = trouble.to_owned();
        }
        match &side.known {
            Known::Unreadable(reason) => status.trouble.clone_from(reason),
            Known::Outdated(found) => {
                let found = found.map_or("none".to_owned(), |register| format!("one of epoch {}", register.epoch));
                let seen = side.epoch_seen;
                status.trouble = format!("the arbiter has {found}, and the pool was served at epoch {seen}");
            }
            Known::Absent | Known::Register(_) => {}
        }
        status
    }

    /// The takeover that waits for its time, and how long it still does; empty: there is none.
    fn armed(&self, side: &Side<L>) -> String {
        if !side.is_armed() {
            return String::new();
        }
        let left = command_patience(&self.timing).saturating_sub(self.now.since(side.command_at));
        format!("{}, void in {} s", side.command.words(), left.as_secs() + 1)
    }

    /// What would become of a pool if each node died now, this one first.
    fn if_dies(&self, index: usize, register: &Register) -> [String; 2] {
        let side = &self.sides[index];
        let is_owner = register.owner == side.me();
        let (owner, other) = if is_owner { (&self.name, &self.partner) } else { (&self.partner, &self.name) };
        let is_followed = match register.mirror {
            MirrorState::Stale => false,
            MirrorState::InSync(named) if is_owner => side.partner_portion().is_none_or(|theirs| theirs == named),
            MirrorState::InSync(named) => side.portion.id() == Some(named),
        };
        let is_tried = |decision: &Decision| decision.action() == Action::Fence || decision.name() == "fence failed";
        let has_given_up = if is_owner { side.is_given_up() } else { side.open == Open::Yielded };
        let owner_dies = if !is_followed {
            format!("not served until {owner} is back: only its log has every answered change")
        } else if has_given_up {
            format!("not served until {owner} is back: {other}, which could not open it, takes it over by command only")
        } else if side.decided.is_some_and(|(decision, _)| is_tried(&decision)) {
            format!("{other} takes over only when a fence can tell that {owner} does not serve it")
        } else {
            format!("{other} takes over; nothing that was answered is lost")
        };
        let other_dies = if is_followed { format!("{owner} serves on, alone") } else { format!("{owner} serves on") };
        if is_owner { [owner_dies, other_dies] } else { [other_dies, owner_dies] }
    }
}
