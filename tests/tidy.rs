//! The house rules that a compiler does not hold: layers, sizes, names, links.
//!
//! Everything here is a plain scan of the source tree's text. It reads what lies under the root of the repository, less what
//! `.gitignore` names; it needs no git and no network. A scan that is too simple for some case (a path built from `super::`,
//! an import made by a macro) lets it pass: these tests keep honest people tidy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A longer source file must be split. The longest idea that one person can hold is a little shorter.
const LINES_MAX: usize = 1500;

/// Longer source files are listed when the test runs with `--nocapture`: candidates for a split.
const LINES_WANTED: usize = 600;

/// Larger files do not belong into a source repository: golden images compress, pictures shrink.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the root of the repository may hold.
const TOP_LEVEL: [&str; 18] = [
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".deny.toml",
    ".git",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "benches",
    "build.rs",
    "docs",
    "drivers",
    "src",
    "tests",
    "tools",
];

/// Drivers that touch the machine. One folder chooses them; everything else is generic over `Platform`.
const CONCRETE_DRIVERS: [&str; 5] = ["twinlog_file", "twinlog_uring", "twinlog_pmem", "twinlog_nvme", "twinlog_vfio"];

/// That one folder.
const COMPOSITION: &str = "src/cli/compose/";

/// A file of the repository that holds text.
struct Source {
    /// Path from the root, with `/`.
    path: String,
    text: String,
}

impl Source {
    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    /// Lines of code before the file's unit tests, each with its number from 1; comments are cut off.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"));
        lines.enumerate().map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }

    /// Whether the whole file is test code.
    fn is_test(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        let in_folder = parts.iter().any(|part| ["tests", "benches", "fuzz"].contains(part));
        in_folder || self.path.ends_with("/tests.rs") || self.path.ends_with("_tests.rs")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Names in `.gitignore`; this project uses plain names only.
fn ignored() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(".gitignore")).expect(".gitignore is part of the repository");
    text.lines().map(|line| line.trim_matches('/').to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Every file of the repository, as paths from the root.
fn files() -> Vec<String> {
    let mut ignored = ignored();
    ignored.insert(".git".to_owned());
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the repository is readable") {
            let entry = entry.expect("a folder of the repository is readable");
            let name = entry.file_name().to_string_lossy().into_owned();
            if ignored.contains(&name) {
                continue;
            }
            if entry.file_type().expect("the kernel knows the type").is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path();
                let inside = path.strip_prefix(root()).expect("found below the root");
                found.push(inside.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// Every file that holds UTF-8 text.
fn sources() -> Vec<Source> {
    let read = |path: String| Some(Source { text: fs::read_to_string(root().join(&path)).ok()?, path });
    files().into_iter().filter_map(read).collect()
}

/// Fails with one line for each problem.
fn none(rule: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{rule}:\n  {}", problems.join("\n  "));
}

/// The layers, lowest first, from the table in the crate's documentation.
fn layers() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs is readable");
    let row = |line: &str| {
        let cell = line.strip_prefix("//! | [`")?.split('`').next()?;
        Some(cell.rsplit('@').next().unwrap_or(cell).to_owned())
    };
    text.lines().filter_map(row).collect()
}

/// Modules of the crate's root that a line of code names through `crate::`.
fn imported(line: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
    let mut names = Vec::new();
    for (start, _) in line.match_indices("crate::") {
        let before = line[..start].chars().next_back();
        if before.is_some_and(|letter| letter == '$' || letter == '_' || letter.is_alphanumeric()) {
            continue;
        }
        let rest = &line[start + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut piece = String::new();
        for letter in list.chars() {
            match letter {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && letter == ',') {
                names.push(word(piece.trim()));
                piece.clear();
            } else {
                piece.push(letter);
            }
            if depth == 0 {
                break;
            }
        }
    }
    names
}

#[test]
fn imports_are_read_as_written() {
    assert_eq!(imported("use crate::base::Lsn;"), ["base"]);
    assert_eq!(imported("use crate::{base::{Lsn, Epoch}, format, pool::Pool};"), ["base", "format", "pool"]);
    assert_eq!(imported("let x = crate::cp::start(crate::fs::Volume::new());"), ["cp", "fs"]);
    assert_eq!(imported("use twinlog_crate::base; $crate::pool"), Vec::<String>::new());
}

#[test]
fn layers_import_only_from_below() {
    let layers = layers();
    assert!(layers.len() >= 10, "the table of layers in src/lib.rs has lost rows: {layers:?}");
    let height = |name: &str| layers.iter().position(|layer| layer == name);
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs") && source.path.starts_with("src/")) {
        let Some((layer, _)) = source.path["src/".len()..].split_once('/') else { continue };
        let Some(own) = height(layer) else {
            if layer != "cli" {
                problems.push(format!("src/{layer} is not in the table of layers of src/lib.rs"));
            }
            continue;
        };
        // `use` lists span lines: read a statement as one.
        let code: Vec<(usize, &str)> = source.code().collect();
        for (index, (number, line)) in code.iter().enumerate() {
            let mut statement = (*line).to_owned();
            if line.contains("crate::{") {
                for (_, more) in &code[index + 1..] {
                    if statement.contains(';') {
                        break;
                    }
                    statement.push_str(more);
                }
            }
            for name in imported(&statement) {
                if height(&name).is_some_and(|other| other > own) {
                    problems.push(format!("{}:{number}: {layer} lies below {name}", source.path));
                }
            }
        }
    }
    none("a layer imports only from layers above it in the table of src/lib.rs", &problems);
}

#[test]
fn source_files_are_short() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs")) {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            problems.push(format!("{}: {lines} lines", source.path));
        } else if lines > LINES_WANTED {
            println!("{}: {lines} lines; {LINES_WANTED} are wanted", source.path);
        }
    }
    none("a source file has at most 1500 lines", &problems);
}

