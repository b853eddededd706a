//! One pool of the pair, as this node sees it: everything that a decision depends on, and what is under way.

use super::{Timing, act::command_patience, portion::LocalPortion, session::MirrorSession};
use crate::{
    base::{Epoch, Incarnation, PoolId, PortionId, planted},
    changelog::PortionRole,
    format::register::{Register, Side as PoolSide},
    node::{admin::AdminReply, pools::PoolSlot},
    pair::{
        decide::{
            self, Action, Command, Decision, Fence, Link, Mirror, Open, Owner, Place, Portion, Replies, View, Word,
            decide,
        },
        interconnect::PoolWord,
        ownership::Reader,
    },
};
use crossbeam_channel::Sender;
use twinlog_device::{LogMemory, Nanos};

/// A pool of the pair, as the node finds it at its start.
pub struct PairPool<L: LogMemory> {
    /// Its id.
    pub pool: PoolId,
    /// Its name.
    pub name: String,
    /// Its lanes.
    pub lane_count: u16,
    /// The epoch of its newest superblock.
    pub epoch_min: Epoch,
    /// This node's portion of its log.
    pub portion: LocalPortion<L>,
}

/// The epoch of a pool that no pair has served: that of its first superblock.
const EPOCH_UNSERVED: Epoch = Epoch(1);

/// What the arbiter has said of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing that could be read, for this reason.
    Unreadable(String),
    /// There is no register.
    Absent,
    /// This, or none, although more is known of the pool.
    Outdated(Option<Register>),
    /// This.
    Register(Register),
}

/// A change of the register that is at the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swap {
    Claim,
    TakeOver,
    GoStale,
    GoInSync,
    HandOver,
}

/// One pool.
pub(super) struct Side<L: LogMemory> {
    pub(super) slot: PoolSlot,
    pub(super) pool: PoolId,
    pub(super) name: String,
    pub(super) known: Known,
    /// The epoch of the last change that this process made as the owner.
    pub(super) held: Option<Epoch>,
    pub(super) swap: Option<Swap>,
    /// What the register was asked to become, while a change is at the arbiter or nobody knows how it ended.
    pub(super) asked: Option<(Swap, Register)>,
    /// Whether the register is being read.
    pub(super) is_reading: bool,
    pub(super) portion: LocalPortion<L>,
    /// Whether it may hold records that this node made as an owner whose time is over.
    pub(super) has_own_records: bool,
    pub(super) open: Open,
    /// An opening that has failed is not tried again before; nor is what was given up claimed again.
    pub(super) open_rests_until: Nanos,
    /// Openings that have failed since one succeeded, and why the last one did.
    pub(super) openings_failed: u32,
    pub(super) open_failure: String,
    /// The partner's life, as it was recognised last.
    pub(super) partner_life: Option<Incarnation>,
    /// The partner's life that could not serve the pool when this node took it over.
    pub(super) given_up_by: Option<Incarnation>,
    /// The same, while the takeover is at the arbiter.
    pub(super) yielding: Option<Incarnation>,
    /// Whether the engine was told to close.
    pub(super) is_closing: bool,
    pub(super) replies: Replies,
    pub(super) fence: (Epoch, Fence),
    /// When that was heard.
    pub(super) fence_at: Nanos,
    /// What the fences that were tried last have found, for people.
    pub(super) fence_said: String,
    pub(super) command: Command,
    /// When it was given, or could last be waited for: see [`Side::lapse_command`].
    pub(super) command_at: Nanos,
    /// Who waits for the command's end.
    pub(super) caller: Option<Sender<AdminReply>>,
    /// Unit of stores of the partner's log memory, as its hello said; zero before there was one.
    pub(super) partner_unit_bytes: u32,
    /// What the partner said last, since the interconnect is up.
    pub(super) heard: Option<PoolWord>,
    /// Since when the partner has said nothing at this node's epoch.
    pub(super) unheard_since: Option<Nanos>,
    /// The partner's mirror, while this node owns the pool.
    pub(super) mirror: MirrorSession,
    /// Whether the partner knows of a newer register.
    pub(super) wants_read: bool,
    /// The highest epoch that is known of the pool: of its superblock when the node started, or of a register since.
    pub(super) epoch_seen: Epoch,
    /// The lease began anew after it had ended, and what this process held when it ended has not been claimed again.
    pub(super) is_lease_over: bool,
    /// The partner has taken the devices' reservations away, since the pool was opened: it has not failed, it is another's.
    pub(super) is_fenced: bool,
    /// What the node does with the pool after its engine has closed.
    pub(super) after_close: Open,
    /// Since when it is counted as answering alone.
    pub(super) alone_since: Nanos,
    pub(super) decided: Option<(Decision, Nanos)>,
    /// The view that was decided upon last: what comes of the same one is the same.
    considered: Option<(View, Decision)>,
    /// When what was decided was last begun.
    pub(super) begun_at: Option<Nanos>,
    /// What went wrong last, for people.
    pub(super) trouble: Option<String>,
    pub(super) takeovers: u64,
    pub(super) unmirrored_ns: u64,
    /// What was said to the partner last.
    pub(super) said: Option<PoolWord>,
}

