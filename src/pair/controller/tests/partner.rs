//! The owner whose partner falls silent: the end of its process costs no detection time, and anything else no mirror.

use super::*;

fn mirror_of(pair: &Pair, pool: usize) -> (Epoch, MirrorState) {
    let register = pair.registers.borrow().registers[&pool_id(pool)];
    (register.epoch, register.mirror)
}

/// Within the detection time of its partner's silence `node` has its write answered alone.
fn is_alone_at_once(pair: &mut Pair, node: usize, write: u64) {
    pair.end(node, write).expect("alone, after the register says stale");
    assert_eq!(pair.node(node).controller.link(), Link::Interrupted);
    assert_eq!(mirror_of(pair, node).1, MirrorState::Stale);
}

#[test]
fn the_end_of_the_partner_s_process_is_not_waited_for() {
    let mut pair = Pair::started(41);
    pair.create(0, "vol-a");
    let write = pair.begin_write(0, "vol-a", 0, 1);
    pair.kill(1);
    is_alone_at_once(&mut pair, 0, write);
    // What it answered alone is with it; the partner is brought in step when it is back.
    pair.start(1);
    pair.until_in_sync();
    assert_eq!(pair.read(0, "vol-a", 0), 1);
}

/// The connections of a process that ends may do so before its lock is free.
#[test]
fn a_lock_that_is_held_is_looked_at_again() {
    let mut pair = Pair::started(42);
    pair.create(0, "vol-a");
    let write = pair.begin_write(0, "vol-a", 0, 1);
    pair.kill(1);
    pair.lives[1].set(true);
    pair.until("the lock was held", |pair| pair.node(0).row(PoolSlot::Home) == "partner silent");
    pair.lives[1].set(false);
    is_alone_at_once(&mut pair, 0, write);
}

#[test]
pub(super) fn a_partner_that_lives_keeps_its_mirror_through_a_short_silence() {
    let mut pair = Pair::started(43);
    pair.create(0, "vol-a");
    let before = mirror_of(&pair, 0);
    pair.cut(true);
    let write = pair.begin_write(0, "vol-a", 0, 1);
    pair.until("its lock was looked at", |pair| pair.node(0).row(PoolSlot::Home) == "partner silent");
    pair.cut(false);
    pair.end(0, write).expect("the mirror is in step");
    assert_eq!(mirror_of(&pair, 0), before);
}
