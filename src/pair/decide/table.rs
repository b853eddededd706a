//! The rows, in the order in which they are tried; the first that fits decides.
//!
//! The order is that of what must not wait: rule R2 first, then what nobody can know without the arbiter, then the owner's part, then
//! the other node's. Within a part the later rows rely on the earlier ones having been passed over.

use super::{
    Action, Beat, Command, Deadline, Fence, Lease, Link, Mirror, Open, Owner, Place, Portion, Replies, Row, View, Word,
};

/// Which views a row fits: for each input the values that it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct When {
    pub(super) place: &'static [Place],
    pub(super) owner: &'static [Owner],
    pub(super) mirror: &'static [Mirror],
    pub(super) open: &'static [Open],
    pub(super) replies: &'static [Replies],
    pub(super) link: &'static [Link],
    pub(super) word: &'static [Word],
    pub(super) beat: &'static [Beat],
    pub(super) fence: &'static [Fence],
    pub(super) portion: &'static [Portion],
    pub(super) command: &'static [Command],
    pub(super) lease: &'static [Lease],
}

impl When {
    pub(super) fn fits(&self, view: &View) -> bool {
        self.owner.contains(&view.owner)
            && self.open.contains(&view.open)
            && self.mirror.contains(&view.mirror)
            && self.replies.contains(&view.replies)
            && self.link.contains(&view.link)
            && self.word.contains(&view.word)
            && self.beat.contains(&view.beat)
            && self.fence.contains(&view.fence)
            && self.portion.contains(&view.portion)
            && self.command.contains(&view.command)
            && self.lease.contains(&view.lease)
            && self.place.contains(&view.place)
    }
}

/// Every view.
const ANY: When = When {
    place: Place::ALL,
    owner: Owner::ALL,
    mirror: Mirror::ALL,
    open: Open::ALL,
    replies: Replies::ALL,
    link: Link::ALL,
    word: Word::ALL,
    beat: Beat::ALL,
    fence: Fence::ALL,
    portion: Portion::ALL,
    command: Command::ALL,
    lease: Lease::ALL,
};

/// The pool's devices are in use here.
const ACTIVE: &[Open] = &[Open::Opening, Open::Serving, Open::Draining];
/// Replies leave.
const ANSWERING: &[Open] = &[Open::Serving, Open::Draining];
/// The pool is not open and could be.
const SHUT: &[Open] = &[Open::Closed, Open::Drained];
const MINE: &[Owner] = &[Owner::Held, Owner::Unclaimed];
const NOT_IN_SYNC: &[Mirror] = &[Mirror::Stale, Mirror::Other];
/// The partner's portion can take what this node writes, and the partner can take the pool.
const READY: &[Word] = &[Word::Standby, Word::Mirroring];
const HAND_OVER: &[Command] = &[Command::Giveback, Command::Drain];
const TAKE: &[Command] = &[Command::Takeover, Command::Forced];
const NOT_TAKE: &[Command] = &[Command::None, Command::Giveback, Command::Drain, Command::Keep];
const NOT_FORCED: &[Command] = &[Command::None, Command::Takeover, Command::Giveback, Command::Drain, Command::Keep];

/// Views of a node whose partner owns the pool and which could take it: what all rows of that part have in common.
const STANDBY: When = When {
    owner: &[Owner::Partner],
    open: &[Open::Closed, Open::Drained, Open::Yielded],
    portion: &[Portion::Usable],
    ..ANY
};

/// Views of the owner that does not have the pool open.
const SHUT_OWNER: When = When { owner: MINE, open: SHUT, ..ANY };

/// Views of a node that answers, at the epoch that the register names.
const OWNING: When = When { owner: &[Owner::Held], open: ANSWERING, ..ANY };