impl<L: LogMemory> Side<L> {
    pub(super) fn new(slot: PoolSlot, pool: PairPool<L>) -> Self {
        let PairPool { pool, name, lane_count, epoch_min, portion } = pool;
        Self {
            slot,
            pool,
            name,
            known: Known::Unreadable("it was not asked yet".to_owned()),
            held: None,
            swap: None,
            asked: None,
            is_reading: false,
            portion,
            // Nobody knows what an earlier life left.
            has_own_records: true,
            open: Open::Closed,
            open_rests_until: Nanos(0),
            openings_failed: 0,
            open_failure: String::new(),
            partner_life: None,
            given_up_by: None,
            yielding: None,
            is_closing: false,
            replies: Replies::Alone,
            fence: (Epoch(0), Fence::NotTried),
            fence_at: Nanos(0),
            fence_said: String::new(),
            command: Command::None,
            command_at: Nanos(0),
            caller: None,
            partner_unit_bytes: 0,
            heard: None,
            unheard_since: None,
            mirror: MirrorSession::new(lane_count),
            wants_read: false,
            epoch_seen: epoch_min,
            is_lease_over: false,
            is_fenced: false,
            after_close: Open::Closed,
            alone_since: Nanos(0),
            decided: None,
            considered: None,
            begun_at: None,
            trouble: None,
            takeovers: 0,
            unmirrored_ns: 0,
            said: None,
        }
    }

    /// Which side of the pool this node is.
    pub(super) fn me(&self) -> PoolSide {
        match self.slot {
            PoolSlot::Home => PoolSide::Home,
            PoolSlot::Partner => PoolSide::Away,
        }
    }

    /// What this node's portion is formatted as.
    pub(super) fn role(&self) -> PortionRole {
        match self.slot {
            PoolSlot::Home => PortionRole::Own,
            PoolSlot::Partner => PortionRole::Mirror,
        }
    }

    pub(super) fn register(&self) -> Option<&Register> {
        match &self.known {
            Known::Register(register) => Some(register),
            Known::Unreadable(_) | Known::Absent | Known::Outdated(_) => None,
        }
    }

    /// What is to be believed of what the arbiter has. An epoch never falls: a register below what this node has seen, or none of a pool that a pair has served,
    /// is of another time (rule R4).
    pub(super) fn believe(&mut self, found: Option<Register>) -> Known {
        match found {
            Some(register) if register.epoch < self.epoch_seen => Known::Outdated(found),
            None if self.epoch_seen > EPOCH_UNSERVED => Known::Outdated(None),
            None => Known::Absent,
            Some(register) => {
                self.epoch_seen = register.epoch;
                Known::Register(register)
            }
        }
    }

    /// The epoch in force, as far as this node knows; zero: it does not. Before there is a register it is that of the superblock.
    pub(super) fn epoch(&self) -> Epoch {
        match &self.known {
            Known::Register(register) => register.epoch,
            // Both nodes read the same.
            Known::Outdated(Some(register)) => register.epoch,
            Known::Absent | Known::Outdated(None) => self.epoch_seen,
            Known::Unreadable(_) => Epoch(0),
        }
    }

    pub(super) fn partner_portion(&self) -> Option<PortionId> {
        // This node's own portion is nobody else's, whatever a partner says.
        let portion = self.heard.as_ref().and_then(|heard| heard.portion);
        portion.filter(|portion| Some(*portion) != self.portion.id())
    }

    /// Whether the partner's portion follows this node's lanes, and replies wait for it.
    fn is_followed(&self) -> bool {
        self.mirror.is_attached && self.replies == Replies::Mirrored
    }

    /// What the partner's word counts for here.
    fn word(&self) -> Word {
        match &self.heard {
            None => Word::Unknown,
            Some(_) if self.mirror.is_unusable() => Word::Leaving,
            // Its portion follows something; whether that is what this node's lanes hand out is known once they have gone on where it is.
            Some(heard) if heard.epoch == self.epoch() && heard.word == Word::Mirroring && !self.is_followed() => {
                Word::Standby
            }
            Some(heard) if heard.epoch == self.epoch() || planted::is("word-epoch-not-compared") => heard.word,
            Some(_) => Word::Unknown,
        }
    }

    /// What is known of the fence at this epoch.
    fn fence(&self) -> Fence {
        let is_looked_at = self.held.is_some() && self.fence.1 == Fence::Held;
        if planted::is("fence-not-awaited") || is_looked_at && planted::is("stale-while-the-lock-is-held") {
            Fence::Confirmed
        } else if self.fence.0 == self.epoch() || planted::is("fence-epoch-not-compared") {
            self.fence.1
        } else {
            Fence::NotTried
        }
    }

