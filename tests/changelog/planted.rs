//! The tests tested: each deliberate defect of the change log is found by the tests that should find it.
//!
//! `cargo test --features planted-bugs --test changelog planted`

use crate::{bounds, damage, mirror, model, pair};
use std::panic::catch_unwind;
use twinlog::base::planted;

type Oracle = (&'static str, fn());

const MODEL: Oracle = ("model", model::every_durable_change_comes_back_in_order_and_once);
const ROT: Oracle = ("flipped bits", damage::no_flipped_bit_passes_for_a_whole_log);
const TEAR: Oracle = ("torn tails", damage::a_tail_torn_into_any_subset_of_units_is_a_torn_tail);
const FORMER: Oracle = ("former owner", damage::records_of_a_former_owner_do_not_rise_again);
const PERSIST: Oracle = ("failed persist", bounds::a_failed_persist_ends_the_lane);
const MARK: Oracle = ("mark", damage::without_a_successor_damage_looks_like_a_torn_tail);
const PAIR: Oracle = ("pair", pair::what_was_answered_is_found_by_whoever_opens_the_pool_next);
const FENCED: Oracle = ("fenced owner", mirror::a_fenced_owner_is_refused);
const BEGIN: Oracle = ("later begin", mirror::a_begin_of_a_later_epoch_is_no_repetition);

#[test]
fn every_planted_bug_is_found() {
    let table = [
        ("head-not-beyond-stale-records", MODEL),
        ("record-epoch-not-compared", FORMER),
        ("record-position-not-compared", MODEL),
        ("record-position-not-compared", TEAR),
        ("record-body-not-checked", TEAR),
        ("record-body-not-checked", ROT),
        ("hole-not-searched", ROT),
        ("trim-everything", MODEL),
        ("overwrite-in-flight", MODEL),
        ("durable-inside-record", MODEL),
        ("durable-before-persisted", PERSIST),
        ("mark-forgotten", MARK),
        ("stable-without-mirror", PAIR),
        ("mirror-acknowledges-early", PAIR),
        ("mirror-gap-accepted", PAIR),
        ("mirror-epoch-not-compared", FENCED),
        ("mirror-begin-epoch-not-compared", BEGIN),
        ("resend-forgets", PAIR),
        ("ring-reused-before-mirrored", PAIR),
    ];
    for (bug, (oracle, test)) in table {
        planted::choose(bug);
        let found = catch_unwind(test).is_err();
        planted::choose("");
        assert!(found, "{bug} is not found by {oracle}");
    }
    for (oracle, test) in [MODEL, ROT, TEAR, FORMER, PERSIST, MARK, PAIR, FENCED, BEGIN] {
        assert!(catch_unwind(test).is_ok(), "{oracle} finds a bug where none is planted");
    }
}
