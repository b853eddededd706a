//! Every crash point: a small workload is crashed after its n-th durable step, for every n, four times: the process ends or the power
//! goes, and what was not durable is lost or lands in part. The pool is recovered, and that is crashed at its m-th durable step, for
//! every m. What is recovered then must be what was answered, byte for byte, and the check must find the pool whole; it is used, and
//! recovered once more.
//!
//! Scripts and crashes are performed, and judged, by the simulator (`tools/simulator/src/history/script.rs`), without any chance but in
//! what lands. `docs/testing.md` says which planted bugs this finds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use twinlog::format::reservation::ReservationKind::{WriteExclusive, WriteExclusiveAll};
use twinlog_device::DurabilityClass;
use twinlog_simulator::{
    history::script::{Act, Crash, ScriptOutcome, run_script},
    model::reservation::Deed,
    setup::{BLOCK, Setup},
};

/// A machine, and what is done to it.
struct Workload {
    setup: Setup,
    script: Vec<Act>,
}

/// How many crashes were tried, and what came of some.
#[derive(Debug, Default)]
struct Tried {
    crashes: u64,
    recoveries_crashed: u64,
    refused: u64,
}

fn run(workload: &Workload, crash: Option<Crash>) -> Result<ScriptOutcome, String> {
    let outcome = catch_unwind(AssertUnwindSafe(|| run_script(&workload.setup, &workload.script, crash, false)));
    let outcome = outcome.map_err(|_| format!("{crash:?}: an assertion of the engine failed"))?;
    match outcome.violation {
        Some(violation) => Err(format!("{crash:?}: {}: {}", violation.oracle, violation.what)),
        None => Ok(outcome),
    }
}

/// Crashes a workload at every step, and its recovery at every step.
///
/// # Errors
/// The first crash after which something was not as it must be.
fn every_crash_point(workload: &Workload) -> Result<Tried, String> {
    let whole = run(workload, None)?;
    let mut tried = Tried::default();
    for turn in 0..whole.steps.max(whole.recovery_steps) {
        for (with_power, may_land) in [(false, false), (false, true), (true, false), (true, true)] {
            let (steps, recovery_steps) = (turn % whole.steps, turn % whole.recovery_steps);
            // Each kind of crash meets each kind in recovery.
            let recovery_with_power = (turn / 2).is_multiple_of(2);
            let crash = Crash { steps, with_power, may_land, recovery_steps, recovery_with_power };
            let outcome = run(workload, Some(crash))?;
            assert!(!outcome.is_complete && outcome.steps == steps, "{crash:?}: the script is not the same every time");
            tried.crashes += 1;
            tried.recoveries_crashed += u64::from(outcome.was_recovery_crashed);
            tried.refused += u64::from(outcome.was_refused);
        }
    }
    Ok(tried)
}

fn all_is_well(workload: &Workload) {
    let tried = every_crash_point(workload).expect("every crash is survived");
    println!("{tried:?}");
    assert!(tried.recoveries_crashed > tried.crashes / 2, "recoveries are crashed as well: {tried:?}");
    let may_refuse = workload.setup.durability != DurabilityClass::Durable;
    assert!(tried.refused <= if may_refuse { tried.crashes / 4 } else { 0 }, "{tried:?}");
}

/// A small machine: a disk that tears by block, so that the steps are few.
fn small() -> Setup {
    Setup { ring_blocks: 16, sector_bytes: 4096, ..Setup::plain(DurabilityClass::Durable) }
}

fn blocks(first: u64, count: u64) -> std::ops::Range<u64> {
    first * BLOCK..(first + count) * BLOCK
}

/// Whole blocks, with a consistency point while more comes.
fn aligned_writes() -> Workload {
    let script = vec![
        Act::Create("one", 8),
        Act::Settle,
        Act::Write("one", blocks(0, 2)),
        Act::Write("one", blocks(1, 3)),
        Act::Settle,
        Act::Checkpoint,
        Act::Write("one", blocks(1, 1)),
        Act::Write("one", blocks(6, 2)),
        Act::Turns(1),
        Act::Read("one", blocks(6, 2)),
        Act::Read("one", blocks(0, 8)),
        Act::Settle,
        Act::Write("one", blocks(2, 2)),
        Act::Rest,
    ];
    Workload { setup: small(), script }
}

/// Any bytes: parts of blocks, blocks in part and whole, one byte, the same bytes twice in flight.
fn unaligned_writes() -> Workload {
    let script = vec![
        Act::Create("one", 8),
        Act::Settle,
        Act::Write("one", blocks(0, 3)),
        Act::Settle,
        Act::Write("one", 100..4096),
        Act::Turns(2),
        Act::Write("one", 4095..4097),
        Act::Turns(2),
        Act::Write("one", 100..5000),
        Act::Checkpoint,
        Act::Write("one", 4000..9000),
        Act::Write("one", 20_000..20_001),
        Act::Settle,
        Act::Write("one", 1..2),
        Act::Rest,
    ];
    Workload { setup: small(), script }
}