pub(super) const ROWS: &[Row] = &[
    // Rules R1 and R2: what must end now.
    Row {
        name: "lease over",
        when: When { open: ACTIVE, lease: &[Lease::Ended], ..ANY },
        then: Action::StopServing,
        why: "{me}'s lease for {pool} ended before it could be renewed: {partner} may take the pool over from now on",
        until: Deadline::Now,
        next: "{me} closes {pool}, whose clients with requests under way are disconnected and ask again, and claims it again if the arbiter still names it",
    },
    Row {
        name: "not the owner",
        when: When { owner: &[Owner::Absent, Owner::Outdated, Owner::Unclaimed, Owner::Partner], open: ACTIVE, ..ANY },
        then: Action::StopServing,
        why: "the arbiter does not name {me} as owner of {pool} at the epoch that {me} holds",
        until: Deadline::Now,
        next: "{me} closes {pool}, whose clients with requests under way are disconnected and ask again, and follows the register",
    },
    Row {
        name: "not mirrored",
        when: When { mirror: &[Mirror::Named, Mirror::Other], replies: &[Replies::Alone], ..OWNING },
        then: Action::StopServing,
        why: "{me} would answer without {partner} although the register says that both logs are in step",
        until: Deadline::Now,
        next: "{me} closes {pool}, whose clients with requests under way are disconnected and ask again, and claims it again; this is a defect, please report it",
    },
    // Without the arbiter nothing is known.
    Row {
        name: "arbiter lost, serving",
        when: When { owner: &[Owner::Unreadable], open: ACTIVE, ..ANY },
        then: Action::Wait,
        why: "the arbiter does not answer; {me} has {pool} open until its lease ends",
        until: Deadline::Lease,
        next: "{me} goes on if its lease is renewed, and stops when it ends; make the arbiter reachable",
    },
    Row {
        name: "arbiter lost, command",
        when: When { owner: &[Owner::Unreadable], command: TAKE, ..ANY },
        then: Action::Refuse,
        why: "the arbiter cannot be read, and without it nobody knows who may serve {pool}",
        until: Deadline::Retry,
        next: "make the arbiter reachable; the command is tried again",
    },
    Row {
        name: "arbiter lost",
        when: When { owner: &[Owner::Unreadable], ..ANY },
        then: Action::Wait,
        why: "the arbiter cannot be read, and without it nobody knows who may serve {pool}",
        until: Deadline::Retry,
        next: "the arbiter is asked again; make it reachable",
    },
    // A failure in this process's life is final for it.
    Row {
        name: "failed, in sync",
        when: When { owner: MINE, open: &[Open::Failed], mirror: &[Mirror::Named], ..ANY },
        then: Action::Wait,
        why: "a failure has stopped {pool} on {me}; {partner}'s log has every answered change",
        until: Deadline::Retry,
        next: "{partner} takes {pool} over; start it if it does not run. Then mend what the failure names and restart {me}",
    },
    Row {
        name: "failed, alone",
        when: When { owner: MINE, open: &[Open::Failed], ..ANY },
        then: Action::Refuse,
        why: "a failure has stopped {pool} on {me}, and no other log has every answered change",
        until: Deadline::Retry,
        next: "mend what the failure names, then restart {me}",
    },
    Row {
        name: "failed",
        when: When { open: &[Open::Failed], ..ANY },
        then: Action::Refuse,
        why: "a failure has stopped {pool} on {me}; {me} neither serves nor mirrors it",
        until: Deadline::Retry,
        next: "mend what the failure names, then restart {me}",
    },
    // No register: the pool is new, or the arbiter has lost its memory.
    Row {
        name: "first claim",
        when: When {
            place: &[Place::Home],
            owner: &[Owner::Absent],
            link: &[Link::Up],
            word: READY,
            portion: &[Portion::Usable],
            ..ANY
        },
        then: Action::Claim,
        why: "the arbiter has no register of {pool}, and {partner} has said that it does not serve it",
        until: Deadline::Now,
        next: "{me} makes the register and opens {pool}",
    },
    Row {
        name: "first claim, forced, fence",
        when: When {
            place: &[Place::Home],
            owner: &[Owner::Absent, Owner::Outdated],
            link: &[Link::Cut],
            fence: &[Fence::NotTried, Fence::Held],
            command: &[Command::Forced],
            ..ANY
        },
        then: Action::Fence,
        why: "an operator wants {pool} served although the arbiter has no register of it that counts",
        until: Deadline::FenceLimit,
        next: "{me} makes sure that {partner} does not serve {pool}, then makes the register",
    },
    Row {
        name: "first claim, forced",
        when: When {
            place: &[Place::Home],
            owner: &[Owner::Absent, Owner::Outdated],
            link: &[Link::Cut],
            fence: &[Fence::Confirmed],
            command: &[Command::Forced],
            ..ANY
        },
        then: Action::ForceTakeOver,
        why: "an operator wants {pool} served although the arbiter has no register of it that counts, and {partner} cannot write",
        until: Deadline::Now,
        next: "{me} makes the register and opens {pool} with what its own log holds",
    },
    Row {
        name: "first claim, forced, yielded",
        when: When {
            place: &[Place::Home],
            owner: &[Owner::Absent, Owner::Outdated],
            link: &[Link::Up],
            word: READY,
            command: &[Command::Forced],
            ..ANY
        },
        then: Action::ForceTakeOver,
        why: "an operator wants {pool} served although the arbiter has no register of it that counts, and {partner} does not serve it",
        until: Deadline::Now,
        next: "{me} makes the register and opens {pool} with what its own log holds",
    },
    Row {
        name: "register outdated",
        when: When { owner: &[Owner::Outdated], ..ANY },
        then: Action::Refuse,
        why: "the arbiter's register of {pool} is older than {pool} itself, or lost: whose log has every answered change is not known",
        until: Deadline::Retry,
        next: "bring the arbiter's newest state back; if it is lost, give up what only {partner}'s log may have: `twinlog pair takeover --force` at the home node",
    },
    Row {
        name: "own log lost, no register",
        when: When { place: &[Place::Home], owner: &[Owner::Absent], portion: &[Portion::Void], ..ANY },
        then: Action::Refuse,
        why: "the arbiter has no register of {pool}, and {me} cannot use its own log of it: what was answered before there was a pair may be there",
        until: Deadline::Retry,
        next: "mend the log, or bring it back, and restart {me}; or give up what was answered since the last consistency point: `twinlog pair takeover --force`",
    },
    Row {
        name: "no register, home",
        when: When { place: &[Place::Home], owner: &[Owner::Absent], ..ANY },
        then: Action::Wait,
        why: "the arbiter has no register of {pool}, and {partner} has not said that it does not serve it",
        until: Deadline::Retry,
        next: "start {partner}; if it is lost and has never served {pool}: `twinlog pair takeover --force`",
    },
    Row {
        name: "no register, away",
        when: When { place: &[Place::Away], owner: &[Owner::Absent], ..ANY },
        then: Action::Wait,
        why: "the arbiter has no register of {pool}",
        until: Deadline::Retry,
        next: "{partner}, its home node, makes it; start it if it does not run",
    },
    // The owner, with the pool open.
    Row {
        name: "opening",
        when: When { owner: &[Owner::Held], open: &[Open::Opening], ..ANY },
        then: Action::Wait,
        why: "{me} performs the changes of its log that the disks of {pool} do not have yet",
        until: Deadline::Work,
        next: "{me} serves {pool}, and mirrors it when {partner} is ready",
    },
    Row {
        name: "partner lost",
        when: When { replies: &[Replies::Mirrored], link: &[Link::Cut], ..OWNING },
        then: Action::GoStale,
        why: "{partner} was not reached for the detection time, and replies wait for it",
        until: Deadline::Now,
        next: "the register says stale, then {me} answers alone",
    },
    Row {
        name: "partner gone",
        when: When { replies: &[Replies::Mirrored], link: &[Link::Interrupted], fence: &[Fence::Confirmed], ..OWNING },
        then: Action::GoStale,
        why: "{partner}'s process has ended, and replies wait for it",
        until: Deadline::Now,
        next: "the register says stale, then {me} answers alone",
    },
    Row {
        name: "partner gone?",
        when: When { replies: &[Replies::Mirrored], link: &[Link::Interrupted], fence: &[Fence::NotTried], ..OWNING },
        then: Action::Probe,
        why: "{partner} does not answer; writes to {pool} wait for it",
        until: Deadline::Detection,
        next: "if its process has ended {me} goes on alone at once; else {partner} has the detection time to answer",
    },
    Row {
        name: "partner silent",
        when: When { replies: &[Replies::Mirrored], link: &[Link::Interrupted], ..OWNING },
        then: Action::Wait,
        why: "{partner} does not answer; writes to {pool} wait for it",
        until: Deadline::Detection,
        next: "{partner} answers, or {me} goes on alone",
    },
    Row {
        name: "partner's log replaced",
        when: When { replies: &[Replies::Mirrored], link: &[Link::Up], mirror: &[Mirror::Other], ..OWNING },
        then: Action::GoStale,
        why: "{partner} has another log than the one that the register names",
        until: Deadline::Now,
        next: "the register says stale, {me} answers alone, then {partner}'s new log is brought in step",
    },
    Row {
        name: "partner away",
        when: When {
            replies: &[Replies::Mirrored],
            link: &[Link::Up],
            word: &[Word::Starting, Word::Serving, Word::Leaving],
            ..OWNING
        },
        then: Action::GoStale,
        why: "{partner} is there and does not mirror {pool} now",
        until: Deadline::Now,
        next: "the register says stale, {me} answers alone, then {partner}'s log is brought in step when it is ready",
    },
    Row {
        name: "partner unheard",
        when: When { replies: &[Replies::Mirrored], link: &[Link::Up], word: &[Word::Unknown], ..OWNING },
        then: Action::Wait,
        why: "{partner} has not said yet whether it mirrors {pool}; writes wait for it",
        until: Deadline::Detection,
        next: "{partner} mirrors, or {me} goes on alone",
    },
    Row {
        name: "attach",
        when: When { replies: &[Replies::Mirrored], link: &[Link::Up], word: &[Word::Standby], ..OWNING },
        then: Action::Resync,
        why: "{partner} is ready to mirror {pool}; writes wait for it",
        until: Deadline::Work,
        next: "{partner}'s log follows {me}'s",
    },
    Row {
        name: "draining",
        when: When { open: &[Open::Draining], ..OWNING },
        then: Action::Wait,
        why: "{me} finishes what was admitted to {pool} and takes a last consistency point",
        until: Deadline::Work,
        next: "{pool} is closed and handed to {partner}",
    },
    Row {
        name: "hand over",
        when: When { link: &[Link::Up], word: READY, command: HAND_OVER, ..OWNING },
        then: Action::Drain,
        why: "{pool} is to be handed to {partner}, which is ready for it",
        until: Deadline::Now,
        next: "{me} finishes what was admitted, takes a last consistency point and closes {pool}",
    },
    Row {
        name: "nobody to hand to",
        when: When { command: HAND_OVER, ..OWNING },
        then: Action::Refuse,
        why: "{pool} is to be handed to {partner}, which is not ready for it; {me} serves on",
        until: Deadline::Retry,
        next: "start {partner}; the command is tried again",
    },
    Row {
        name: "resync",
        when: When { mirror: &[Mirror::Stale], link: &[Link::Up], word: READY, ..OWNING },
        then: Action::Resync,
        why: "{partner} is ready, and its log is being brought in step while {me} serves",
        until: Deadline::Work,
        next: "a consistency point, then the register says in sync",
    },
    Row {
        name: "alone",
        when: When { mirror: &[Mirror::Stale], ..OWNING },
        then: Action::Wait,
        why: "{me} serves {pool} alone: {partner} does not mirror it, and only {me}'s log has every answered change",
        until: Deadline::Retry,
        next: "when {partner} is back its log is brought in step; start it, or mend the interconnect",
    },
    Row {
        name: "in sync, kept",
        when: When { place: &[Place::Away], command: &[Command::Keep], ..OWNING },
        then: Action::Rest,
        why: "{partner}, the home node of {pool}, was drained or could not open it; {me} keeps it, and both logs have every answered change",
        until: Deadline::Final,
        next: "when {partner} is maintained or mended: `twinlog pair giveback` on {me}",
    },
    Row {
        name: "in sync, away",
        when: When { place: &[Place::Away], ..OWNING },
        then: Action::Wait,
        why: "{me} serves {pool} for {partner}, its home node, which is back and in step",
        until: Deadline::GivebackDelay,
        next: "{me} gives {pool} back; `twinlog pair giveback` does it now",
    },
    Row {
        name: "in sync",
        when: OWNING,
        then: Action::Rest,
        why: "{me} serves {pool}, and both logs have every answered change",
        until: Deadline::Final,
        next: "nothing to do",
    },
    // The owner, with the pool closed.
    Row {
        name: "given up, in sync",
        when: When { owner: MINE, open: &[Open::Yielded], mirror: &[Mirror::Named], ..ANY },
        then: Action::Wait,
        why: "{me} could not open {pool}, several times in a row; {partner}'s log has every answered change",
        until: Deadline::Retry,
        next: "{partner} takes {pool} over if it is there, else {me} tries again; mend what the trouble names",
    },
    Row {
        name: "given up",
        when: When { owner: MINE, open: &[Open::Yielded], ..ANY },
        then: Action::Refuse,
        why: "{me} could not open {pool}, several times in a row, and no other log has every answered change",
        until: Deadline::Retry,
        next: "{me} tries again; mend what the trouble names",
    },
    Row {
        name: "own log lost, forced",
        when: When { portion: &[Portion::Void], command: &[Command::Forced], ..SHUT_OWNER },
        then: Action::ForceTakeOver,
        why: "an operator wants {pool} served although the log that it was served with is lost",
        until: Deadline::Now,
        next: "{me} opens {pool} as its last consistency point left it; what was answered after that is lost",
    },
    Row {
        name: "own log lost, in sync",
        when: When { portion: &[Portion::Void], mirror: &[Mirror::Named], ..SHUT_OWNER },
        then: Action::Wait,
        why: "{me} does not have the log that {pool} was served with; {partner}'s log has every answered change",
        until: Deadline::Retry,
        next: "{partner} takes {pool} over; start it if it does not run",
    },
    Row {
        name: "own log lost",
        when: When { portion: &[Portion::Void], ..SHUT_OWNER },
        then: Action::Refuse,
        why: "{me} does not have the log that {pool} was served with, and no other log has every answered change",
        until: Deadline::Retry,
        next: "bring the log back, or give up what was answered since the last consistency point: `twinlog pair takeover --force`",
    },
    Row {
        name: "claim",
        when: When { owner: &[Owner::Unclaimed], ..SHUT_OWNER },
        then: Action::Claim,
        why: "the register names {me} as owner of {pool}, and {me} has its log",
        until: Deadline::Now,
        next: "{me} takes the next epoch and opens {pool}",
    },
    Row {
        name: "claim again",
        when: When { owner: &[Owner::Held], lease: &[Lease::Ended], ..SHUT_OWNER },
        then: Action::Claim,
        why: "the register names {me} as owner of {pool}, and its lease has ended",
        until: Deadline::Now,
        next: "{me} takes the next epoch, and with it a new lease",
    },
    Row {
        name: "handed over",
        when: When {
            owner: &[Owner::Held],
            open: &[Open::Drained],
            link: &[Link::Up],
            word: READY,
            command: HAND_OVER,
            ..SHUT_OWNER
        },
        then: Action::GiveBack,
        why: "{me} has closed {pool} with a last consistency point, and {partner} is ready for it",
        until: Deadline::Now,
        next: "the register names {partner}, which opens {pool}",
    },
    Row {
        name: "open",
        when: When { owner: &[Owner::Held], ..SHUT_OWNER },
        then: Action::Open,
        why: "{me} is the owner of {pool} and has its log",
        until: Deadline::Now,
        next: "{me} performs what the disks do not have yet, then serves",
    },
    // The other node. From here on the register names the partner and the pool is shut here.
    Row {
        name: "discard",
        when: When { portion: &[Portion::Void], mirror: NOT_IN_SYNC, ..STANDBY },
        then: Action::Discard,
        why: "{partner} owns {pool}, and what {me}'s log holds of it does not count any more",
        until: Deadline::Now,
        next: "{me}'s log is made anew, then brought in step by {partner}",
    },
    Row {
        name: "mirror lost, forced, fence",
        when: When {
            portion: &[Portion::Void],
            link: &[Link::Cut],
            fence: &[Fence::NotTried, Fence::Held],
            command: &[Command::Forced],
            ..STANDBY
        },
        then: Action::Fence,
        why: "an operator wants {pool} served by {me}, whose log of it cannot be used",
        until: Deadline::FenceLimit,
        next: "{me} makes sure that {partner} does not serve {pool}, then makes its own log anew and opens {pool}",
    },
    Row {
        name: "mirror lost, forced",
        when: When {
            portion: &[Portion::Void],
            link: &[Link::Cut],
            fence: &[Fence::Confirmed],
            command: &[Command::Forced],
            ..STANDBY
        },
        then: Action::ForceTakeOver,
        why: "an operator wants {pool} served by {me}, whose log of it cannot be used; {partner} is fenced",
        until: Deadline::Now,
        next: "{me} opens {pool} as its last consistency point left it; what was answered after that is lost",
    },
    Row {
        name: "mirror lost, forced, yielded",
        when: When {
            portion: &[Portion::Void],
            link: &[Link::Up],
            word: READY,
            command: &[Command::Forced],
            ..STANDBY
        },
        then: Action::ForceTakeOver,
        why: "an operator wants {pool} served by {me}, whose log of it cannot be used; {partner} cannot serve it",
        until: Deadline::Now,
        next: "{me} opens {pool} as its last consistency point left it; what was answered after that is lost",
    },
    Row {
        name: "mirror lost",
        when: When { portion: &[Portion::Void], ..STANDBY },
        then: Action::Refuse,
        why: "the register says that {me}'s log of {pool} is in step, and it cannot be used; nothing of it is discarded",
        until: Deadline::Retry,
        next: "start {partner}, which goes on alone and has {me}'s log made anew; or mend that log and restart {me}; if both are lost: `twinlog pair takeover --force`",
    },
    Row {
        name: "yielded",
        when: When { link: &[Link::Up], word: READY, mirror: &[Mirror::Named], ..STANDBY },
        then: Action::TakeOver,
        why: "{partner} has said that it cannot serve {pool}, and {me}'s log has every answered change",
        until: Deadline::Now,
        next: "{me} becomes the owner and opens {pool}",
    },
    Row {
        name: "yielded, forced",
        when: When { link: &[Link::Up], word: READY, command: &[Command::Forced], ..STANDBY },
        then: Action::ForceTakeOver,
        why: "an operator wants {pool} served by {me}, whose log may lack answered changes; {partner} cannot serve it",
        until: Deadline::Now,
        next: "{me} opens {pool} with what its log holds; what only {partner}'s log has is lost",
    },
    Row {
        name: "yielded, stale",
        when: When { link: &[Link::Up], word: READY, ..STANDBY },
        then: Action::Refuse,
        why: "{partner} cannot serve {pool}, and only its log has every answered change",
        until: Deadline::Retry,
        next: "mend {partner}; or give up what only its log has: `twinlog pair takeover --force`",
    },
    Row {
        name: "ask",
        when: When { link: &[Link::Up], word: &[Word::Starting, Word::Serving], command: TAKE, ..STANDBY },
        then: Action::Ask,
        why: "{me} is to serve {pool}, and {partner} lives",
        until: Deadline::Work,
        next: "{partner} finishes what was admitted and hands {pool} over",
    },
    Row {
        name: "standby, given up",
        when: When {
            open: &[Open::Yielded],
            link: &[Link::Up],
            word: &[Word::Serving],
            mirror: &[Mirror::Named],
            ..STANDBY
        },
        then: Action::Wait,
        why: "{me} could not open {pool}; {partner} serves it, and both logs have every answered change",
        until: Deadline::Retry,
        next: "mend what the trouble names, then restart {me}, or `twinlog pair takeover {pool}` on {me}",
    },
    Row {
        name: "standby, drained",
        when: When {
            link: &[Link::Up],
            word: &[Word::Serving],
            mirror: &[Mirror::Named],
            command: &[Command::Keep],
            ..STANDBY
        },
        then: Action::Rest,
        why: "{pool} was drained from {me}; {partner} keeps it, and both logs have every answered change",
        until: Deadline::Final,
        next: "when {me} is maintained: `twinlog pair takeover {pool}` on {me}",
    },
    Row {
        name: "standby, in sync",
        when: When { link: &[Link::Up], word: &[Word::Serving], mirror: &[Mirror::Named], ..STANDBY },
        then: Action::Rest,
        why: "{partner} serves {pool}, and both logs have every answered change",
        until: Deadline::Final,
        next: "nothing to do",
    },
    Row {
        name: "standby, catching up",
        when: When { link: &[Link::Up], word: &[Word::Serving], ..STANDBY },
        then: Action::Wait,
        why: "{partner} serves {pool} and brings {me}'s log in step",
        until: Deadline::Work,
        next: "a consistency point, then the register says in sync",
    },
    Row {
        name: "standby, opening",
        when: When { link: &[Link::Up], word: &[Word::Starting], ..STANDBY },
        then: Action::Wait,
        why: "{partner} is about to serve {pool}",
        until: Deadline::Work,
        next: "{partner} serves; if it does not: `twinlog pair takeover`",
    },
    Row {
        name: "standby, leaving",
        when: When { link: &[Link::Up], word: &[Word::Leaving], ..STANDBY },
        then: Action::Wait,
        why: "{partner} is closing {pool}",
        until: Deadline::Work,
        next: "{partner} hands {pool} over, or ends and {me} takes it over",
    },
    Row {
        name: "standby, unheard",
        when: When { link: &[Link::Up], ..STANDBY },
        then: Action::Wait,
        why: "{partner} has not said yet what it does with {pool}",
        until: Deadline::Detection,
        next: "{partner} says its word, or counts as lost",
    },
    Row {
        name: "owner silent, given up",
        when: When { open: &[Open::Yielded], mirror: &[Mirror::Named], command: NOT_TAKE, ..STANDBY },
        then: Action::Refuse,
        why: "{partner} does not answer, and {me}, which could not open {pool}, does not take it over unasked",
        until: Deadline::Retry,
        next: "start {partner}, or mend the interconnect; or mend what the trouble names, then restart {me}, or `twinlog pair takeover {pool}` on {me}",
    },
    Row {
        name: "process gone",
        when: When { link: &[Link::Interrupted], mirror: &[Mirror::Named], fence: &[Fence::Confirmed], ..STANDBY },
        then: Action::TakeOver,
        why: "{partner}'s process has ended, and {me}'s log has every answered change",
        until: Deadline::Now,
        next: "{me} becomes the owner and opens {pool}",
    },
    Row {
        name: "process gone?",
        when: When { link: &[Link::Interrupted], mirror: &[Mirror::Named], fence: &[Fence::NotTried], ..STANDBY },
        then: Action::Probe,
        why: "{partner} does not answer",
        until: Deadline::Detection,
        next: "if its process has ended {me} takes {pool} over at once; else {partner} has the detection time to answer",
    },
    Row {
        name: "owner silent",
        when: When { link: &[Link::Interrupted], ..STANDBY },
        then: Action::Wait,
        why: "{partner} does not answer",
        until: Deadline::Detection,
        next: "{partner} answers, or counts as lost",
    },
    // From here on the interconnect is cut.
    Row {
        name: "cut, owner alive",
        when: When { beat: &[Beat::Alive], mirror: &[Mirror::Named], command: NOT_TAKE, ..STANDBY },
        then: Action::Wait,
        why: "the interconnect is cut, and {partner} lives: its heartbeat at the arbiter goes on. No takeover",
        until: Deadline::Retry,
        next: "{partner} serves on alone; mend the interconnect",
    },
    Row {
        name: "cut, owner alive, command",
        when: When { beat: &[Beat::Alive], mirror: &[Mirror::Named], command: NOT_FORCED, ..STANDBY },
        then: Action::Refuse,
        why: "the interconnect is cut, and {partner} lives: its heartbeat at the arbiter goes on. It cannot be asked to hand {pool} over",
        until: Deadline::Retry,
        next: "mend the interconnect, then give the command again",
    },
    Row {
        name: "cut, owner alive, alone",
        when: When { beat: &[Beat::Alive], mirror: NOT_IN_SYNC, command: NOT_FORCED, ..STANDBY },
        then: Action::Refuse,
        why: "the interconnect is cut, {partner} lives and serves {pool} alone: only its log has every answered change",
        until: Deadline::Retry,
        next: "mend the interconnect",
    },
    Row {
        name: "owner lost, alone",
        when: When { mirror: NOT_IN_SYNC, command: NOT_FORCED, ..STANDBY },
        then: Action::Refuse,
        why: "{partner} holds the truth about {pool}: it served alone, and only its log has every answered change",
        until: Deadline::Retry,
        next: "start {partner}; if its log is lost for good: `twinlog pair takeover --force`",
    },
    Row {
        name: "fence",
        when: When { fence: &[Fence::NotTried, Fence::Held], ..STANDBY },
        then: Action::Fence,
        why: "{partner} is not reached on any way; before {me} serves {pool} it must be sure that {partner} does not",
        until: Deadline::FenceLimit,
        next: "the configured fences are tried in their order, then {me} takes {pool} over",
    },
    Row {
        name: "fence failed",
        when: When { fence: &[Fence::Failed], ..STANDBY },
        then: Action::Refuse,
        why: "{partner} is not reached on any way, and no fence could make sure that it does not serve {pool}",
        until: Deadline::Retry,
        next: "the fences are tried again; power {partner} off by hand if it hangs",
    },
    Row {
        name: "take over",
        when: When { mirror: &[Mirror::Named], ..STANDBY },
        then: Action::TakeOver,
        why: "{partner} is fenced, and {me}'s log has every answered change",
        until: Deadline::Now,
        next: "{me} becomes the owner and opens {pool}",
    },
    Row {
        name: "take over, forced",
        when: STANDBY,
        then: Action::ForceTakeOver,
        why: "an operator wants {pool} served by {me}, whose log may lack answered changes; {partner} is fenced",
        until: Deadline::Now,
        next: "{me} opens {pool} with what its log holds; what only {partner}'s log has is lost",
    },
];
