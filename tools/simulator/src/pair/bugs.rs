//! Planted bugs of the pair, each of which histories of the pair must find; or, where another defence does the same, a test of the change log or of the
//! controller:
//!
//! | bug | why no history shows it |
//! |---|---|
//! | `early-acknowledgement-dropped` | acknowledgements ride on the word of their pool, or follow it; only where the word takes the slower of two paths, and the last acknowledgement of all the other one, a reply waits for ever |
//! | `mirror-begin-epoch-not-compared` | two owners never begin at the same position: an opened lane goes on a lap beyond all that it may hold |
//! | `mirror-epoch-not-compared` | a node mirrors only while its register names the partner, and a session's frames end with it: none of an older epoch arrives |
//! | `mirror-gap-accepted` | a session keeps the order of frames, and after a lost path the owner goes on where the mirror has acknowledged |
//! | `offline-refused-as-elsewhere` | the other node waits with what it was asked until the volume is back, unless nobody brings it back: less than once in a thousand histories |
//! | `record-epoch-not-compared` | as the first; without both a stale tail rises (`named.rs`) |
//! | `refusal-forgotten` | a request must be on two paths, its refusal overtake the second one, and what forbade it end before that arrives: once in some 1500 histories |
//! | `request-epoch-not-compared` | a request that arrives when its pool has gone there and back is older than those that have taken its slot in this session; only before the first of them it is performed |
//! | `ring-reused-before-mirrored` | the mirror refuses what lies more than a ring ahead, and is brought in step anew |
//! | `seam-*` | what is lost or overtaken between the halves of an interconnect is said again, or refused and brought in step anew; every interleaving of the halves shows each of them |
//! | `stale-while-the-lock-is-held` | it costs the mirror, and nothing that was answered: the register says stale first |

use crate::bank::{Bug, bug, controller_bug, lane_bug};

