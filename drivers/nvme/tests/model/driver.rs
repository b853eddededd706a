//! What the driver does when things go wrong, one thing at a time.

use crate::support::{Rig, TURNS_MAX, expect_whole};
use std::time::Duration;
use twinlog_device::{
    BlockBuf, BlockCompletion, BlockDevice, BlockRange, DeviceErrorKind, DeviceHealth, Persistence, Token,
};
use twinlog_nvme::{
    Controller, ControllerOptions, ControllerState, Failure, OpenError, Unsupported, Violation,
    model::{Mischief, ModelConfig, ModelNamespace},
};

const ALWAYS: u64 = 1000;

fn rig(config: ModelConfig) -> Rig {
    let mut rig = Rig::new(config, 256);
    assert_eq!(rig.start(ControllerOptions::default()), ControllerState::Live);
    rig.open(1);
    rig
}

fn usual() -> Rig {
    rig(ModelConfig::new(1))
}

/// Queues a read of one block and a write of one block.
fn begin_both(rig: &mut Rig) {
    let target = rig.pool.allocate_many(1).expect("free blocks");
    let source = rig.pool.allocate_zeroed().expect("free blocks").freeze();
    rig.disks[0].read(Token(1), 5, target);
    rig.disks[0].write(Token(2), 6, vec![source], Persistence::Durable);
}

fn kinds(rig: &mut Rig, count: usize) -> Vec<Result<(), DeviceErrorKind>> {
    let completions = rig.collect(0, count);
    results(completions)
}

/// What operations came to, in the order of their tokens.
fn results(mut completions: Vec<BlockCompletion>) -> Vec<Result<(), DeviceErrorKind>> {
    completions.sort_by_key(|completion| completion.token);
    completions.into_iter().map(|completion| completion.result.map_err(|error| error.kind)).collect()
}

#[test]
fn a_controller_says_what_it_is() {
    let mut config = ModelConfig::new(3);
    config.namespaces = vec![
        ModelNamespace { id: 2, block_count: 100, lba_shift: 9 },
        ModelNamespace { id: 5, block_count: 200, lba_shift: 12 },
        ModelNamespace { id: 900, block_count: 10, lba_shift: 13 },
    ];
    let mut rig = Rig::new(config, 64);
    let options = ControllerOptions { disk_count: 2, ..ControllerOptions::default() };
    assert_eq!(rig.start(options), ControllerState::Live);
    let identity = rig.controller().identity().expect("it was identified");
    assert_eq!((identity.serial.as_str(), identity.model.as_str()), ("MODEL-0001", "Model controller"));
    let namespaces = rig.controller().namespaces();
    assert_eq!(namespaces.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 5, 900]);
    assert_eq!(namespaces[2].1, Err(Unsupported::Format));
    let open = |rig: &Rig, id| rig.controller().open(id, rig.time.clone()).map(drop);
    assert!(matches!(open(&rig, 3), Err(OpenError::NoNamespace(_, 3))));
    assert!(matches!(open(&rig, 900), Err(OpenError::Namespace(_, 900, Unsupported::Format))));
    rig.open(2);
    rig.open(5);
    let info = rig.disks.iter().map(|disk| disk.info().clone()).collect::<Vec<_>>();
    assert_eq!((info[0].name.as_str(), info[0].block_count, info[0].sector_bytes), ("MODEL-0001/2", 100, 512));
    assert_eq!((info[1].name.as_str(), info[1].block_count, info[1].sector_bytes), ("MODEL-0001/5", 200, 4096));
    assert!(matches!(open(&rig, 2), Err(OpenError::NoSeat(_, 2))));
    rig.disks.pop();
    assert!(open(&rig, 2).is_ok(), "a place that was left is free");
    expect_whole(rig);
}

#[test]
fn impossible_controllers_are_refused() {
    let rig = Rig::new(ModelConfig { queue_entries_max: 1, ..ModelConfig::new(0) }, 16);
    let started = Controller::start(rig.model.function(), &[&rig.pool], ControllerOptions::default(), rig.time.get());
    let refused = OpenError::Controller(String::new(), Failure::Unsupported(Unsupported::QueueSize));
    assert_eq!(started.err().map(|error| error.to_string()).unwrap_or_default(), format!("0000:00:00.0{refused}"));
    let gone = Rig::new(ModelConfig::new(0), 16);
    gone.model.remove(false);
    let started =
        Controller::start(gone.model.function(), &[&gone.pool], ControllerOptions::default(), gone.time.get());
    assert!(started.is_err());
}

