//! The commands that a page of `docs` tells people to type, so that they can be run as they stand there.
//!
//! A block of commands begins with a comment that says where they are typed: `# on the first machine`.

use anyhow::{Context as _, Result, ensure};

/// Where a block is typed, by what its first line says after `# on `.
const PLACES: [(&str, &[usize]); 5] = [
    ("all three machines", &[0, 1, 2]),
    ("both machines", &[0, 1]),
    ("the first machine", &[0]),
    ("the second machine", &[1]),
    ("the third machine", &[2]),
];
const FENCE: &str = "```";

/// Commands that are typed one after the other.
#[derive(Debug, PartialEq, Eq)]
pub struct Block<'a> {
    /// The heading above it.
    pub heading: &'a str,
    /// On which machines.
    pub machines: &'static [usize],
    /// As they stand there.
    pub commands: &'a str,
}

/// The blocks below `## section`, in their order.
///
/// # Errors
///
/// There is no such section, it has no blocks, or a block does not say where it is typed.
pub fn blocks<'a>(page: &'a str, section: &str) -> Result<Vec<Block<'a>>> {
    let (_, text) = page.split_once(&format!("\n## {section}\n")).with_context(|| format!("no section {section}"))?;
    let text = text.split("\n## ").next().unwrap_or_default();
    let mut found = Vec::new();
    for part in text.split("\n### ").skip(1) {
        let (heading, body) = part.split_once('\n').context("a heading without a text")?;
        // Every second piece lies between two fences.
        for commands in body.split(FENCE).skip(1).step_by(2) {
            let commands = commands.trim_start_matches('\n');
            let place = commands.lines().next().and_then(|line| line.strip_prefix("# on "));
            let machines = PLACES.iter().find(|(name, _)| place == Some(name));
            let (_, machines) = machines.with_context(|| format!("{heading}: where is this typed?\n{commands}"))?;
            found.push(Block { heading, machines, commands });
        }
    }
    ensure!(!found.is_empty(), "section {section} has no commands");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_with_their_heading_and_machines() {
        let page = "# Page\n\n## A\n\n### One\n\n```\n# on the first machine\nx\n```\n## B\ntext\n### Two\n\n```\n# on both machines\na \\\n  b\n```\nand\n\
                    ```\n# on the third machine\nc\n```\n### Three\ntext\n## C\n```\nd\n```\n";
        let block = |machines, commands| Block { heading: "Two", machines, commands };
        let expected = [block(&[0, 1], "# on both machines\na \\\n  b\n"), block(&[2], "# on the third machine\nc\n")];
        assert_eq!(blocks(page, "B").unwrap(), expected);
        assert!(blocks(page, "D").is_err());
        let nowhere = page.replace("# on both machines\n", "");
        assert!(blocks(&nowhere, "B").unwrap_err().to_string().contains("Two: where is this typed?"));
    }
}