#[test]
fn source_files_say_what_they_are() {
    let opens = |source: &&Source| source.is("rs") && !source.text.starts_with("//!");
    let problems: Vec<String> = sources().iter().filter(opens).map(|source| source.path.clone()).collect();
    none("a source file opens with //! and says what it is", &problems);
}

#[test]
fn drivers_are_chosen_in_one_place() {
    let mut problems = Vec::new();
    let engine =
        |source: &&Source| source.is("rs") && source.path.starts_with("src/") && !source.path.starts_with(COMPOSITION);
    for source in sources().iter().filter(engine) {
        for (number, line) in source.code() {
            for driver in CONCRETE_DRIVERS.iter().filter(|driver| line.contains(*driver)) {
                problems.push(format!("{}:{number}: {driver}", source.path));
            }
        }
    }
    none("only src/cli/compose/ names concrete drivers", &problems);
}

#[test]
fn failures_are_explained_or_returned() {
    let banned = [".unwrap()", "todo!(", "unimplemented!(", "dbg!("];
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs") && !source.is_test()) {
        for (number, line) in source.code() {
            for word in banned.iter().filter(|word| line.contains(*word)) {
                problems.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    none("product code returns errors, or says in expect() why it cannot fail", &problems);
}

#[test]
fn nothing_is_left_for_later() {
    let marks = ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "X".repeat(3)];
    let is_word =
        |line: &str, mark: &str| line.split(|letter: char| !letter.is_alphanumeric()).any(|word| word == mark);
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs") || source.is("md") || source.is("sh")) {
        for (index, line) in source.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| is_word(line, mark)) {
                problems.push(format!("{}:{}: {mark}", source.path, index + 1));
            }
        }
    }
    none("work that is left goes to the issue tracker", &problems);
}

#[test]
fn text_is_clean() {
    let conflict = ["<".repeat(7), ">".repeat(7)];
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| !source.path.starts_with("tests/golden/")) {
        for (index, line) in source.text.lines().enumerate() {
            let place = format!("{}:{}", source.path, index + 1);
            if line.ends_with([' ', '\t', '\r']) {
                problems.push(format!("{place}: white space at the end of the line"));
            }
            if conflict.iter().any(|mark| line.starts_with(mark.as_str())) {
                problems.push(format!("{place}: mark of a merge conflict"));
            }
        }
        if !source.text.is_empty() && !source.text.ends_with('\n') {
            problems.push(format!("{}: no newline at the end", source.path));
        }
    }
    none("text files are clean", &problems);
}