#[test]
fn a_command_without_an_answer_is_aborted_and_its_neighbours_go_on() {
    let mut rig = usual();
    rig.model.set_mischief(Mischief { late: ALWAYS, ..Mischief::default() });
    rig.step = Duration::from_millis(500);
    begin_both(&mut rig);
    rig.disks[0].poll(&mut Vec::new());
    rig.turn();
    rig.model.set_mischief(Mischief::default());
    rig.disks[0].poll(&mut Vec::new());
    let oldest = rig.disks[0].health().expect("a controller can say").oldest;
    assert_eq!(oldest, rig.step, "it has had both since the turn before");
    let results = kinds(&mut rig, 2);
    let timed_out = Err(DeviceErrorKind::Os(libc::ETIMEDOUT));
    assert!(results.iter().all(|result| result.is_ok() || *result == timed_out) && results.contains(&timed_out));
    assert_eq!(rig.controller().reset_count(), 0, "an abort is enough");
    assert!(rig.disks[0].health().expect("a controller can say").timeout_count > 0);
    expect_whole(rig);
}

#[test]
fn a_command_that_cannot_be_aborted_costs_a_reset() {
    let mut rig = usual();
    rig.step = Duration::from_millis(100);
    rig.model.set_mischief(Mischief { no_answer: ALWAYS, ..Mischief::default() });
    begin_both(&mut rig);
    // Both are given to the controller before it behaves again.
    for _ in 0..3 {
        rig.disks[0].poll(&mut Vec::new());
        rig.turn();
    }
    rig.model.set_mischief(Mischief::default());
    assert_eq!(kinds(&mut rig, 2), [Err(DeviceErrorKind::Os(libc::ETIMEDOUT)); 2]);
    assert_eq!(rig.controller().reset_count(), 1);
    begin_both(&mut rig);
    assert_eq!(kinds(&mut rig, 2), [Ok(()); 2], "it serves again");
    expect_whole(rig);
}

#[test]
fn after_a_fatal_status_everything_is_given_again() {
    let mut rig = usual();
    begin_both(&mut rig);
    rig.disks[0].poll(&mut Vec::new());
    rig.model.fail();
    rig.step = Duration::from_millis(20);
    assert_eq!(kinds(&mut rig, 2), [Ok(()); 2]);
    assert_eq!(rig.controller().reset_count(), 1);
    expect_whole(rig);
}

#[test]
fn a_controller_that_fails_again_and_again_is_given_up() {
    let mut rig = usual();
    rig.step = Duration::from_millis(20);
    rig.model.set_mischief(Mischief { fatal: 100, ..Mischief::default() });
    for _ in 0..TURNS_MAX {
        begin_both(&mut rig);
        let results = kinds(&mut rig, 2);
        if results == [Err(DeviceErrorKind::Gone); 2] {
            break;
        }
        assert_eq!(results, [Ok(()); 2], "until then everything is given again");
    }
    assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Unstable));
    expect_whole(rig);
}

#[test]
fn a_controller_that_is_gone_ends_everything() {
    for noticed in [false, true] {
        let mut rig = usual();
        begin_both(&mut rig);
        rig.model.remove(noticed);
        rig.step = Duration::from_millis(20);
        assert_eq!(kinds(&mut rig, 2), [Err(DeviceErrorKind::Gone); 2]);
        rig.disks[0].flush(Token(3));
        assert_eq!(kinds(&mut rig, 1), [Err(DeviceErrorKind::Gone)], "and everything later");
        assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Gone));
        expect_whole(rig);
    }
}

#[test]
fn a_controller_that_does_not_stop_is_stopped_by_its_function() {
    let mut rig = usual();
    rig.model.set_mischief(Mischief { never_stops: ALWAYS, ..Mischief::default() });
    rig.step = Duration::from_millis(20);
    begin_both(&mut rig);
    rig.disks[0].poll(&mut Vec::new());
    rig.model.fail();
    assert_eq!(kinds(&mut rig, 2), [Ok(()); 2]);
    expect_whole(rig);
}

