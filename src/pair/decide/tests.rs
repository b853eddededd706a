//! Every view, against the rules; and the failure table of `docs/pair.md`, line by line.

use super::{
    Action, Beat, Command, Deadline, Fence, Lease, Link, Mirror, Names, Open, Owner, Place, Portion, Replies, Row,
    View, Word, decide, table::ROWS,
};
use std::collections::BTreeSet;

/// Calls `check` with every view: 2 x 6 x 3 x 7 x 2 x 3 x 6 x 2 x 4 x 2 x 6 x 2 = 1 741 824.
fn for_every_view(mut check: impl FnMut(View)) {
    let mut with_rest = |view: View| {
        for &beat in Beat::ALL {
            for &fence in Fence::ALL {
                for &portion in Portion::ALL {
                    for &command in Command::ALL {
                        for &lease in Lease::ALL {
                            check(View { beat, fence, portion, command, lease, ..view });
                        }
                    }
                }
            }
        }
    };
    for &place in Place::ALL {
        for &owner in Owner::ALL {
            for &mirror in Mirror::ALL {
                for &open in Open::ALL {
                    for &replies in Replies::ALL {
                        for &link in Link::ALL {
                            for &word in Word::ALL {
                                with_rest(View { place, owner, mirror, open, replies, link, word, ..SERVING });
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A home node that serves in sync.
const SERVING: View = View {
    place: Place::Home,
    owner: Owner::Held,
    mirror: Mirror::Named,
    open: Open::Serving,
    replies: Replies::Mirrored,
    link: Link::Up,
    word: Word::Mirroring,
    beat: Beat::Alive,
    fence: Fence::NotTried,
    portion: Portion::Usable,
    command: Command::None,
    lease: Lease::Left,
};

/// Its partner.
const STANDBY: View = View {
    place: Place::Away,
    owner: Owner::Partner,
    open: Open::Closed,
    word: Word::Serving,
    lease: Lease::Ended,
    ..SERVING
};

/// A home node that serves alone, because its partner is gone.
const ALONE: View = View {
    mirror: Mirror::Stale,
    replies: Replies::Alone,
    link: Link::Cut,
    word: Word::Unknown,
    beat: Beat::Silent,
    ..SERVING
};

/// A standby that reaches its partner on no way.
const BEREFT: View = View { link: Link::Cut, word: Word::Unknown, beat: Beat::Silent, ..STANDBY };

/// A node that has just started.
const STARTED: View = View { owner: Owner::Unclaimed, open: Open::Closed, lease: Lease::Ended, ..SERVING };

fn is_active(open: Open) -> bool {
    matches!(open, Open::Opening | Open::Serving | Open::Draining)
}

/// The partner cannot write: it is fenced, or it has said at this epoch that it does not have the pool open and will not open it.
fn partner_is_out(view: &View) -> bool {
    let yielded = view.link == Link::Up && matches!(view.word, Word::Standby | Word::Mirroring);
    view.fence == Fence::Confirmed || yielded
}

#[test]
fn every_row_decides_some_view() {
    let mut unused: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(unused.len(), ROWS.len(), "names of rows are different");
    for_every_view(|view| {
        unused.remove(decide(&view).name());
    });
    assert_eq!(unused, BTreeSet::new());
}

#[test]
fn every_state_that_is_not_final_has_reason_deadline_and_next_step() {
    let names = Names { me: "a", partner: "b", pool: "p" };
    for row in ROWS {
        let is_resting = row.then == Action::Rest;
        assert_eq!(is_resting, row.until == Deadline::Final, "{}", row.name);
        for text in [names.fill(row.why), names.fill(row.next)] {
            assert!(text.len() >= 10 && !text.contains(['{', '}']) && !text.ends_with('.'), "{}: {text}", row.name);
        }
        let acts = !matches!(row.then, Action::Rest | Action::Wait | Action::Refuse);
        let at_once = matches!(row.until, Deadline::Now | Deadline::FenceLimit | Deadline::Work | Deadline::Detection);
        assert!(!acts || at_once, "{}: an action begins at once", row.name);
        if row.then == Action::Refuse {
            assert_eq!(row.until, Deadline::Retry, "{}: a refusal is looked at again", row.name);
        }
    }
}

/// Who is told that only one log has everything starts with giving up what the other one has.
#[test]
fn no_log_is_called_the_only_one_while_the_register_names_both() {
    let is_said = |row: &&Row| [row.why, row.next].iter().any(|text| text.contains("only its log"));
    let rows: BTreeSet<&str> = ROWS.iter().filter(is_said).map(|row| row.name).collect();
    assert!(!rows.is_empty());
    for_every_view(|view| {
        let are_both = view.mirror == Mirror::Named && view.owner == Owner::Partner;
        // An operator who forces knows better than the register.
        let is_forced = view.command == Command::Forced;
        assert!(!are_both || is_forced || !rows.contains(decide(&view).name()), "{view:?}");
    });
}

#[test]
fn final_is_only_what_is_in_sync() {
    for_every_view(|view| {
        if decide(&view).is_final() {
            let in_sync = view.mirror == Mirror::Named && view.link == Link::Up;
            let is_its_place = view.place == Place::Home || view.command == Command::Keep;
            let serves = view.open == Open::Serving && view.word == Word::Mirroring && is_its_place;
            let stands_by = view.owner == Owner::Partner && view.word == Word::Serving && !is_active(view.open);
            assert!(in_sync && (serves || stands_by), "{view:?}");
        }
    });
}

#[test]
fn rule_r1_nobody_answers_alone_unless_the_register_says_stale() {
    for_every_view(|view| {
        let action = decide(&view).action();
        let answering = matches!(view.open, Open::Serving | Open::Draining);
        if answering && view.replies == Replies::Alone && view.owner == Owner::Held && view.mirror != Mirror::Stale {
            assert_eq!(action, Action::StopServing, "{view:?}");
        }
        if action == Action::GoStale {
            assert!(answering && view.owner == Owner::Held && view.replies == Replies::Mirrored, "{view:?}");
        }
        // A short silence costs no mirror, unless it is known to be the end of a process. To look is all that is done about it.
        let serves = answering && view.owner == Owner::Held && view.lease == Lease::Left;
        if serves && view.replies == Replies::Mirrored && view.link == Link::Interrupted {
            let wanted = match view.fence {
                Fence::Confirmed => Action::GoStale,
                Fence::NotTried => Action::Probe,
                Fence::Held | Fence::Failed => Action::Wait,
            };
            assert_eq!(action, wanted, "{view:?}");
        }
        // Nobody waits for ever for a partner that does not mirror.
        let gone =
            view.link == Link::Cut || matches!(view.word, Word::Leaving | Word::Starting) && view.link == Link::Up;
        if serves && view.replies == Replies::Mirrored && gone {
            assert_eq!(action, Action::GoStale, "{view:?}");
        }
        if action == Action::Resync {
            assert!(view.link == Link::Up && matches!(view.word, Word::Standby | Word::Mirroring), "{view:?}");
        }
    });
}

#[test]
fn rule_r2_only_the_named_owner_with_a_lease_has_the_pool_open() {
    for_every_view(|view| {
        let action = decide(&view).action();
        let others = matches!(view.owner, Owner::Absent | Owner::Outdated | Owner::Unclaimed | Owner::Partner);
        if is_active(view.open) && (view.lease == Lease::Ended || others) {
            assert_eq!(action, Action::StopServing, "{view:?}");
        }
        if action == Action::StopServing {
            assert!(is_active(view.open), "{view:?}");
        }
        if action == Action::Open {
            assert_ne!(view.open, Open::Yielded, "what was given up is claimed first: {view:?}");
            assert!(view.owner == Owner::Held && view.lease == Lease::Left && !is_active(view.open), "{view:?}");
        }
        if view.owner == Owner::Unreadable {
            assert!(
                matches!(action, Action::Wait | Action::Refuse | Action::StopServing),
                "nothing is guessed: {view:?}"
            );
        }
    });
}

#[test]
fn rule_r3_a_takeover_needs_the_named_portion_and_a_partner_that_cannot_write() {
    for_every_view(|view| match decide(&view).action() {
        Action::TakeOver => {
            assert!(view.owner == Owner::Partner && view.mirror == Mirror::Named, "{view:?}");
            assert!(view.portion == Portion::Usable && !is_active(view.open), "{view:?}");
            assert!(partner_is_out(&view), "{view:?}");
        }
        Action::ForceTakeOver => {
            assert!(view.command == Command::Forced && !is_active(view.open), "{view:?}");
            let own = matches!(view.owner, Owner::Held | Owner::Unclaimed);
            assert!(own || partner_is_out(&view), "{view:?}");
            let lossless =
                view.owner == Owner::Partner && view.mirror == Mirror::Named && view.portion == Portion::Usable;
            assert!(!lossless, "no loss is asked for where none is needed: {view:?}");
        }
        // Looking harms nobody; whoever has the pool open never does more.
        Action::Probe => assert_eq!(view.link, Link::Interrupted, "{view:?}"),
        Action::Fence => {
            let standing_by = view.owner == Owner::Partner
                || (matches!(view.owner, Owner::Absent | Owner::Outdated) && view.place == Place::Home);
            assert!(standing_by && view.link == Link::Cut && !is_active(view.open), "{view:?}");
            let commanded = matches!(view.command, Command::Takeover | Command::Forced);
            assert!(view.beat == Beat::Silent || commanded, "a partner that lives is fenced by command only: {view:?}");
        }
        _ => {}
    });
}

#[test]
fn rule_r7_a_void_portion_is_never_opened() {
    for_every_view(|view| {
        let action = decide(&view).action();
        if matches!(action, Action::Open | Action::Claim | Action::TakeOver | Action::GiveBack) && !is_active(view.open)
        {
            assert_eq!(view.portion, Portion::Usable, "{view:?}");
        }
        if action == Action::Discard {
            let counts = view.owner != Owner::Partner || view.mirror == Mirror::Named;
            assert!(!counts && view.portion == Portion::Void && !is_active(view.open), "{view:?}");
        }
    });
}

#[test]
fn a_pool_is_handed_over_only_closed_and_only_to_a_partner_that_is_ready() {
    for_every_view(|view| {
        let ready = view.link == Link::Up && matches!(view.word, Word::Standby | Word::Mirroring);
        match decide(&view).action() {
            Action::GiveBack => assert!(view.owner == Owner::Held && view.open == Open::Drained && ready, "{view:?}"),
            Action::Drain => assert!(view.owner == Owner::Held && view.open == Open::Serving && ready, "{view:?}"),
            _ => {}
        }
    });
}

fn does(view: View, action: Action) {
    assert_eq!(decide(&view).action(), action, "{view:?}: {}", decide(&view).name());
}

#[test]
fn line_owner_process_dies_host_lives() {
    let silent = View { link: Link::Interrupted, ..STANDBY };
    does(silent, Action::Probe);
    does(View { fence: Fence::Confirmed, ..silent }, Action::TakeOver);
    does(View { fence: Fence::Held, ..silent }, Action::Wait);
}

#[test]
fn line_owner_host_dies() {
    does(View { link: Link::Interrupted, fence: Fence::Held, ..STANDBY }, Action::Wait);
    does(BEREFT, Action::Fence);
    does(View { fence: Fence::Held, ..BEREFT }, Action::Fence);
    does(View { fence: Fence::Failed, ..BEREFT }, Action::Refuse);
    does(View { fence: Fence::Confirmed, ..BEREFT }, Action::TakeOver);
    does(View { owner: Owner::Held, mirror: Mirror::Stale, lease: Lease::Left, ..BEREFT }, Action::Open);
}

#[test]
fn line_owner_restarts_before_takeover() {
    does(STARTED, Action::Claim);
    let claimed = View { owner: Owner::Held, lease: Lease::Left, ..STARTED };
    does(claimed, Action::Open);
    does(View { open: Open::Opening, ..claimed }, Action::Wait);
    does(View { word: Word::Standby, ..SERVING }, Action::Resync);
    does(SERVING, Action::Rest);
    does(View { word: Word::Starting, ..STANDBY }, Action::Wait);
}

#[test]
fn line_partner_process_dies_host_lives() {
    let silent = View { link: Link::Interrupted, ..SERVING };
    does(silent, Action::Probe);
    does(View { fence: Fence::Confirmed, ..silent }, Action::GoStale);
    does(View { fence: Fence::Confirmed, open: Open::Draining, ..silent }, Action::GoStale);
    does(ALONE, Action::Wait);
}

#[test]
fn line_partner_host_dies() {
    does(View { link: Link::Interrupted, fence: Fence::Held, ..SERVING }, Action::Wait);
    does(View { link: Link::Cut, beat: Beat::Silent, fence: Fence::Held, ..SERVING }, Action::GoStale);
    does(ALONE, Action::Wait);
}

#[test]
fn line_interconnect_cut_both_live() {
    does(View { link: Link::Cut, ..SERVING }, Action::GoStale);
    does(View { beat: Beat::Alive, ..ALONE }, Action::Wait);
    does(View { beat: Beat::Alive, ..BEREFT }, Action::Wait);
    does(View { beat: Beat::Alive, mirror: Mirror::Stale, ..BEREFT }, Action::Refuse);
}

#[test]
fn line_interconnect_cut_and_arbiter_lost() {
    let blind = View { owner: Owner::Unreadable, link: Link::Cut, beat: Beat::Silent, ..SERVING };
    does(blind, Action::Wait);
    assert_eq!(decide(&blind).deadline(), Deadline::Lease);
    does(View { lease: Lease::Ended, ..blind }, Action::StopServing);
    does(View { owner: Owner::Unreadable, ..BEREFT }, Action::Wait);
    does(
        View { owner: Owner::Unreadable, fence: Fence::Confirmed, command: Command::Forced, ..BEREFT },
        Action::Refuse,
    );
}

#[test]
fn line_both_die_one_comes_back() {
    does(View { fence: Fence::Confirmed, ..BEREFT }, Action::TakeOver);
    let stale = View { mirror: Mirror::Stale, ..BEREFT };
    does(stale, Action::Refuse);
    let names = Names { me: "b", partner: "a", pool: "p" };
    assert!(decide(&stale).why(&names).contains("a holds the truth about p"));
    does(View { mirror: Mirror::Other, ..BEREFT }, Action::Refuse);
    let forced = View { command: Command::Forced, ..stale };
    does(forced, Action::Fence);
    does(View { fence: Fence::Confirmed, ..forced }, Action::ForceTakeOver);
}

#[test]
fn line_partner_returns() {
    does(View { link: Link::Up, word: Word::Starting, ..ALONE }, Action::Wait);
    does(View { link: Link::Up, word: Word::Standby, ..ALONE }, Action::Resync);
    does(View { mirror: Mirror::Stale, ..SERVING }, Action::Resync);
    does(View { mirror: Mirror::Stale, portion: Portion::Void, ..STANDBY }, Action::Discard);
    does(View { mirror: Mirror::Stale, ..STANDBY }, Action::Wait);
    does(View { place: Place::Away, ..SERVING }, Action::Wait);
    does(View { place: Place::Away, command: Command::Giveback, ..SERVING }, Action::Drain);
}

#[test]
fn line_owner_paused_and_resumed_after_a_takeover() {
    does(View { owner: Owner::Partner, ..SERVING }, Action::StopServing);
    does(View { owner: Owner::Unclaimed, ..SERVING }, Action::StopServing);
    does(View { lease: Lease::Ended, ..SERVING }, Action::StopServing);
}

#[test]
fn line_own_log_device_lost() {
    does(View { portion: Portion::Void, ..STARTED }, Action::Wait);
    let yielded = View { portion: Portion::Void, ..STARTED }.own_word(false);
    does(View { word: yielded, ..STANDBY }, Action::TakeOver);
    let failed = View { open: Open::Failed, ..SERVING };
    does(failed, Action::Wait);
    does(View { word: failed.own_word(false), ..STANDBY }, Action::TakeOver);
    does(View { portion: Portion::Void, mirror: Mirror::Stale, ..STARTED }, Action::Refuse);
}

#[test]
fn line_devices_cannot_be_opened() {
    let yielded = View { open: Open::Yielded, ..STARTED };
    does(yielded, Action::Wait);
    assert_eq!(yielded.own_word(false), Word::Standby, "it is the partner's at this epoch");
    does(View { word: Word::Standby, ..STANDBY }, Action::TakeOver);
    // Where only this node's log counts it says so, and is claimed again in the end; who gives that log up may take it over.
    does(View { mirror: Mirror::Stale, ..yielded }, Action::Refuse);
    let stale = View { word: Word::Standby, mirror: Mirror::Stale, ..STANDBY };
    does(stale, Action::Refuse);
    does(View { command: Command::Forced, ..stale }, Action::ForceTakeOver);
    // It mirrors, and its partner keeps the pool.
    let mirrors = View { place: Place::Home, open: Open::Yielded, ..STANDBY };
    does(mirrors, Action::Wait);
    assert_eq!(mirrors.own_word(true), Word::Mirroring);
    does(View { place: Place::Away, command: Command::Keep, ..SERVING }, Action::Rest);
    // It takes it over by command, or when the partner says that it cannot serve it either.
    for lost in [
        View { link: Link::Interrupted, ..mirrors },
        View { link: Link::Interrupted, fence: Fence::Confirmed, ..mirrors },
        View { link: Link::Cut, beat: Beat::Silent, ..mirrors },
        View { link: Link::Cut, beat: Beat::Silent, fence: Fence::Confirmed, ..mirrors },
    ] {
        does(lost, Action::Refuse);
    }
    let lost = View { link: Link::Cut, beat: Beat::Silent, command: Command::Takeover, ..mirrors };
    does(lost, Action::Fence);
    does(View { fence: Fence::Confirmed, ..lost }, Action::TakeOver);
    does(View { command: Command::Takeover, ..mirrors }, Action::Ask);
    does(View { word: Word::Standby, ..mirrors }, Action::TakeOver);
}

#[test]
fn line_mirror_cannot_be_read() {
    let unreadable = View { portion: Portion::Void, ..STANDBY };
    for &link in Link::ALL {
        for &word in Word::ALL {
            does(View { link, word, ..unreadable }, Action::Refuse);
        }
    }
    // An owner that lives goes on alone; then what cannot be read does not count any more.
    does(View { word: unreadable.own_word(false), ..SERVING }, Action::GoStale);
    does(View { mirror: Mirror::Stale, ..unreadable }, Action::Discard);
    // Without one, an operator can give up what only the two logs have.
    let forced = View { portion: Portion::Void, command: Command::Forced, ..BEREFT };
    does(forced, Action::Fence);
    does(View { fence: Fence::Failed, ..forced }, Action::Refuse);
    does(View { fence: Fence::Confirmed, ..forced }, Action::ForceTakeOver);
    does(View { link: Link::Up, word: Word::Standby, ..forced }, Action::ForceTakeOver);
    does(View { link: Link::Up, word: Word::Serving, ..forced }, Action::Refuse);
}

#[test]
fn line_takeover_or_giveback_interrupted_at_any_step() {
    // Taken over, and restarted before or after it was opened.
    does(View { place: Place::Away, mirror: Mirror::Stale, ..STARTED }, Action::Claim);
    // Drained, and the partner is gone, or nobody wants it any more, or the process has restarted.
    let drained = View { open: Open::Drained, command: Command::Giveback, ..SERVING };
    does(drained, Action::GiveBack);
    does(View { link: Link::Cut, ..drained }, Action::Open);
    does(View { command: Command::None, ..drained }, Action::Open);
    does(View { owner: Owner::Unclaimed, lease: Lease::Ended, ..drained }, Action::Claim);
    // Given back, and not claimed yet.
    does(View { word: Word::Starting, ..STANDBY }, Action::Wait);
}

#[test]
fn a_node_that_is_drained_for_maintenance_mirrors_and_gets_its_pool_back_by_command() {
    let draining = View { command: Command::Drain, ..SERVING };
    does(draining, Action::Drain);
    does(View { link: Link::Cut, ..draining }, Action::GoStale);
    does(View { open: Open::Drained, ..draining }, Action::GiveBack);
    let keeper = View { place: Place::Away, command: Command::Keep, ..SERVING };
    let drained = View { place: Place::Home, command: Command::Keep, ..STANDBY };
    does(keeper, Action::Rest);
    does(drained, Action::Rest);
    assert_eq!(drained.own_word(true), Word::Mirroring, "its log is the other copy");
    // Its reboot costs the keeper its mirror, not the pool; the keeper's death ends the keeping.
    does(View { link: Link::Cut, ..keeper }, Action::GoStale);
    does(View { mirror: Mirror::Stale, replies: Replies::Alone, ..keeper }, Action::Resync);
    does(View { fence: Fence::Confirmed, command: Command::Keep, place: Place::Home, ..BEREFT }, Action::TakeOver);
    does(View { command: Command::Giveback, ..keeper }, Action::Drain);
    does(View { command: Command::Takeover, ..drained }, Action::Ask);
}

#[test]
fn an_operator_moves_a_healthy_pool_by_asking_its_owner() {
    does(View { command: Command::Takeover, ..STANDBY }, Action::Ask);
    does(View { command: Command::Giveback, ..SERVING }, Action::Drain);
    does(View { command: Command::Giveback, link: Link::Cut, ..ALONE }, Action::Refuse);
}

#[test]
fn a_new_pool_is_claimed_by_its_home_node_when_the_partner_has_agreed() {
    let new = View { owner: Owner::Absent, word: Word::Standby, ..STARTED };
    does(new, Action::Claim);
    does(View { link: Link::Cut, ..new }, Action::Wait);
    does(View { place: Place::Away, ..new }, Action::Wait);
    does(View { link: Link::Cut, command: Command::Forced, ..new }, Action::Fence);
    does(View { owner: Owner::Absent, ..SERVING }, Action::StopServing);
}

#[test]
fn an_arbiter_with_the_memory_of_another_time_is_not_believed() {
    let outdated = View { owner: Owner::Outdated, word: Word::Standby, ..STARTED };
    for place in [Place::Home, Place::Away] {
        does(View { place, ..outdated }, Action::Refuse);
        does(View { place, link: Link::Cut, fence: Fence::Confirmed, ..outdated }, Action::Refuse);
    }
    assert_eq!(outdated.own_word(true), Word::Standby, "an operator may open it at its home node");
    does(View { owner: Owner::Outdated, ..SERVING }, Action::StopServing);
    does(View { command: Command::Forced, ..outdated }, Action::ForceTakeOver);
    does(View { place: Place::Away, command: Command::Forced, ..outdated }, Action::Refuse);
    let alone = View { link: Link::Cut, beat: Beat::Silent, command: Command::Forced, ..outdated };
    does(alone, Action::Fence);
    does(View { fence: Fence::Failed, ..alone }, Action::Refuse);
    does(View { fence: Fence::Confirmed, ..alone }, Action::ForceTakeOver);
}
