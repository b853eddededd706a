//! Planted bugs of what keeps commands from being late, and of what hosts of NVMe/TCP are kept out by.

use crate::bank::{Bug, Finder, bug, controller_bug};

/// A bug of a session, or of the server around it.
const fn session_bug(name: &'static str, what: &'static str) -> Bug {
    Bug { name, what, finder: Finder::Test("cargo test --features planted-bugs --test nvme_tcp planted") }
}

/// Every bug. Those that histories find too seldom have a test that does.
pub const BUGS: &[Bug] = &[
    controller_bug("abandoned-is-performed", "what waits for an owner is performed although its client has gone"),
    bug("asked-data-is-nobodys", "a command of which the data is asked for is submitted without its host's identifier"),
    controller_bug("change-not-swept", "a change from the partner is performed in front of what lies unread here"),
    session_bug("connection-not-held", "commands of a new connection are taken in front of what lies unread at others"),
    bug("forwarded-not-held-against-reservations", "forwarded requests are performed whoever has reserved the volume"),
    bug("notices-stay-here", "hosts are told of reservations by the node that serves alone"),
    session_bug("opening-not-noticed", "what had arrived before a node took a pool over is performed after it"),
    controller_bug(
        "overlapping-change-overtakes",
        "a change that waits for a block is overtaken by a later one of the same bytes",
    ),
    session_bug("pass-for-all-that-lies-here", "a pass is used for what had arrived before it was given"),
    bug("pass-not-looked-at", "what a host has left at the node that forwards is performed whatever it was answered"),
    controller_bug("pass-outlives-direct-change", "what a host is answered at the owner does not end its pass"),
    controller_bug("repeated-change-overtakes", "a change that is asked for again overtakes the one that was left"),
    controller_bug(
        "reservation-needs-no-pass",
        "what a host has left of commands about its reservation is performed late",
    ),
    controller_bug(
        "waited-needs-no-pass",
        "what has waited for a takeover is performed whatever the former owner answered",
    ),
];
