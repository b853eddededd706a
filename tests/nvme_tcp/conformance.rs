//! The server against the tables of what a controller must have: every command, log page, feature, structure and property there could be is asked for, and every
//! field of what comes is looked at. `cargo test --test nvme_tcp -- --ignored write_conformance` writes the page that shows the tables.

use crate::{
    conformance_table::{
        ADMIN, CONTROLLER, ENTRY, FEATURES, FIRMWARE, Field, HEALTH, Holds, LOGS, NAMESPACE, NVM, Need, PROPERTIES,
        Row, STRUCTURES,
    },
    host::{Bench, DISCOVERY, Queue, op},
};
use std::{fs, path::PathBuf};

/// Kinds of controllers: columns of the tables.
const IO: usize = 0;
const OF_DISCOVERY: usize = 1;
const KINDS: [usize; 2] = [IO, OF_DISCOVERY];

/// An enabled controller of a kind, and its id.
fn start(kind: usize) -> (Bench, Queue, u16) {
    let mut bench = Bench::new();
    if kind == IO {
        let (queue, id) = bench.admin(false);
        return (bench, queue, id);
    }
    let mut queue = bench.open(false);
    let id = bench.connect(&mut queue, 0, 0xffff, DISCOVERY, 0).result;
    bench.set_property(&mut queue, 0x14, 1);
    (bench, queue, u16::try_from(id).expect("an id"))
}

fn has(rows: &[Row], code: u16, kind: usize) -> bool {
    rows.iter().any(|row| row.code == code && row.has[kind])
}

fn words(page: &[u8]) -> Vec<u32> {
    page.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four"))).collect()
}

fn log(bench: &mut Bench, queue: &mut Queue, page: u32, bytes: u32) -> Vec<u8> {
    bench.ask(queue, op::LOG, &[(bytes / 4 - 1) << 16 | page], u32::MAX, bytes).data
}

#[test]
fn nothing_mandatory_is_missing_and_nothing_prohibited_is_there() {
    for rows in [ADMIN, NVM, LOGS, FEATURES, STRUCTURES, PROPERTIES] {
        assert!(rows.is_sorted_by(|a, b| a.code < b.code));
        for Row { name, needs, has, .. } in rows {
            for kind in KINDS {
                assert!(needs[kind] != Need::Mandatory || has[kind], "{name} is mandatory");
                assert!(needs[kind] != Need::Prohibited || !has[kind], "{name} is prohibited");
            }
        }
    }
}

#[test]
fn every_opcode_is_known_or_refused_as_the_table_says() {
    for kind in KINDS {
        let (mut bench, mut queue, id) = start(kind);
        for opcode in (0..=0xff).filter(|opcode| ![op::FABRICS, op::EVENT].contains(opcode)) {
            let status = bench.ask(&mut queue, opcode, &[], 0, 0).status;
            assert_eq!(status != 1, has(ADMIN, opcode.into(), kind), "admin command {opcode:#x} of kind {kind}");
        }
        let entry = queue.entry(op::EVENT);
        let request = queue.capsule(entry, None, false);
        bench.net.client_send(queue.connection, &request);
        bench.serve(&mut queue);
        assert!(queue.answers.is_empty(), "an event request waits");
        if kind == IO {
            let mut io = bench.io(id, 1, false);
            for opcode in (0..=0xff).filter(|opcode| *opcode != op::FABRICS) {
                let status = bench.ask(&mut io, opcode, &[], 1, 0).status;
                assert_eq!(status != 1, has(NVM, opcode.into(), kind), "I/O command {opcode:#x}");
            }
        }
        assert_eq!(bench.closed(&queue), None);
    }
}

