//! What a guest says on its serial console: the kernel's messages, and one line of the lab's own that carries the payload's result.

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The payload ended with this exit code.
    Exit(u8),
    /// The kernel gave up, with these words.
    Panic(String),
    /// It was still running when its time was over.
    Timeout,
    /// QEMU ended and the guest had said nothing.
    Died(String),
}

/// Before the exit code; `init` prints it.
const MARK: &str = "lab: exit ";
const PANIC: &str = "Kernel panic";

/// The result that the console shows, if it shows one. The kernel may print its own messages in front of the mark, in the same line; the
/// line ends as terminals like it, with a carriage return.
#[must_use]
pub fn outcome(console: &[u8]) -> Option<Outcome> {
    let text = String::from_utf8_lossy(console);
    let mut found = None;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once(MARK) {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            // Cut off in the middle, it is no result.
            let whole = rest[digits.len()..].starts_with('.');
            if let (true, Ok(code)) = (whole, digits.parse()) {
                found = Some(Outcome::Exit(code));
            }
        } else if let Some(start) = line.find(PANIC) {
            found = found.or_else(|| Some(Outcome::Panic(line[start..].trim().to_owned())));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_found_among_messages() {
        assert_eq!(outcome(b"[    1.0] nbd0: hello\r\nlab: exit 0.\r\n"), Some(Outcome::Exit(0)));
        assert_eq!(outcome(b"[    1.0] half a line lab: exit 143.\r\n[ 2.0] reboot\r\n"), Some(Outcome::Exit(143)));
        assert_eq!(outcome(b"\xff\xfe\r\nlab: exit 7.\r\n"), Some(Outcome::Exit(7)));
    }

    #[test]
    fn no_result_is_no_success() {
        for console in [&b""[..], b"lab: exit ", b"lab: exit 0", b"lab: exit 1", b"lab: exit .", b"lab: exit 999.\r\n"]
        {
            assert_eq!(outcome(console), None, "{}", String::from_utf8_lossy(console));
        }
    }

    #[test]
    fn a_panic_is_quoted() {
        let text = b"[ 1.0] Kernel panic - not syncing: VFS\r\n[ 1.1] ---[ end Kernel panic - not syncing ]---\r\n";
        assert_eq!(outcome(text), Some(Outcome::Panic("Kernel panic - not syncing: VFS".to_owned())));
        // A panic while the machine is switched off does not change the payload's result.
        assert_eq!(outcome(b"lab: exit 3.\r\nKernel panic\r\n"), Some(Outcome::Exit(3)));
    }
}