#[test]
fn what_cannot_be_stopped_keeps_its_memory() {
    let mut rig = usual();
    let never = Mischief { never_stops: ALWAYS, no_reset: ALWAYS, no_answer: ALWAYS, ..Mischief::default() };
    rig.model.set_mischief(never);
    rig.step = Duration::from_millis(50);
    let target = rig.pool.allocate_many(1).expect("free blocks");
    let address = target[0].as_ptr();
    rig.disks[0].read(Token(1), 5, target);
    let completion = rig.one(0);
    let kind = completion.result.as_ref().map_err(|error| error.kind);
    assert_eq!(kind, Err(DeviceErrorKind::Gone));
    assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Unstoppable));
    assert_eq!(completion.blocks.len(), 1, "the reader gets a block");
    assert_ne!(completion.blocks[0].as_ptr(), address, "but not the one that the controller has");
    drop(completion);
    rig.close();
    assert_eq!(rig.pool.free_count(), rig.pool.block_count() - 1, "that one is never used again");
}

#[test]
fn broken_protocol_fails_the_controller() {
    for (mischief, violation) in [
        (Mischief { foreign_queue: ALWAYS, ..Mischief::default() }, Violation::ForeignQueue),
        (Mischief { duplicate: ALWAYS, ..Mischief::default() }, Violation::UnknownCommand),
        (Mischief { wrong_head: ALWAYS, ..Mischief::default() }, Violation::QueueHead),
    ] {
        let mut rig = usual();
        rig.model.set_mischief(mischief);
        rig.step = Duration::from_millis(20);
        begin_both(&mut rig);
        let results = kinds(&mut rig, 2);
        assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(DeviceErrorKind::Gone))));
        rig.disks[0].flush(Token(3));
        assert_eq!(kinds(&mut rig, 1), [Err(DeviceErrorKind::Gone)]);
        assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Violation(violation)));
        expect_whole(rig);
    }
}

#[test]
fn a_pause_of_the_process_costs_nothing() {
    let mut rig = usual();
    begin_both(&mut rig);
    rig.disks[0].poll(&mut Vec::new());
    for _ in 0..10 {
        rig.model.turn();
    }
    rig.time.set(rig.time.get() + Duration::from_secs(3600));
    assert_eq!(kinds(&mut rig, 2), [Ok(()); 2]);
    assert_eq!(rig.controller().reset_count(), 0);
    expect_whole(rig);
}

#[test]
fn what_an_earlier_process_left_is_stopped_before_memory_is_mapped() {
    let mut rig = rig(ModelConfig { delay_max: 3, ..ModelConfig::new(2) });
    let targets = rig.pool.allocate_many(8).expect("free blocks");
    for (token, target) in (0..).zip(targets) {
        rig.disks[0].read(Token(token), token, vec![target]);
    }
    rig.disks[0].poll(&mut Vec::new());
    rig.turn();
    // The process ends without a word.
    let left = (std::mem::take(&mut rig.disks), rig.controller.take());
    std::mem::forget(left);
    assert_eq!(rig.start(ControllerOptions::default()), ControllerState::Live);
    rig.open(1);
    rig.disks[0].flush(Token(1));
    assert_eq!(kinds(&mut rig, 1), [Ok(())]);
    rig.expect_no_fault();
}

#[test]
fn an_answer_to_an_earlier_command_answers_nothing() {
    let mut rig = usual();
    let target = rig.pool.allocate_many(1).expect("free blocks");
    rig.disks[0].read(Token(1), 5, target);
    let target = rig.one(0).blocks;
    rig.model.set_mischief(Mischief { stale: ALWAYS, ..Mischief::default() });
    // It has the same slot.
    rig.disks[0].read(Token(2), 6, target);
    assert_eq!(kinds(&mut rig, 1), [Err(DeviceErrorKind::Gone)]);
    let unknown = Failure::Violation(Violation::UnknownCommand);
    assert_eq!(rig.controller().state(), ControllerState::Failed(unknown));
    expect_whole(rig);
}

#[test]
fn a_list_of_namespaces_that_does_not_ascend_is_refused() {
    let mut config = ModelConfig::new(1);
    let namespace = |id| ModelNamespace { id, block_count: 100, lba_shift: 9 };
    for ids in [[5, 2], [3, 3]] {
        config.namespaces = ids.map(namespace).to_vec();
        let state = Rig::new(config.clone(), 16).start(ControllerOptions::default());
        assert_eq!(state, ControllerState::Failed(Failure::Violation(Violation::NamespaceOrder)));
    }
}