/// What was written is freed and zeroed, and written again where it was freed.
fn discards_and_zeroes() -> Workload {
    let script = vec![
        Act::Create("one", 16),
        Act::Settle,
        Act::Write("one", blocks(0, 3)),
        Act::Write("one", blocks(10, 2)),
        Act::Checkpoint,
        Act::Settle,
        Act::Discard("one", blocks(1, 9)),
        Act::Zero("one", 100..9000, true),
        Act::Checkpoint,
        Act::Write("one", blocks(2, 1)),
        Act::Zero("one", blocks(11, 1), false),
        Act::Discard("one", 0..5000),
        Act::Settle,
        Act::Checkpoint,
        Act::Rest,
    ];
    Workload { setup: small(), script }
}

/// A volume shrinks, also through what was written, and grows again: what was cut off is zeroes.
fn resizes() -> Workload {
    let script = vec![
        Act::Create("one", 8),
        Act::Settle,
        Act::Write("one", blocks(2, 4)),
        Act::Settle,
        Act::Resize("one", 4),
        Act::Settle,
        Act::Write("one", blocks(3, 1)),
        Act::Checkpoint,
        Act::Settle,
        Act::Resize("one", 12),
        Act::Settle,
        Act::Write("one", blocks(9, 2)),
        Act::Settle,
        Act::Resize("one", 3),
        Act::Checkpoint,
        Act::Rest,
    ];
    Workload { setup: small(), script }
}

/// Volumes come and go, with content, on two lanes.
fn volumes() -> Workload {
    let script = vec![
        Act::Create("one", 4),
        Act::Create("two", 600),
        Act::Settle,
        Act::Write("one", blocks(0, 2)),
        Act::Write("two", blocks(598, 2)),
        Act::Settle,
        Act::Checkpoint,
        Act::Delete("two"),
        Act::Create("three", 4),
        Act::Settle,
        Act::Write("three", blocks(1, 1)),
        Act::Checkpoint,
        Act::Delete("one"),
        Act::Create("one", 2),
        Act::Settle,
        Act::Write("one", 0..1),
        Act::Rest,
    ];
    Workload { setup: Setup { lanes: 2, reactors_max: 2, messages_max: 1, ..small() }, script }
}

/// Hosts register, reserve and preempt each other while they write, around consistency points.
fn reservations() -> Workload {
    let reserve = |host, deed| Act::Reserve("one", host, deed);
    let script = vec![
        Act::Create("one", 4),
        Act::Settle,
        Act::Checkpoint,
        Act::Settle,
        reserve(1, Deed::Register(true)),
        reserve(2, Deed::Register(true)),
        Act::Settle,
        // Nothing but reservations has changed since the last one.
        Act::Checkpoint,
        Act::Settle,
        reserve(1, Deed::Acquire(WriteExclusive)),
        Act::Write("one", blocks(0, 1)),
        Act::Checkpoint,
        Act::Write("one", blocks(0, 1)),
        reserve(2, Deed::Preempt(1, WriteExclusive)),
        Act::Write("one", blocks(0, 2)),
        Act::Settle,
        Act::Checkpoint,
        reserve(1, Deed::Register(false)),
        Act::Turns(2),
        Act::Write("one", blocks(1, 1)),
        reserve(2, Deed::Release(WriteExclusive)),
        Act::Write("one", blocks(1, 1)),
        Act::Settle,
        reserve(1, Deed::Acquire(WriteExclusiveAll)),
        reserve(2, Deed::Clear),
        Act::Rest,
    ];
    Workload { setup: small(), script }
}

/// A disk joins the pool while it is written to.
fn a_disk_joins() -> Workload {
    let script = vec![
        Act::Create("one", 8),
        Act::Settle,
        Act::Write("one", blocks(0, 2)),
        Act::Settle,
        Act::Grow,
        Act::Write("one", blocks(2, 2)),
        Act::Settle,
        Act::Checkpoint,
        Act::Write("one", blocks(0, 1)),
        Act::Rest,
    ];
    Workload { setup: Setup { has_spare: true, ..small() }, script }
}

/// A ring that wraps several times: consistency points come because it is full, and records of earlier laps lie around.
fn a_ring_that_wraps() -> Workload {
    let mut script = vec![Act::Create("one", 4), Act::Settle];
    for round in 0..6 {
        script.extend([Act::Write("one", blocks(round % 3, 1)), Act::Write("one", 700..1500)]);
        script.extend((round % 2 == 1).then_some(Act::Settle));
    }
    script.push(Act::Rest);
    Workload { setup: Setup { ring_blocks: 6, pending_blocks: 2, ..small() }, script }
}