/// Every bug.
pub const BUGS: &[Bug] = &[
    bug("accept-loss-skips-one", "of what is given up only the first record is, and the others are performed"),
    bug("alone-before-stale", "replies leave without the mirror before the register says stale"),
    bug("answered-when-sent", "a change is answered when it was sent to the owner"),
    bug("asked-again-by-a-new-name", "what is asked for again gets a new name"),
    bug("attached-by-words-only", "a mirror whose word came before the engine is never attached"),
    bug("closed-pool-answers", "a pool that closes answers what becomes stable in the same turn"),
    bug("compared-again", "a compare-and-write that is asked for again is compared with what it has written"),
    bug("discard-skipped", "what an ownership that is over has left in a log is not discarded"),
    bug("earlier-session-not-awaited", "a session's requests begin while those of an earlier one are under way"),
    controller_bug("early-acknowledgement-dropped", "what is acknowledged before the mirror is attached is not heard"),
    bug("ended-though-performed", "preempt and abort ends what is in the lane already"),
    bug("fence-epoch-not-compared", "what a fence has found counts in later epochs"),
    bug("fence-failed-for-ever", "a fence that has failed is not tried again"),
    bug("fence-not-awaited", "a takeover does not wait for the fence"),
    bug("forgets-offline-at-cp", "a consistency point does not say that a volume is offline"),
    bug("forwarded-host-forgotten", "the owner does not hear whose a forwarded request is"),
    bug("forwarded-not-held-against-reservations", "forwarded requests are performed whoever has reserved the volume"),
    bug("giveback-without-drain", "a pool is handed over without a last consistency point"),
    bug("held-names-forgotten", "recovery does not remember the names in the records that it holds"),
    bug("held-passed-when-read", "a held record counts as performed when it has been read"),
    bug("held-records-dropped", "a volume that was offline comes back without what was held"),
    bug("in-hand-not-looked-up", "what is asked for again is performed beside its first asking"),
    bug("in-sync-too-early", "the register says in sync before the mirror has everything"),
    bug("later-key-not-compared", "a fence of long ago takes a disk away from who is entitled later"),
    bug("lease-ignored", "a node serves on when its lease has ended"),
    bug("mirror-acknowledges-early", "the mirror acknowledges what is not durable"),
    lane_bug("mirror-begin-epoch-not-compared", "a begin of a later epoch is taken for a repetition"),
    lane_bug("mirror-epoch-not-compared", "the mirror takes records of an epoch that is over"),
    lane_bug("mirror-gap-accepted", "the mirror takes what does not follow"),
    bug("mirror-keeps-nothing", "the mirror acknowledges records and keeps zeroes"),
    bug("name-not-compared", "a change that the pool contains is performed again"),
    bug("name-not-noted", "the owner remembers only the names of before it opened the pool"),
    bug("names-forgotten-at-takeover", "what waits is performed after a takeover, whatever the pool contains"),
    bug("names-not-in-superblock", "a consistency point keeps the names of the one before"),
    controller_bug("notices-not-said-again", "what the other node's hosts are to be told is lost with a path"),
    controller_bug("notices-of-a-former-life", "a node that starts is told what its hosts were told before"),
    controller_bug("notices-told-again", "hosts are told twice of what was sent again after a lost path"),
    bug("offline-not-told", "the other node does not hear that a volume is offline"),
    controller_bug(
        "offline-refused-as-elsewhere",
        "the other node asks again for what is refused as of a volume that is offline",
    ),
    bug("offline-volume-answers", "a volume that is offline takes requests"),
    bug("online-before-cp", "a volume is said to be online when its held records have been performed"),
    bug("open-without-claim", "an owner opens its pool without a new epoch"),
    bug("performs-later-records-of-an-offline-volume", "recovery holds only the records that it cannot perform"),
    bug("preempt-without-abort", "what a fenced node has in flight may land after the fence"),
    bug("preemption-not-counted", "the generation stays when a host is preempted"),
    lane_bug("record-epoch-not-compared", "recovery performs records of an epoch before the consistency point's"),
    controller_bug("refusal-forgotten", "a change that was refused is performed when it arrives again"),
    bug("replay-forgets-names", "recovery does not remember the names in the records"),
    bug("replay-skips-reservations", "recovery does not perform records of reservations"),
    controller_bug("request-epoch-not-compared", "a request of an ownership that is over is performed"),
    bug("resend-forgets", "what was on its way when the interconnect was cut is not sent again"),
    bug("reservation-judged-on-arrival", "what waits is performed although its host was preempted meanwhile"),
    bug("reservation-not-in-cp", "a reservation alone does not make a volume dirty"),
    lane_bug("ring-reused-before-mirrored", "the ring is reused before the mirror has what lies there"),
    controller_bug("seam-bound-not-kept", "the halves of an interconnect send each other more than there is room for"),
    controller_bug("seam-generation-not-compared", "what was sent before a loss was heard of goes over another path"),
    controller_bug("seam-late-dropped", "what finds no room between the halves is dropped"),
    controller_bug("seam-late-overtaken", "what finds no room between the halves is overtaken"),
    controller_bug("seam-loss-told-last", "frames overtake the news that a path was lost"),
    controller_bug("seam-losses-not-awaited", "orders are handed over while a loss is untold"),
    controller_bug("seam-room-not-said", "the halves do not tell each other what they have taken"),
    controller_bug("seam-speaks-for-the-dead", "heartbeats go on although the reactor hangs"),
    bug("slot-taken-twice", "a name's slot is taken again before its change was answered"),
    bug("stable-without-mirror", "a change is answered before the mirror has it"),
    controller_bug("stale-while-the-lock-is-held", "an owner gives its mirror up although its partner's process lives"),
    bug("superblocks-unordered", "open and commit do not wait for one superblock before they write the next"),
    bug("takeover-loses-power", "a takeover ends reservations like the loss of power"),
    bug("takeover-without-preempting", "a node registers with a disk, and takes it for its own"),
    bug("takeover-while-stale", "a takeover is decided although the register says stale"),
    bug("unheard-preemption-is-a-fence", "who holds a disk has fenced the other node, whatever that has in flight"),
    bug("unknown-is-done", "a change of the register whose end nobody knows counts as made"),
    bug("void-log-kept", "a former owner takes its log for a mirror"),
    bug("word-epoch-not-compared", "a word of an earlier epoch counts"),
];
