//! The table as `docs/pair.md` prints it. The test holds the page to the code; `cargo test --lib -- --ignored write_decisions` writes it.

use super::{
    Beat, Command, Fence, Lease, Link, Mirror, Open, Owner, Place, Portion, Replies, Word,
    table::{ROWS, When},
};
use std::{fs, path::PathBuf};

const BEGIN: &str = "<!-- decisions: written by a test from src/pair/decide/table.rs -->\n";
const END: &str = "<!-- end of decisions -->\n";

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/pair.md")
}

/// One input's part of a condition: nothing when all values are allowed.
fn part<T: Copy + PartialEq>(name: &str, allowed: &[T], all: &[T], words: fn(T) -> &'static str) -> Option<String> {
    if allowed.len() == all.len() {
        return None;
    }
    let list = |values: Vec<T>| values.into_iter().map(words).collect::<Vec<_>>().join(" or ");
    let others: Vec<T> = all.iter().copied().filter(|value| !allowed.contains(value)).collect();
    let text = if others.len() < allowed.len() { format!("not {}", list(others)) } else { list(allowed.to_vec()) };
    Some(format!("{name} {text}"))
}

fn condition(when: &When) -> String {
    let parts = [
        part("owner:", when.owner, Owner::ALL, Owner::words),
        part("pool:", when.open, Open::ALL, Open::words),
        part("place:", when.place, Place::ALL, Place::words),
        part("mirror:", when.mirror, Mirror::ALL, Mirror::words),
        part("replies:", when.replies, Replies::ALL, Replies::words),
        part("interconnect:", when.link, Link::ALL, Link::words),
        part("partner's word:", when.word, Word::ALL, Word::words),
        part("partner's heartbeat:", when.beat, Beat::ALL, Beat::words),
        part("fence:", when.fence, Fence::ALL, Fence::words),
        part("own log:", when.portion, Portion::ALL, Portion::words),
        part("command:", when.command, Command::ALL, Command::words),
        part("lease:", when.lease, Lease::ALL, Lease::words),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn table() -> String {
    let mut text = "| row | when | does | why | until | next |\n|---|---|---|---|---|---|\n".to_owned();
    for row in ROWS {
        let plain = |words: &str| {
            words.replace("{me}", "this node").replace("{partner}", "the partner").replace("{pool}", "the pool")
        };
        let cells =
            [row.name, &condition(&row.when), row.then.words(), &plain(row.why), row.until.words(), &plain(row.next)];
        text += &format!("| {} |\n", cells.join(" | "));
    }
    text
}

/// The page, cut before and after the table.
fn pieces() -> (String, String, String) {
    let text = fs::read_to_string(page()).expect("the page is part of the repository");
    let (before, rest) = text.split_once(BEGIN).expect("the page has the mark before the table");
    let (table, after) = rest.split_once(END).expect("the page has the mark after the table");
    (before.to_owned(), table.to_owned(), after.to_owned())
}

#[test]
fn the_page_shows_the_table() {
    let (_, found, _) = pieces();
    assert!(found == table(), "docs/pair.md does not show the table: `cargo test --lib -- --ignored write_decisions`");
}

#[test]
#[ignore = "writes docs/pair.md"]
fn write_decisions() {
    let (before, _, after) = pieces();
    fs::write(page(), before + BEGIN + &table() + END + &after).expect("the repository can be written");
}
