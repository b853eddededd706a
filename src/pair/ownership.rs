//! The changes of a pool's register, one function each, and what a node reads in one.
//!
//! | change | who makes it | from | to |
//! |---|---|---|---|
//! | [`create`] | home | no register | {home, its portion, stale}, epoch above the superblock's |
//! | [`claim`] | the owner, after a restart or a lost lease | {X, x, m} | {X, x, m}, e+1: nothing was answered since |
//! | [`go_stale`] | the owner, before the next unmirrored reply | {X, x, m} | {X, x, stale}, e+1 |
//! | [`go_in_sync`] | the owner, once the mirror has everything answered | {X, x, stale} | {X, x, in-sync y}, e+1 |
//! | [`take_over`] | the other node, fence confirmed (R3) | {X, x, in-sync y} | {Y, y, stale}, e+1 |
//! | [`hand_over`] | the owner, closed after a last consistency point | {Y, y, m} | {X, x, in-sync y}, e+1: nothing lies above that point; kept, if Y is the home node and is drained |
//! | [`force`] | either node, by an operator | {anyone, any, m} | {Y, y, stale}, e+1 |
//!
//! # Invariants
//!
//! 1. Every change adds one to generation and epoch; a forced one leads above every epoch that is known of the pool.
//! 2. `in-sync p` is written only when portion p holds every answered change that the newest consistency point does not contain.
//! 3. The owner's portion is named too: an owner whose log was lost or replaced finds another name, and does not open the pool as if
//!    nothing had been answered.

use super::decide::{Mirror, Owner, Portion};
use crate::{
    base::{Epoch, PoolId, PortionId},
    format::register::{MirrorState, Register, Side},
};

/// The first register of a pool whose home node has portion `portion`; `epoch` lies above that of the pool's superblock. `time_ns`, here and
/// below, is the wall clock.
#[must_use]
pub fn create(pool: PoolId, epoch: Epoch, portion: PortionId, time_ns: u64) -> Register {
    let (owner, mirror) = (Side::Home, MirrorState::Stale);
    Register { pool, generation: 1, epoch, owner, portion, mirror, kept: false, changed_ns: time_ns }
}

/// The next register, the same but for generation, epoch and time.
fn next(register: &Register, time_ns: u64) -> Register {
    let generation = register.generation.checked_add(1).expect("2^64 changes outlive the hardware");
    let epoch = Epoch(register.epoch.0.checked_add(1).expect("2^64 epochs outlive the hardware"));
    Register { generation, epoch, changed_ns: time_ns, ..*register }
}

/// `me`, the owner, goes on at the next epoch.
#[must_use]
pub fn claim(register: &Register, me: Side, portion: PortionId, time_ns: u64) -> Register {
    assert!(register.owner == me && register.portion == portion, "an owner claims with its own portion (I3)");
    next(register, time_ns)
}

/// `me`, the owner, is about to answer alone.
#[must_use]
pub fn go_stale(register: &Register, me: Side, time_ns: u64) -> Register {
    assert!(register.owner == me, "the owner goes stale");
    Register { mirror: MirrorState::Stale, ..next(register, time_ns) }
}

/// The partner's portion `mirror` of `me`, the owner, has everything answered, and replies wait for it.
#[must_use]
pub fn go_in_sync(register: &Register, me: Side, mirror: PortionId, time_ns: u64) -> Register {
    assert!(register.owner == me && mirror != register.portion, "the owner says that the other's portion is in sync");
    Register { mirror: MirrorState::InSync(mirror), ..next(register, time_ns) }
}

/// `me` becomes the owner with `portion`, the one that the register names.
#[must_use]
pub fn take_over(register: &Register, me: Side, portion: PortionId, time_ns: u64) -> Register {
    assert!(register.owner == me.other(), "the other node takes over");
    assert!(register.mirror == MirrorState::InSync(portion), "the register names the portion (R3)");
    Register { owner: me, portion, mirror: MirrorState::Stale, kept: false, ..next(register, time_ns) }
}

/// `me`, the owner, has closed the pool after a last consistency point; the partner will own it, with `portion`, and keep it if `me` is drained.
#[must_use]
pub fn hand_over(register: &Register, me: Side, portion: PortionId, is_drained: bool, time_ns: u64) -> Register {
    assert!(register.owner == me && portion != register.portion, "the owner hands over to the other's portion");
    let mirror = MirrorState::InSync(register.portion);
    let kept = is_drained && me == Side::Home;
    Register { owner: me.other(), portion, mirror, kept, ..next(register, time_ns) }
}