    /// Whose the pool is, and what the logs count for.
    fn standing(&self) -> (Owner, Mirror, Portion) {
        let reader = Reader {
            me: self.me(),
            held: if planted::is("open-without-claim") { Some(self.epoch()) } else { self.held },
            portion: self.portion.id(),
            has_own_records: self.has_own_records && !planted::is("void-log-kept"),
            partner_portion: self.partner_portion(),
        };
        match &self.known {
            Known::Unreadable(_) => (Owner::Unreadable, Mirror::Stale, self.usable()),
            Known::Absent => (Owner::Absent, Mirror::Stale, self.usable()),
            Known::Outdated(_) => (Owner::Outdated, Mirror::Stale, self.usable()),
            Known::Register(register) => reader.read(register),
        }
    }

    /// The word that this node says to its partner.
    pub(super) fn own_word(&self) -> Word {
        let (owner, _, portion) = self.standing();
        decide::own_word((self.open, owner, portion), self.portion.is_mirroring())
    }

    /// Everything that a decision depends on. `link` is that of the interconnect, `beat` and `lease` are the node's.
    pub(super) fn view(&self, link: Link, beat: decide::Beat, lease: decide::Lease) -> View {
        let (owner, mirror, portion) = self.standing();
        let mirror =
            if planted::is("takeover-while-stale") && owner == Owner::Partner { Mirror::Named } else { mirror };
        View {
            place: if self.slot == PoolSlot::Home { Place::Home } else { Place::Away },
            owner,
            mirror,
            open: self.open,
            replies: self.replies,
            link,
            word: self.word(),
            beat,
            fence: self.fence(),
            portion,
            command: match self.command {
                Command::None if self.register().is_some_and(|register| register.kept) => Command::Keep,
                Command::None if self.is_given_up() => Command::Keep,
                command => command,
            },
            lease: if self.is_lease_over { decide::Lease::Ended } else { lease },
        }
    }

    /// What to do about a view.
    pub(super) fn decide(&mut self, view: &View) -> Decision {
        match self.considered {
            Some((before, decision)) if before == *view => decision,
            _ => {
                let decision = decide(view);
                self.considered = Some((*view, decision));
                decision
            }
        }
    }

    /// Whether this node owns the pool because its partner could not serve it, in the life that it still has.
    pub(super) fn is_given_up(&self) -> bool {
        let is_mine = self.register().is_some_and(|register| register.owner == self.me());
        is_mine && self.given_up_by.is_some() && self.given_up_by == self.partner_life
    }

    /// The partner's life that owns the pool, has its log, and says that it does not serve it.
    pub(super) fn yielding_life(&self) -> Option<Incarnation> {
        let has_log = self.register().is_some_and(|register| self.partner_portion() == Some(register.portion));
        self.partner_life.filter(|_| has_log && matches!(self.word(), Word::Standby | Word::Mirroring))
    }

    /// Why the pool could not be opened here, while that is of interest.
    pub(super) fn open_trouble(&self) -> Option<&str> {
        let is_mine = self.register().is_some_and(|register| register.owner == self.me());
        let is_shut = matches!(self.open, Open::Closed | Open::Opening) && is_mine && self.openings_failed > 0;
        (is_shut || self.open == Open::Yielded).then_some(&self.open_failure)
    }

    fn usable(&self) -> Portion {
        if self.portion.id().is_some() { Portion::Usable } else { Portion::Void }
    }

    /// Whether a command to take the pool over waits for its time.
    pub(super) fn is_armed(&self) -> bool {
        matches!(self.command, Command::Takeover | Command::Forced) && self.held.is_none()
    }

    /// Ends a takeover that could not be carried out for [so long](command_patience). Its caller may have gone long ago; and what was to give up today's changes must not give up
    /// tomorrow's, when the partner dies. The time that fences take does not count: theirs has a limit of its own.
    pub(super) fn lapse_command(&mut self, now: Nanos, timing: &Timing) {
        let is_fencing = || self.decided.is_some_and(|(decision, _)| decision.action() == Action::Fence);
        if !self.is_armed() || is_fencing() {
            self.command_at = now;
        } else if now.since(self.command_at) >= command_patience(timing) {
            tracing::warn!(pool = self.name, command = self.command.words(), "not carried out in time, and void");
            let message =
                format!("the {} of pool {} could not be carried out in time", self.command.words(), self.name);
            self.answer(AdminReply::Refused { message, hint: "twinlog pair explain".to_owned() });
        }
    }

    /// Ends the command, with its answer.
    pub(super) fn answer(&mut self, with: AdminReply) {
        self.command = Command::None;
        if let Some(caller) = self.caller.take() {
            // A caller that has gone away needs no answer.
            let _ = caller.try_send(with);
        }
    }
}