/// Eight reads are under way when something happens to the controller: their blocks come back when it has stopped, and none is written later.
fn expect_stopped_first(happens: impl Fn(&Rig), failure: Failure) {
    for seed in 0..20 {
        let mut rig = rig(ModelConfig { delay_max: 50, ..ModelConfig::new(seed) });
        let targets = rig.pool.allocate_many(8).expect("free blocks");
        for (token, target) in (0..).zip(targets) {
            rig.disks[0].read(Token(token), token, vec![target]);
        }
        rig.disks[0].poll(&mut Vec::new());
        rig.turn();
        rig.step = Duration::from_millis(200);
        happens(&rig);
        let completions = rig.collect(0, 8);
        assert_eq!(rig.controller().state(), ControllerState::Failed(failure));
        (0..60).for_each(|_| rig.turn());
        drop(completions);
        expect_whole(rig);
    }
}

#[test]
fn what_does_not_answer_any_more_is_stopped_before_its_blocks_come_back() {
    expect_stopped_first(|rig| rig.model.remove(false), Failure::Gone);
}

#[test]
fn what_the_kernel_wants_back_is_stopped_before_its_blocks_come_back() {
    expect_stopped_first(|rig| rig.model.ask_back(), Failure::Gone);
}

#[test]
fn what_is_not_ready_is_stopped_before_its_blocks_come_back() {
    let happens = |rig: &Rig| {
        rig.model.hide_ready();
        rig.controller().poll(rig.time.get());
        rig.controller().shut_down(rig.time.get());
    };
    expect_stopped_first(happens, Failure::ShutDown);
}

#[test]
fn a_health_event_is_seen() {
    let mut rig = usual();
    let health = rig.controller().health().expect("the log was read");
    assert!(!health.is_critical() && health.media_errors == 2 && health.spare_percent == 100);
    for _ in 0..2 {
        rig.model.warn();
        for _ in 0..100 {
            rig.disks[0].poll(&mut Vec::new());
            rig.turn();
        }
        let health = rig.controller().health().expect("the log was read");
        assert!(health.is_critical() && health.spare_percent == 3);
    }
    expect_whole(rig);
}

/// Activates a firmware under a read and a write, for so many turns of half a second; the controller says that it takes so long at most. What both came to.
fn activate(rig: &mut Rig, turns: u64) -> Vec<Result<(), DeviceErrorKind>> {
    rig.step = Duration::from_millis(500);
    rig.model.activate_firmware(turns);
    rig.turn();
    begin_both(rig);
    kinds(rig, 2)
}

#[test]
fn nothing_is_late_while_a_firmware_is_activated() {
    let mut rig = rig(ModelConfig { activation_units: 300, ..ModelConfig::new(1) });
    for _ in 0..2 {
        // Twice as long as a command may take with the abort that follows.
        assert_eq!(activate(&mut rig, 50), [Ok(()); 2]);
        let health = rig.disks[0].health().expect("a controller can say");
        assert_eq!((health.trouble, health.timeout_count, health.reset_count), (None, 0, 0));
    }
    rig.model.activate_firmware(50);
    for _ in 0..4 {
        rig.disks[0].poll(&mut Vec::new());
        rig.turn();
    }
    let trouble = rig.disks[0].health().and_then(|health| health.trouble).expect("it has paused");
    assert!(trouble.contains("it has paused"), "{trouble}");
    begin_both(&mut rig);
    assert_eq!(kinds(&mut rig, 2), [Ok(()); 2], "what came meanwhile is given to it afterwards");
    assert_eq!(rig.controller().reset_count(), 0);
    expect_whole(rig);
}

#[test]
fn a_pause_longer_than_said_is_waited_for_as_long_as_a_command() {
    // It says half a second, or nothing, and takes 11.
    for activation_units in [5, 0] {
        let mut rig = rig(ModelConfig { activation_units, ..ModelConfig::new(1) });
        assert_eq!(activate(&mut rig, 22), [Ok(()); 2]);
        assert_eq!(rig.controller().reset_count(), 0);
        expect_whole(rig);
    }
}

