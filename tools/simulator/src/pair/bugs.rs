//! Planted bugs of the pair, each of which histories of the pair must find.

use crate::bank::{Bug, bug};

/// Every bug.
pub const BUGS: [Bug; 25] = [
    bug("alone-before-stale", "replies leave without the mirror before the register says stale"),
    bug("attached-by-words-only", "a mirror whose word came before the engine is never attached"),
    bug("closed-pool-answers", "a pool that closes answers what becomes stable in the same turn"),
    bug("discard-skipped", "what an ownership that is over has left in a log is not discarded"),
    bug("early-acknowledgement-dropped", "what is acknowledged before the mirror is attached is not heard"),
    bug("fence-epoch-not-compared", "what a fence has found counts in later epochs"),
    bug("fence-failed-for-ever", "a fence that has failed is not tried again"),
    bug("fence-not-awaited", "a takeover does not wait for the fence"),
    bug("giveback-without-drain", "a pool is handed over without a last consistency point"),
    bug("in-sync-too-early", "the register says in sync before the mirror has everything"),
    bug("lease-ignored", "a node serves on when its lease has ended"),
    bug("mirror-acknowledges-early", "the mirror acknowledges what is not durable"),
    bug("mirror-begin-epoch-not-compared", "a begin of a later epoch is taken for a repetition"),
    bug("mirror-epoch-not-compared", "the mirror takes records of an epoch that is over"),
    bug("mirror-gap-accepted", "the mirror takes what does not follow"),
    bug("open-without-claim", "an owner opens its pool without a new epoch"),
    bug("record-epoch-not-compared", "recovery performs records of an epoch before the consistency point's"),
    bug("resend-forgets", "what was on its way when the interconnect was cut is not sent again"),
    bug("ring-reused-before-mirrored", "the ring is reused before the mirror has what lies there"),
    bug("stable-without-mirror", "a change is answered before the mirror has it"),
    bug("superblocks-unordered", "open and commit do not wait for one superblock before they write the next"),
    bug("takeover-while-stale", "a takeover is decided although the register says stale"),
    bug("unknown-is-done", "a change of the register whose end nobody knows counts as made"),
    bug("void-log-kept", "a former owner takes its log for a mirror"),
    bug("word-epoch-not-compared", "a word of an earlier epoch counts"),
];