/// Disks tear by sectors of 512 bytes, persistent memory by words: superblocks and records are torn everywhere.
fn torn_everywhere() -> Workload {
    let script = vec![
        Act::Create("one", 4),
        Act::Settle,
        Act::Write("one", 100..4096),
        Act::Turns(1),
        Act::Write("one", 10..700),
        Act::Turns(1),
        Act::Write("one", blocks(1, 1)),
        Act::Checkpoint,
        Act::Settle,
        Act::Write("one", 600..800),
        Act::Rest,
    ];
    Workload { setup: Setup { sector_bytes: 512, is_pmem: true, cache_blocks_max: 4, ..small() }, script }
}

/// The log outlives its process, not the power: flushes, FUA and consistency points last, nothing else must.
fn a_log_that_power_takes() -> Workload {
    let script = vec![
        Act::Create("one", 8),
        Act::Settle,
        Act::Checkpoint,
        Act::Settle,
        Act::Write("one", blocks(0, 2)),
        Act::Settle,
        Act::Flush("one"),
        Act::Write("one", blocks(1, 2)),
        Act::Settle,
        Act::WriteDurably("one", 5000..6000),
        Act::Write("one", blocks(6, 1)),
        Act::Settle,
        Act::Checkpoint,
        Act::Write("one", blocks(6, 1)),
        Act::Rest,
    ];
    Workload { setup: Setup { ring_blocks: 16, sector_bytes: 4096, ..Setup::plain(DurabilityClass::Process) }, script }
}

#[test]
fn aligned_writes_survive_every_crash() {
    all_is_well(&aligned_writes());
}

#[test]
fn unaligned_writes_survive_every_crash() {
    all_is_well(&unaligned_writes());
}

#[test]
fn discards_and_zeroes_survive_every_crash() {
    all_is_well(&discards_and_zeroes());
}

#[test]
fn resizes_survive_every_crash() {
    all_is_well(&resizes());
}

#[test]
fn volumes_survive_every_crash() {
    all_is_well(&volumes());
}

#[test]
fn reservations_survive_every_crash() {
    all_is_well(&reservations());
}

#[test]
fn a_pool_survives_every_crash_while_a_disk_joins() {
    all_is_well(&a_disk_joins());
}

#[test]
fn a_ring_that_wraps_survives_every_crash() {
    all_is_well(&a_ring_that_wraps());
}

#[test]
fn torn_superblocks_and_records_are_survived() {
    all_is_well(&torn_everywhere());
}

#[test]
fn what_was_flushed_survives_every_crash_of_a_log_that_power_takes() {
    all_is_well(&a_log_that_power_takes());
}

/// The tests tested: each of these planted bugs is found, by this workload and most by others as well. The bugs of the bank that are
/// missing here need a fault that is no crash, a full pool, or a full mailbox.
#[cfg(feature = "planted-bugs")]
#[test]
fn planted_bugs_are_found() {
    use twinlog::base::planted;
    type Bug = (&'static str, fn() -> Workload);
    let table: [Bug; 24] = [
        ("acknowledge-early", aligned_writes),
        ("applied-too-far", unaligned_writes),
        ("commit-without-flush", unaligned_writes),
        ("cp-waiters-forgotten", a_log_that_power_takes),
        ("delete-not-in-cp", volumes),
        ("discard-a-block-too-long", discards_and_zeroes),
        ("durable-before-persisted", discards_and_zeroes),
        ("edge-not-merged", unaligned_writes),
        ("flush-ignored", a_log_that_power_takes),
        ("frozen-before-active", a_ring_that_wraps),
        ("fua-ignored", a_log_that_power_takes),
        ("list-blocks-leak", a_disk_joins),
        ("object-id-reused", volumes),
        ("read-unstable", aligned_writes),
        ("reap-leaks-nodes", volumes),
        ("record-body-not-checked", torn_everywhere),
        ("record-position-not-compared", a_ring_that_wraps),
        ("recovery-does-not-advance", unaligned_writes),
        ("replay-skips-discards", discards_and_zeroes),
        ("replay-skips-reservations", reservations),
        ("reservation-not-in-cp", reservations),
        ("resize-keeps-tail", resizes),
        ("resize-not-in-cp", resizes),
        ("superblock-volatile", torn_everywhere),
    ];
    for (bug, workload) in table {
        planted::choose(bug);
        let result = every_crash_point(&workload());
        planted::choose("");
        let finding = result.expect_err(bug);
        println!("{bug}: {finding}");
    }
}