#[test]
fn a_controller_that_pauses_without_an_end_whenever_it_serves_is_given_up() {
    let mut rig = rig(ModelConfig { activation_units: u16::MAX, ..ModelConfig::new(1) });
    rig.step = Duration::from_millis(500);
    let mut was_live = false;
    for _ in 0..TURNS_MAX {
        let is_live = rig.controller().state() == ControllerState::Live;
        if is_live && !was_live {
            rig.model.activate_firmware(u64::MAX);
        }
        was_live = is_live;
        rig.turn();
        rig.disks[0].poll(&mut Vec::new());
    }
    assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Unstable));
    expect_whole(rig);
}

#[test]
fn a_pause_without_an_end_costs_a_reset_and_what_waits_is_done() {
    // It says 30 s, or too little, or nothing, or longer than anybody waits.
    for activation_units in [300, 5, 0, u16::MAX] {
        let mut rig = rig(ModelConfig { activation_units, ..ModelConfig::new(2) });
        assert_eq!(activate(&mut rig, u64::MAX), [Ok(()); 2]);
        assert_eq!(rig.controller().reset_count(), 1);
        assert_eq!(rig.disks[0].health().expect("a controller can say").timeout_count, 0);
        let firmware = rig.controller().identity().expect("it was identified").firmware;
        assert_eq!(firmware, "1.1", "the same controller, with another firmware");
        expect_whole(rig);
    }
}

/// What the disk says once it has heard all of the controller.
fn health(rig: &mut Rig) -> DeviceHealth {
    for _ in 0..100 {
        rig.disks[0].poll(&mut Vec::new());
        rig.turn();
    }
    rig.disks[0].health().expect("a controller can say")
}

#[test]
fn a_pause_that_goes_on_over_a_reset_is_waited_for() {
    let mut rig = rig(ModelConfig { activation_units: 300, pauses_over_resets: true, ..ModelConfig::new(1) });
    // It says 30 s and takes 55 s: after the reset it is ready, and given nothing.
    assert_eq!(activate(&mut rig, 110), [Ok(()); 2]);
    assert_eq!(rig.controller().reset_count(), 1);
    // An earlier process left it in a pause, longer than an admin command may take.
    rig.model.activate_firmware(25);
    rig.turn();
    assert_eq!(rig.start(ControllerOptions::default()), ControllerState::Live);
    assert_eq!(rig.controller().reset_count(), 0);
    expect_whole(rig);
}

#[test]
fn a_pause_without_an_end_that_goes_on_over_resets_fails_the_controller() {
    for activation_units in [300, 0, u16::MAX] {
        let config = ModelConfig { activation_units, pauses_over_resets: true, ..ModelConfig::new(2) };
        let mut rig = rig(config);
        assert_eq!(activate(&mut rig, u64::MAX), [Err(DeviceErrorKind::Gone); 2]);
        assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Unstable));
        expect_whole(rig);
    }
}

/// Pauses for nine seconds and goes on for some milliseconds, again and again, until the controller is reset once more. What two operations came to.
fn flap(rig: &mut Rig, milliseconds: u32) -> Vec<Result<(), DeviceErrorKind>> {
    let reset_count = rig.controller().reset_count();
    let mut completions = Vec::new();
    for _ in 0..200 {
        rig.model.activate_firmware(18);
        rig.turn();
        rig.step = Duration::from_millis(500);
        for _ in 0..18 {
            rig.controller().poll(rig.time.get());
            rig.disks[0].poll(&mut completions);
            rig.turn();
        }
        rig.step = Duration::from_millis(1);
        for _ in 0..milliseconds {
            rig.controller().poll(rig.time.get());
            rig.disks[0].poll(&mut completions);
            rig.turn();
        }
        if rig.controller().reset_count() > reset_count {
            rig.model.set_mischief(Mischief::default());
            rig.step = Duration::from_millis(500);
            completions.append(&mut rig.collect(0, 2 - completions.len()));
            return results(completions);
        }
    }
    panic!("pauses that never end for long");
}

#[test]
fn pauses_again_and_again_without_an_answer_cost_a_reset() {
    // The first is seen to go on once in a while: what it answers is always from before the latest pause. The second can be asked.
    for milliseconds in [1, 5] {
        let mut rig = rig(ModelConfig { delay_max: 0, ..ModelConfig::new(1) });
        rig.model.set_mischief(Mischief { no_answer: ALWAYS, ..Mischief::default() });
        begin_both(&mut rig);
        rig.disks[0].poll(&mut Vec::new());
        rig.turn();
        rig.model.set_mischief(Mischief::default());
        // Where only the identity was waited for, nothing has timed out.
        let end = if milliseconds == 1 { Ok(()) } else { Err(DeviceErrorKind::Os(libc::ETIMEDOUT)) };
        assert_eq!(flap(&mut rig, milliseconds), [end; 2]);
        expect_whole(rig);
    }
}

