//! What every arbiter does, whatever it is: both nodes of a pair at it, by their threads.

use super::*;
use twinlog::{
    base::PortionId,
    format::register::Side,
    pair::ownership::{claim, create, go_in_sync, go_stale},
};

/// Starts a node: its name and its partner's, its life, and how long a lease lasts. An earlier life of it has been dropped.
pub(in super::super) type Start<'a> = &'a dyn Fn([&str; 2], u128, Duration) -> (Registers, ArbiterFences);

pub(in super::super) struct NoWaker;
impl Waker for NoWaker {
    fn wake(&self) {}
}

pub(in super::super) fn answer(registers: &mut Registers) -> Answer {
    loop {
        match registers.poll() {
            Some(answer) => return answer,
            None => std::thread::yield_now(),
        }
    }
}

pub(in super::super) fn fenced_by(fences: &mut ArbiterFences) -> FenceAnswer {
    loop {
        match fences.poll() {
            Some(answer) => return answer,
            None => std::thread::yield_now(),
        }
    }
}

const A: [&str; 2] = ["a", "b"];
const B: [&str; 2] = ["b", "a"];
/// Longer than any of this takes.
const LONG: Duration = Duration::from_secs(60);
const POOL: PoolId = PoolId(7);

fn swap(node: &mut Registers, old: Option<Register>, new: Register) -> SwapOutcome {
    node.compare_and_swap(old, new);
    match answer(node) {
        Answer::Swapped(pool, outcome) if pool == new.pool => outcome,
        other => panic!("{other:?} is no answer to a swap"),
    }
}

fn read(node: &mut Registers, pool: PoolId) -> Option<Register> {
    node.read(pool);
    match answer(node) {
        Answer::Read(of, Ok(register)) if of == pool => register,
        other => panic!("{other:?} is no register"),
    }
}

fn beat(node: &mut Registers) -> Result<bool, String> {
    node.beat(0);
    match answer(node) {
        Answer::Beat(changed) => changed,
        other => panic!("{other:?} is no answer to a beat"),
    }
}

/// The whole suite.
pub(in super::super) fn all(start: Start<'_>) {
    registers_change_by_comparison_and_outlive_their_nodes(start);
    of_swaps_from_one_register_one_is_made(start);
    beats_are_seen_once(start);
    a_lease_that_nobody_renews_is_known_to_have_ended(start);
}

fn registers_change_by_comparison_and_outlive_their_nodes(start: Start<'_>) {
    let (mut a, _) = start(A, 1, LONG);
    let (mut b, _) = start(B, 2, LONG);
    assert_eq!([read(&mut a, POOL), read(&mut b, POOL)], [None, None]);
    let first = create(POOL, Epoch(2), PortionId(5), 9);
    assert_eq!(swap(&mut a, None, first), SwapOutcome::Done(first));
    assert_eq!(read(&mut b, POOL), Some(first));
    let second = go_in_sync(&first, Side::Home, PortionId(6), 10);
    assert_eq!(swap(&mut b, None, second), SwapOutcome::Changed(Some(first)));
    assert_eq!(swap(&mut b, Some(first), second), SwapOutcome::Done(second));
    assert_eq!(swap(&mut a, Some(first), second), SwapOutcome::Changed(Some(second)));
    // Every pool has its own.
    let other = create(PoolId(8), Epoch(2), PortionId(5), 11);
    assert_eq!(swap(&mut a, None, other), SwapOutcome::Done(other));
    drop((a, b));
    let (mut a, _) = start(A, 3, LONG);
    assert_eq!([read(&mut a, POOL), read(&mut a, PoolId(8))], [Some(second), Some(other)]);
}

fn of_swaps_from_one_register_one_is_made(start: Start<'_>) {
    let (mut a, _) = start(A, 4, LONG);
    let (mut b, _) = start(B, 5, LONG);
    let mut now = read(&mut a, POOL).expect("made above");
    for _ in 0..50 {
        let (one, other) = (claim(&now, now.owner, now.portion, 1), go_stale(&now, now.owner, 2));
        a.compare_and_swap(Some(now), one);
        b.compare_and_swap(Some(now), other);
        let outcomes = [answer(&mut a), answer(&mut b)];
        let done = |answer: &Answer| matches!(answer, Answer::Swapped(_, SwapOutcome::Done(_)));
        assert_eq!(outcomes.iter().filter(|answer| done(answer)).count(), 1, "{outcomes:?}");
        now = read(&mut b, POOL).expect("it is there");
        assert_eq!(now, if done(&outcomes[0]) { one } else { other });
    }
}

fn beats_are_seen_once(start: Start<'_>) {
    let (mut a, _) = start(A, 6, LONG);
    let _of_an_earlier_life = beat(&mut a);
    assert_eq!(beat(&mut a), Ok(false));
    let (mut b, _) = start(B, 7, LONG);
    assert_eq!(beat(&mut b), Ok(true));
    assert_eq!([beat(&mut a), beat(&mut a)], [Ok(true), Ok(false)]);
}

fn a_lease_that_nobody_renews_is_known_to_have_ended(start: Start<'_>) {
    let lease = Duration::from_secs(1);
    let (mut a, mut fence_b) = start(A, 8, lease);
    let (mut b, _) = start(B, 9, lease);
    beat(&mut b).expect("taken");
    beat(&mut a).expect("taken");
    fence_b.fence(POOL, Epoch(3), ArbiterFence::Lease);
    beat(&mut b).expect("taken");
    beat(&mut a).expect("taken");
    let lives = fenced_by(&mut fence_b);
    assert_eq!((lives.pool, lives.epoch, lives.result), (POOL, Epoch(3), Fence::Held), "{}", lives.said);
    let since = now();
    fence_b.fence(POOL, Epoch(4), ArbiterFence::Lease);
    let over = loop {
        // Only what is watched without a break is known.
        beat(&mut a).expect("taken");
        if let Some(answer) = fence_b.poll() {
            break answer;
        }
    };
    assert_eq!((over.epoch, over.result), (Epoch(4), Fence::Confirmed), "{}", over.said);
    assert!(since.elapsed() < LONG);
    assert!(beat(&mut b).is_err(), "a fenced life does not renew its lease");
    drop(b);
    let (mut b, _) = start(B, 10, lease);
    beat(&mut b).expect("another life begins without a lease, and claims before it serves");
}