/// `me` becomes the owner with `portion`, whatever that lacks; `seen` is the highest epoch that is known of the pool, which lies above the register's when
/// that is outdated.
#[must_use]
pub fn force(register: &Register, me: Side, portion: PortionId, seen: Epoch, time_ns: u64) -> Register {
    let newest = Register { epoch: register.epoch.max(seen), ..*register };
    Register { owner: me, portion, mirror: MirrorState::Stale, kept: false, ..next(&newest, time_ns) }
}

/// What a node brings to the reading of a register.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// Which node of the pool's it is.
    pub me: Side,
    /// The epoch of the last change that this process made, if it made one.
    pub held: Option<Epoch>,
    /// Its portion; `None`: there is none that could be read.
    pub portion: Option<PortionId>,
    /// It holds records of this pool that this node made as its owner, in an ownership that may be over.
    pub has_own_records: bool,
    /// The partner's portion, if the partner has said which one it has.
    pub partner_portion: Option<PortionId>,
}

impl Reader {
    /// What the register says to this node: the inputs of a decision.
    #[must_use]
    pub fn read(&self, register: &Register) -> (Owner, Mirror, Portion) {
        let mine = register.owner == self.me;
        let owner = match self.held {
            _ if !mine => Owner::Partner,
            Some(epoch) if epoch == register.epoch => Owner::Held,
            _ => Owner::Unclaimed,
        };
        // The portion of the node that does not own the pool, as far as it is known. One that cannot be read is not another one: that it has everything
        // answered stays so, and while the register says it, nobody makes that portion anew.
        let other = if mine { self.partner_portion } else { self.portion };
        let mirror = match register.mirror {
            MirrorState::Stale => Mirror::Stale,
            MirrorState::InSync(named) if other.is_none_or(|other| other == named) => Mirror::Named,
            MirrorState::InSync(_) => Mirror::Other,
        };
        let usable = match self.portion {
            None => false,
            Some(portion) if mine => portion == register.portion,
            // What a former owner's portion holds does not count (R7), until the new owner has made it a mirror.
            Some(_) => !self.has_own_records || mirror == Mirror::Named,
        };
        (owner, mirror, if usable { Portion::Usable } else { Portion::Void })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: PortionId = PortionId(1);
    const AWAY: PortionId = PortionId(2);

    fn made() -> Register {
        create(PoolId(7), Epoch(4), HOME, 10)
    }

    fn reader(me: Side, held: Option<u64>) -> Reader {
        let (portion, partner_portion) = if me == Side::Home { (HOME, AWAY) } else { (AWAY, HOME) };
        let held = held.map(Epoch);
        Reader { me, held, portion: Some(portion), has_own_records: false, partner_portion: Some(partner_portion) }
    }

    #[test]
    fn a_life_of_a_register() {
        let claimed = claim(&made(), Side::Home, HOME, 11);
        let synced = go_in_sync(&claimed, Side::Home, AWAY, 12);
        let taken = take_over(&synced, Side::Away, AWAY, 13);
        let resynced = go_in_sync(&taken, Side::Away, HOME, 14);
        let returned = hand_over(&resynced, Side::Away, HOME, false, 15);
        let stale = go_stale(&returned, Side::Home, 16);
        let forced = force(&stale, Side::Away, AWAY, Epoch(3), 17);
        let all = [made(), claimed, synced, taken, resynced, returned, stale, forced];
        for (step, pair) in all.windows(2).enumerate() {
            assert_eq!((pair[1].generation, pair[1].epoch.0), (pair[0].generation + 1, pair[0].epoch.0 + 1), "{step}");
        }
        let owners = all.map(|register| register.owner);
        assert_eq!(owners[2..], [Side::Home, Side::Away, Side::Away, Side::Home, Side::Home, Side::Away]);
        assert!(all.iter().all(|register| register.portion == if register.owner == Side::Home { HOME } else { AWAY }));
        assert_eq!(returned.mirror, MirrorState::InSync(AWAY), "after a giveback the giver can take it back");
        assert_eq!((taken.mirror, forced.mirror), (MirrorState::Stale, MirrorState::Stale));
    }

    #[test]
    fn a_drained_nodes_pool_is_kept_until_it_changes_hands() {
        let drained = hand_over(&made(), Side::Home, AWAY, true, 11);
        let claimed = claim(&drained, Side::Away, AWAY, 12);
        let synced = go_in_sync(&go_stale(&claimed, Side::Away, 13), Side::Away, HOME, 14);
        assert!([drained, claimed, synced].iter().all(|register| register.kept), "whatever happens to the mirror");
        let back = hand_over(&synced, Side::Away, HOME, true, 15);
        let taken = take_over(&synced, Side::Home, HOME, 15);
        let forced = force(&synced, Side::Home, HOME, Epoch(1), 15);
        assert!([made(), back, taken, forced].iter().all(|register| !register.kept), "a home node keeps it anyway");
    }

    #[test]
    fn a_forced_change_leads_above_every_epoch_that_is_known() {
        let forced = force(&made(), Side::Home, HOME, Epoch(40), 11);
        assert_eq!((forced.generation, forced.epoch), (2, Epoch(41)));
    }

    #[test]
    #[should_panic(expected = "the register names the portion")]
    fn no_takeover_of_a_stale_register() {
        let _never = take_over(&made(), Side::Away, AWAY, 11);
    }

    #[test]
    #[should_panic(expected = "the register names the portion")]
    fn no_takeover_with_another_portion() {
        let _never = take_over(&go_in_sync(&made(), Side::Home, AWAY, 11), Side::Away, PortionId(3), 12);
    }

    #[test]
    fn each_node_reads_it_from_its_own_side() {
        let synced = go_in_sync(&made(), Side::Home, AWAY, 11);
        let usable = Portion::Usable;
        assert_eq!(reader(Side::Home, Some(5)).read(&synced), (Owner::Held, Mirror::Named, usable));
        assert_eq!(reader(Side::Home, Some(4)).read(&synced), (Owner::Unclaimed, Mirror::Named, usable));
        assert_eq!(reader(Side::Home, None).read(&synced), (Owner::Unclaimed, Mirror::Named, usable));
        assert_eq!(reader(Side::Away, None).read(&synced), (Owner::Partner, Mirror::Named, usable));
        assert_eq!(reader(Side::Away, None).read(&made()), (Owner::Partner, Mirror::Stale, usable));
        let alone = Reader { partner_portion: None, ..reader(Side::Home, None) };
        assert_eq!(alone.read(&synced).1, Mirror::Named, "nothing speaks against it");
    }

    #[test]
    fn a_replaced_portion_is_noticed_by_both_nodes() {
        let synced = go_in_sync(&made(), Side::Home, AWAY, 11);
        let new = Some(PortionId(9));
        assert_eq!(Reader { portion: new, ..reader(Side::Home, None) }.read(&synced).2, Portion::Void);
        assert_eq!(Reader { portion: None, ..reader(Side::Home, None) }.read(&synced).2, Portion::Void);
        assert_eq!(Reader { partner_portion: new, ..reader(Side::Home, None) }.read(&synced).1, Mirror::Other);
        let away = Reader { portion: new, ..reader(Side::Away, None) }.read(&synced);
        assert_eq!(
            away,
            (Owner::Partner, Mirror::Other, Portion::Usable),
            "it can become a mirror, it cannot take over"
        );
    }

    #[test]
    fn a_mirror_that_cannot_be_read_is_not_taken_for_a_replaced_one() {
        let synced = go_in_sync(&made(), Side::Home, AWAY, 11);
        let unreadable = Reader { portion: None, ..reader(Side::Away, None) };
        assert_eq!(unreadable.read(&synced), (Owner::Partner, Mirror::Named, Portion::Void));
    }

    #[test]
    fn a_former_owners_records_are_void() {
        let taken = take_over(&go_in_sync(&made(), Side::Home, AWAY, 11), Side::Away, AWAY, 12);
        let former = Reader { has_own_records: true, ..reader(Side::Home, Some(5)) };
        assert_eq!(former.read(&taken), (Owner::Partner, Mirror::Stale, Portion::Void));
        let returned = hand_over(&made(), Side::Home, AWAY, false, 11);
        assert_eq!(former.read(&returned).2, Portion::Usable, "the register says that its portion has everything");
    }
}