#[test]
fn every_log_page_is_there_or_refused_and_the_lists_of_them_agree() {
    for kind in KINDS {
        let (mut bench, mut queue, _) = start(kind);
        let listed = words(&log(&mut bench, &mut queue, 0, 1024));
        for page in 0..=0xff_u16 {
            let status = bench.ask(&mut queue, op::LOG, &[127 << 16 | u32::from(page)], u32::MAX, 512).status;
            let is_here = has(LOGS, page, kind);
            assert_eq!(status, if is_here { 0 } else { 0x109 }, "log page {page:#x} of kind {kind}");
            assert_eq!(listed[usize::from(page)], u32::from(is_here), "log page {page:#x} in the list");
        }
    }
    let (mut bench, mut queue, _) = start(IO);
    let effects = words(&log(&mut bench, &mut queue, 5, 4096));
    let features = words(&log(&mut bench, &mut queue, 0x12, 1024));
    let changes = [u16::from(op::WRITE), op::WRITE_ZEROES.into(), op::DEALLOCATE.into()];
    for code in 0..=0xff_u16 {
        let at = usize::from(code);
        // Supported, of the controller's scope; of a namespace's, and whether blocks change.
        let admin = if has(ADMIN, code, IO) { 1 | 1 << 21 } else { 0 };
        assert_eq!(effects[at], admin, "effects of admin command {code:#x}");
        let nvm = if has(NVM, code, IO) { 1 | 1 << 20 | u32::from(changes.contains(&code)) << 1 } else { 0 };
        assert_eq!(effects[256 + at], nvm, "effects of I/O command {code:#x}");
        let scope = if [0x82, 0x83].contains(&code) { 1 << 20 } else { 1 << 21 };
        let feature = if has(FEATURES, code, IO) { 1 | scope } else { 0 };
        assert_eq!(features[at], feature, "feature {code:#x}");
    }
    assert!(effects[512..].iter().all(|word| *word == 0), "reserved");
    assert_eq!(log(&mut bench, &mut queue, 0x13, 4096), vec![0; 4096], "no command of the management interface");
}

#[test]
fn every_feature_structure_and_property_is_there_or_refused() {
    for kind in KINDS {
        let (mut bench, mut queue, _) = start(kind);
        for code in 0..=0xff_u16 {
            let feature = u32::from(code);
            for select in [0, 3] {
                let status = bench.ask(&mut queue, op::GET, &[select << 8 | feature], 1, 16).status;
                let expected = if has(FEATURES, code, kind) { 0 } else { 2 };
                assert_eq!(status, expected, "feature {code:#x} of kind {kind}, select {select}");
            }
            let status = bench.ask(&mut queue, op::IDENTIFY, &[feature], 1, 4096).status;
            let expected = if has(STRUCTURES, code, kind) { 0 } else { 2 };
            assert_eq!(status, expected, "structure {code:#x} of kind {kind}");
        }
        for at in (0..0x1000_u16).step_by(4) {
            let [short, long] = [false, true].map(|is_long| bench.property(&mut queue, at.into(), is_long).status == 0);
            let is_here = has(PROPERTIES, at, kind);
            let is_long = at == 0;
            assert_eq!((short, long), (is_here && !is_long, is_here && is_long), "property {at:#x}");
        }
        let capabilities = bench.property(&mut queue, 0, true).result;
        // 128 entries, contiguous, 10 s, the NVM command set, pages of 4 KiB, ready with media.
        assert_eq!(capabilities, 127 | 1 << 16 | 20 << 24 | 1 << 37 | 1 << 59);
        assert_eq!(bench.property(&mut queue, 0x68, false).result, 20);
    }
}

/// Holds `page` to the fields of a table, which cover it without a gap.
fn check(fields: &[Field], column: usize, page: &[u8], (bench, id): (&Bench, u16)) {
    let mut end = 0;
    for &(at, bytes, name, holds) in fields {
        assert_eq!(at, end, "{name} begins where the field before it ends");
        end = at + bytes;
        let field = &page[at..end];
        let padded = |text: &str, fill: u8| {
            let mut whole = text.as_bytes().to_vec();
            whole.resize(bytes, fill);
            whole
        };
        let number = |number: u64| {
            let mut whole = number.to_le_bytes().to_vec();
            assert!(bytes >= 8 || number >> (8 * bytes) == 0, "{name} fits");
            whole.resize(bytes, 0);
            whole
        };
        let expected = match holds[column] {
            Holds::Number(value) => number(value),
            Holds::Text(text) => padded(text, b' '),
            Holds::Name if column == IO => padded(bench.target.subsystem(), 0),
            Holds::Name => padded(DISCOVERY, 0),
            Holds::Controller => number(id.into()),
            Holds::Identity => {
                assert!(field.iter().any(|byte| *byte != 0), "{name}");
                continue;
            }
        };
        assert_eq!(field, expected, "{name}, in column {column}");
    }
    assert_eq!(end, page.len());
}