#[test]
fn pauses_again_and_again_while_it_is_brought_up_cost_another_reset() {
    let mut rig = usual();
    rig.model.set_mischief(Mischief { no_answer: ALWAYS, ..Mischief::default() });
    begin_both(&mut rig);
    rig.model.fail();
    rig.step = Duration::from_millis(20);
    for _ in 0..40 {
        rig.disks[0].poll(&mut Vec::new());
        rig.turn();
    }
    assert_eq!((rig.controller().state(), rig.controller().reset_count()), (ControllerState::Starting, 1));
    assert_eq!(flap(&mut rig, 1), [Ok(()); 2]);
    expect_whole(rig);
}

#[test]
fn a_firmware_that_makes_writes_volatile_fails_the_controller() {
    // It pauses for 5 s; so shortly that only its announcement is seen; for ever, so that it is reset.
    for turns in [10, 0, u64::MAX] {
        let mut rig = rig(ModelConfig { has_write_cache: false, ..ModelConfig::new(1) });
        for _ in 0..20 {
            rig.disks[0].poll(&mut Vec::new());
            rig.turn();
        }
        rig.model.change(|config| config.has_write_cache = true);
        rig.step = Duration::from_millis(500);
        rig.model.activate_firmware(turns);
        rig.turn();
        if turns == 0 {
            rig.turn();
        }
        begin_both(&mut rig);
        assert_eq!(kinds(&mut rig, 2), [Err(DeviceErrorKind::Gone); 2], "{turns} turns");
        assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Changed));
        assert_eq!(rig.model.performed_count(), 0, "nothing is given to a firmware that is not known");
        expect_whole(rig);
    }
}

/// What it had when it paused is answered by its new firmware, and before that has said what it is, it fails.
#[test]
fn an_answer_of_a_firmware_that_is_not_known_does_not_count_after_a_reset() {
    let mut late_count = 0;
    for turns in 0..60 {
        let mut rig = rig(ModelConfig { has_write_cache: false, ..ModelConfig::new(turns) });
        rig.step = Duration::from_millis(20);
        begin_both(&mut rig);
        let mut completions = Vec::new();
        rig.disks[0].poll(&mut completions);
        rig.model.change(|config| config.has_write_cache = true);
        rig.model.activate_firmware(10);
        let mut is_late = false;
        for turn in 0..400 {
            if turn == 3 {
                is_late = rig.model.performed_count() == 0;
            }
            if turn == turns {
                rig.model.fail();
            }
            rig.turn();
            rig.disks[0].poll(&mut completions);
        }
        assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Changed), "fatal in turn {turns}");
        assert_eq!(completions.len(), 2);
        let are_errors = completions.iter().all(|completion| completion.result.is_err());
        assert!(are_errors || !is_late, "fatal in turn {turns}: {completions:?}");
        late_count += u32::from(is_late);
        drop(completions);
        expect_whole(rig);
    }
    assert!(late_count > 10, "{late_count} were answered after the pause");
}

#[test]
fn a_firmware_that_comes_while_the_controller_is_brought_up_is_known_before_it_is_used() {
    for turns in 0..60 {
        let mut rig = rig(ModelConfig { has_write_cache: false, ..ModelConfig::new(turns) });
        rig.step = Duration::from_millis(20);
        begin_both(&mut rig);
        rig.model.fail();
        let mut completions = Vec::new();
        for _ in 0..turns {
            rig.disks[0].poll(&mut completions);
            rig.turn();
        }
        rig.model.change(|config| config.has_write_cache = true);
        rig.model.activate_firmware(5);
        rig.turn();
        let performed_count = rig.model.performed_count();
        for _ in 0..200 {
            rig.disks[0].poll(&mut completions);
            rig.turn();
        }
        assert_eq!(completions.len(), 2);
        // What was with the controller is performed by the new firmware.
        let succeeded_count = completions.drain(..).filter(|completion| completion.result.is_ok()).count() as u64;
        assert!(succeeded_count <= performed_count, "after {turns} turns, {succeeded_count} by the new firmware");
        assert_eq!(rig.controller().state(), ControllerState::Failed(Failure::Changed), "after {turns} turns");
        expect_whole(rig);
    }
}