#[test]
fn the_repository_holds_what_it_should() {
    let ignored = ignored();
    let mut problems = Vec::new();
    for entry in fs::read_dir(root()).expect("the root is readable") {
        let name = entry.expect("the root is readable").file_name().to_string_lossy().into_owned();
        if !TOP_LEVEL.contains(&name.as_str()) && !ignored.contains(&name) {
            problems.push(format!("{name}: has no place at the top level"));
        }
    }
    for path in files() {
        let bytes = fs::metadata(root().join(&path)).expect("the file was just found").len();
        if bytes > FILE_BYTES_MAX {
            problems.push(format!("{path}: {bytes} bytes are too many"));
        }
    }
    none("the layout of docs/CONTRIBUTING.md", &problems);
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    // Home directories by their shape, and the place of this very build if it is long enough to be telling.
    let mut traces = ["/home", "/root", "/Users"].map(|folder| format!("{folder}/")).to_vec();
    let here = root().to_string_lossy().into_owned();
    if here.len() >= 10 {
        traces.push(here);
    }
    let mut problems = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            for trace in traces.iter().filter(|trace| line.contains(trace.as_str())) {
                if source.path != "tests/tidy.rs" {
                    problems.push(format!("{}:{}: {trace}", source.path, index + 1));
                }
            }
        }
    }
    none("no path of a person's machine", &problems);
}

/// Targets of a page's links, with the line of each; code blocks and inline code are skipped.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second piece between backticks is inline code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for piece in prose.split("](").skip(1) {
            let target = piece.split([')', ' ']).next().unwrap_or_default();
            found.push((index + 1, target.to_owned()));
        }
    }
    found
}

/// The names by which a page's headings can be linked to, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let slug = |heading: &str| -> String {
        let kept = heading.trim().chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
    };
    text.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#'))).collect()
}

#[test]
fn links_between_pages_resolve() {
    let pages: BTreeMap<String, String> =
        sources().into_iter().filter(|source| source.is("md")).map(|source| (source.path, source.text)).collect();
    let mut problems = Vec::new();
    for (path, text) in &pages {
        for (line, target) in links(text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = Path::new(path).parent().unwrap_or(Path::new(""));
            let aim = if file.is_empty() { root().join(path) } else { root().join(folder).join(file) };
            if !aim.exists() {
                problems.push(format!("{path}:{line}: {target} does not exist"));
            } else if !anchor.is_empty() && aim.extension().is_some_and(|extension| extension == "md") {
                let there = fs::read_to_string(&aim).expect("the page exists");
                if !anchors(&there).contains(anchor) {
                    problems.push(format!("{path}:{line}: {target}: no such heading"));
                }
            }
        }
    }
    none("a link leads somewhere", &problems);
}

#[test]
fn links_are_read_as_written() {
    let page = "[a](b.md) and [c](d.md#e-f \"title\")\n`[x](y)`\n```\n[in](code)\n```\n";
    assert_eq!(links(page), [(1, "b.md".to_owned()), (1, "d.md#e-f".to_owned())]);
    assert!(anchors("# One: two `three`\n").contains("one-two-three"));
}

#[test]
fn decisions_are_numbered() {
    let mut names: Vec<String> = files().into_iter().filter(|path| path.starts_with("docs/decisions/")).collect();
    names.sort();
    let mut problems = Vec::new();
    for (index, path) in names.iter().enumerate() {
        let name = &path["docs/decisions/".len()..];
        let number = format!("{:04}", index + 1);
        if !name.starts_with(&format!("{number}-")) || !name.ends_with(".md") {
            problems.push(format!("{path}: {number}-title.md is expected here"));
        }
        let text = fs::read_to_string(root().join(path)).expect("the page was just found");
        if !text.starts_with(&format!("# {number}: ")) {
            problems.push(format!("{path}: begins with \"# {number}: title\""));
        }
    }
    none("decisions are numbered without gaps", &problems);
}

#[test]
fn every_page_can_be_reached() {
    let sources = sources();
    let pages = sources.iter().filter(|source| source.is("md"));
    let mut reached = BTreeSet::from(["README.md".to_owned()]);
    for page in pages.clone() {
        let folder = root().join(Path::new(&page.path).parent().unwrap_or(Path::new("")));
        for (_, target) in links(&page.text) {
            let file = target.split('#').next().unwrap_or_default();
            if let Ok(aim) = folder.join(file).canonicalize()
                && let Ok(inside) = aim.strip_prefix(root().canonicalize().expect("the root exists"))
            {
                reached.insert(inside.to_string_lossy().into_owned());
                // A link to a folder reaches what lies in it.
                let below = pages.clone().filter(|other| Path::new(&other.path).starts_with(inside));
                if aim.is_dir() {
                    reached.extend(below.map(|other| other.path.clone()));
                }
            }
        }
    }
    let lost: Vec<String> = pages.map(|page| page.path.clone()).filter(|path| !reached.contains(path)).collect();
    none("every page is linked from another one", &lost);
}