#[test]
fn every_field_of_the_structures_and_pages_holds_what_the_tables_say() {
    for kind in KINDS {
        let (mut bench, mut queue, id) = start(kind);
        let page = bench.ask(&mut queue, op::IDENTIFY, &[1], 0, 4096).data;
        check(CONTROLLER, kind, &page, (&bench, id));
    }
    let (mut bench, mut queue, id) = start(IO);
    // The second namespace could be the partner's, and is not.
    for (column, namespace) in [(0, 1), (1, 2)] {
        let page = bench.ask(&mut queue, op::IDENTIFY, &[0], namespace, 4096).data;
        check(NAMESPACE, column, &page, (&bench, id));
    }
    let health = log(&mut bench, &mut queue, 2, 512);
    check(HEALTH, IO, &health, (&bench, id));
    let firmware = log(&mut bench, &mut queue, 3, 512);
    check(FIRMWARE, IO, &firmware, (&bench, id));
    assert_eq!(log(&mut bench, &mut queue, 1, 4096), vec![0; 4096], "no errors");
    assert_eq!(log(&mut bench, &mut queue, 4, 4096), vec![0; 4096], "no changed namespaces");
    let (mut bench, mut queue, id) = start(OF_DISCOVERY);
    let discovery = log(&mut bench, &mut queue, 0x70, 4096);
    assert_eq!((discovery[8], &discovery[9..1024]), (3, &[0; 1015][..]), "three entries, and nothing else in the head");
    check(ENTRY, OF_DISCOVERY, &discovery[1024..2048], (&bench, id));
    check(ENTRY, IO, &discovery[2048..3072], (&bench, id));
}

fn page() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/nvme-conformance.md")
}

const BEGIN: &str = "<!-- tables: written by a test from tests/nvme_tcp/conformance_table.rs -->\n";

fn list(title: &str, rows: &[Row]) -> String {
    let cell = |row: &Row, kind: usize| match (row.needs[kind], row.has[kind]) {
        (Need::Mandatory, _) => "mandatory, here",
        (Need::Optional, true) => "optional, here",
        (Need::Optional, false) => "optional, not here",
        (Need::Prohibited, _) => "-",
    };
    let mut text = format!("## {title}\n\n| | | I/O controller | discovery controller |\n|---|---|---|---|\n");
    for row in rows {
        let (io, discovery) = (cell(row, IO), cell(row, OF_DISCOVERY));
        text += &format!("| {:02x}h | {} | {io} | {discovery} |\n", row.code, row.name);
    }
    text + "\n"
}

fn structure(title: &str, columns: [&str; 2], fields: &[Field]) -> String {
    let cell = |holds: Holds| match holds {
        Holds::Number(number) if number < 10 => number.to_string(),
        Holds::Number(number) => format!("{number:x}h"),
        Holds::Text(env!("CARGO_PKG_VERSION")) => "the version".to_owned(),
        Holds::Text(text) => format!("`{text}`"),
        Holds::Name => "its name".to_owned(),
        Holds::Controller => "its id".to_owned(),
        Holds::Identity => "from the pools' identities".to_owned(),
    };
    let [first, second] = columns;
    let mut text = format!("## {title}\n\n| bytes | field | {first} | {second} |\n|---|---|---|---|\n");
    for &(at, bytes, name, [a, b]) in fields {
        text += &format!("| {}:{at} | {name} | {} | {} |\n", at + bytes - 1, cell(a), cell(b));
    }
    text + "\n"
}

fn tables() -> String {
    let kinds = ["I/O controller", "discovery controller"];
    let text = [
        list("Admin commands", ADMIN),
        list("I/O commands", NVM),
        list("Log pages", LOGS),
        list("Features", FEATURES),
        list("Identify structures", STRUCTURES),
        list("Properties", PROPERTIES),
        structure("Identify Controller", kinds, CONTROLLER),
        structure("Identify Namespace", ["a volume of 8 MiB", "no volume"], NAMESPACE),
        structure("Discovery log entry", ["the volumes' subsystem", "the service itself"], ENTRY),
    ];
    text.concat().trim_end().to_owned() + "\n"
}

fn pieces() -> (String, String) {
    let text = fs::read_to_string(page()).expect("the page is part of the repository");
    let (before, tables) = text.split_once(BEGIN).expect("the page has the mark before the tables");
    (before.to_owned(), tables.to_owned())
}

#[test]
fn the_page_shows_the_tables() {
    let (_, found) = pieces();
    assert!(
        found == tables(),
        "docs/nvme-conformance.md does not show the tables: `cargo test --test nvme_tcp -- --ignored write_conformance`"
    );
}

#[test]
#[ignore = "writes docs/nvme-conformance.md"]
fn write_conformance() {
    let (before, _) = pieces();
    fs::write(page(), before + BEGIN + &tables()).expect("the repository can be written");
}