#[test]
fn a_firmware_that_can_do_more_can_be_taken_back() {
    let mut rig = rig(ModelConfig::new(1));
    for (transfer_shift_max, has_write_cache) in [(9, false), (8, true), (10, true)] {
        rig.model.change(|config| {
            (config.transfer_shift_max, config.has_write_cache) = (transfer_shift_max, has_write_cache);
        });
        assert_eq!(activate(&mut rig, 10), [Ok(()); 2]);
        let identity = rig.controller().identity().expect("it was identified");
        assert_eq!((identity.transfer_blocks_max, identity.has_write_cache), (256, true), "as the disk was told");
    }
    let identity = rig.controller().identity().expect("it was identified");
    assert_eq!((identity.firmware.as_str(), rig.controller().reset_count()), ("1.3", 0));
    expect_whole(rig);
}

#[test]
fn a_disk_tells_how_it_is() {
    let mut rig = usual();
    let well = health(&mut rig);
    assert_eq!((well.trouble, well.warnings, well.error_count, well.change_count), (None, Vec::new(), 0, 0));
    let wear = well.wear.expect("the log was read");
    assert_eq!((wear.temperature_celsius, wear.spare_percent, wear.media_errors), (37, 100, 2));
    rig.model.warn();
    assert_eq!(health(&mut rig).warnings, ["its spare capacity is below its threshold"]);
    for count in 1..=2 {
        rig.model.change_namespaces();
        assert_eq!(health(&mut rig).change_count, count);
    }
    begin_both(&mut rig);
    rig.model.remove(true);
    rig.step = Duration::from_millis(20);
    kinds(&mut rig, 2);
    let gone = health(&mut rig);
    assert_eq!((gone.trouble.as_deref(), gone.error_count), (Some("the controller is gone"), 2));
    let newest = gone.newest_error.expect("one was counted");
    assert_eq!((newest.device.as_str(), newest.kind), ("MODEL-0001/1", DeviceErrorKind::Gone));
    expect_whole(rig);
}

/// Who does not read what the first one is about hears of no further event of its type.
#[test]
fn events_that_come_together_are_all_looked_into() {
    let mut rig = usual();
    for count in 1..=3 {
        rig.model.change_namespaces();
        rig.model.warn();
        assert_eq!(health(&mut rig).change_count, count);
    }
    expect_whole(rig);
}

#[test]
fn a_shut_down_controller_serves_nobody() {
    let mut rig = usual();
    begin_both(&mut rig);
    assert_eq!(kinds(&mut rig, 2), [Ok(()); 2]);
    rig.controller().shut_down(rig.time.get());
    rig.disks[0].flush(Token(1));
    assert_eq!(kinds(&mut rig, 1), [Err(DeviceErrorKind::Gone)]);
    let state = rig.settle(&rig.controller().clone());
    assert_eq!(state, ControllerState::Failed(Failure::ShutDown));
    expect_whole(rig);
}

#[test]
fn zeroes_are_written_without_data_however_many() {
    let mut config = ModelConfig::new(4);
    config.namespaces = vec![ModelNamespace { id: 1, block_count: 40_000, lba_shift: 9 }];
    let mut rig = rig(config);
    for block in [0, 9_000, 20_000] {
        let mut source = rig.pool.allocate_zeroed().expect("free blocks");
        source.fill(7);
        rig.disks[0].write(Token(block), block, vec![source.freeze()], Persistence::Volatile);
    }
    assert_eq!(kinds(&mut rig, 3), [Ok(()); 3]);
    // More than 65536 logical blocks: several commands.
    rig.disks[0].write_zeroes(Token(1), BlockRange { first: 1, count: 10_000 });
    assert_eq!(kinds(&mut rig, 1), [Ok(())]);
    for (block, expected) in [(0, 7), (9_000, 0), (20_000, 7)] {
        let target = rig.pool.allocate_many(1).expect("free blocks");
        rig.disks[0].read(Token(1), block, target);
        assert!(rig.one(0).blocks[0].iter().all(|&byte| byte == expected), "block {block}");
    }
    assert!(rig.model.performed_count() >= 5);
    expect_whole(rig);
}

#[test]
fn a_discard_is_cut_to_what_the_controller_takes() {
    let mut config = ModelConfig::new(4);
    config.namespaces = vec![ModelNamespace { id: 1, block_count: 1000, lba_shift: 9 }];
    config.discard_lbas_max = 100;
    let mut rig = rig(config);
    for block in [0, 1, 500, 999] {
        let mut source = rig.pool.allocate_zeroed().expect("free blocks");
        source.fill(7);
        rig.disks[0].write(Token(block), block, vec![source.freeze()], Persistence::Volatile);
    }
    assert_eq!(kinds(&mut rig, 4), [Ok(()); 4]);
    rig.disks[0].discard(Token(1), BlockRange { first: 1, count: 999 });
    assert_eq!(kinds(&mut rig, 1), [Ok(())]);
    for (block, expected) in [(0, 7), (1, 0), (500, 0), (999, 0)] {
        let target = rig.pool.allocate_many(1).expect("free blocks");
        rig.disks[0].read(Token(1), block, target);
        assert!(rig.one(0).blocks[0].iter().all(|&byte| byte == expected), "block {block}");
    }
    expect_whole(rig);
}

#[test]
fn a_flush_is_not_sent_where_nothing_is_volatile() {
    let mut config = ModelConfig::new(5);
    config.has_write_cache = false;
    let mut rig = rig(config);
    rig.disks[0].flush(Token(1));
    assert_eq!(kinds(&mut rig, 1), [Ok(())]);
    assert_eq!(rig.model.performed_count(), 0);
    expect_whole(rig);
}

#[test]
fn what_lies_side_by_side_is_one_piece_where_the_controller_knows_pieces() {
    for has_sgls in [false, true] {
        let mut rig = rig(ModelConfig { has_sgls, ..ModelConfig::new(8) });
        for count in [1, 2, 3, 7, 32] {
            let mut blocks = rig.pool.allocate_many(count).expect("free blocks");
            // In the order of their addresses, in the opposite one, and with a block between that is not used.
            for order in [0, 1, 2] {
                blocks.sort_by_key(|block| block.as_ptr() as usize);
                match order {
                    0 => {}
                    1 => blocks.reverse(),
                    _ => blocks.rotate_left(count / 2),
                }
                for (byte, block) in (1..).zip(&mut blocks) {
                    block.fill(byte);
                }
                let sources = blocks.into_iter().map(BlockBuf::freeze).collect();
                rig.disks[0].write(Token(1), 8, sources, Persistence::Volatile);
                assert_eq!(kinds(&mut rig, 1), [Ok(())]);
                let targets = rig.pool.allocate_many(count).expect("free blocks");
                rig.disks[0].read(Token(2), 8, targets);
                let completion = rig.one(0);
                completion.result.expect("they were written");
                blocks = completion.blocks;
                assert!((1..).zip(&blocks).all(|(byte, block)| block.iter().all(|&found| found == byte)));
            }
        }
        assert_eq!(rig.model.sgl_count() > 0, has_sgls);
        expect_whole(rig);
    }
}

#[test]
fn a_durable_write_is_flushed_where_fua_is_ignored() {
    for (model, ignores_fua, has_write_cache, is_flushed) in [
        ("QEMU NVMe Ctrl", false, true, true),
        ("QEMU NVMe Ctrl", false, false, false),
        ("Model controller", true, true, true),
        ("Model controller", true, false, false),
        ("Model controller", false, true, false),
    ] {
        let mut rig = Rig::new(ModelConfig { model, has_write_cache, ..ModelConfig::new(6) }, 64);
        let options = ControllerOptions { ignores_fua, ..ControllerOptions::default() };
        assert_eq!(rig.start(options), ControllerState::Live);
        rig.open(1);
        let source = rig.pool.allocate_zeroed().expect("free blocks").freeze();
        rig.disks[0].write(Token(1), 0, vec![source.clone()], Persistence::Volatile);
        rig.disks[0].write(Token(2), 1, vec![source], Persistence::Durable);
        assert_eq!(kinds(&mut rig, 2), [Ok(()), Ok(())]);
        assert_eq!(rig.model.performed_count(), 2 + u64::from(is_flushed));
        assert_eq!(health(&mut rig).flushes_writes, is_flushed, "it is known from outside");
        // The controller is the same after a reset.
        rig.model.fail();
        rig.disks[0].flush(Token(3));
        assert_eq!(kinds(&mut rig, 1), [Ok(())]);
        assert_eq!(health(&mut rig).flushes_writes, is_flushed);
        expect_whole(rig);
    }
}
