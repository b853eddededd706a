//! What a host knows: its secret, perhaps the controller's, and which functions and groups it offers.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use twinlog_chap::{Group, Hash, Secret};

/// Largest file in which a secret is looked for, in bytes.
const FILE_BYTES_LIMIT: u64 = 4096;

/// What fills bytes with what nobody can foresee.
pub(crate) type Draw = fn(&mut [u8]) -> io::Result<()>;

/// What a host knows.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) secret: Secret,
    /// What the controller has to know; `None`: nobody asks.
    pub(crate) controller_secret: Option<Secret>,
    /// What is offered to the target, which chooses.
    pub(crate) hashes: Vec<Hash>,
    pub(crate) groups: Vec<Group>,
    pub(crate) draw: Draw,
}

impl Keys {
    /// The secrets in these files, and everything that is known to be offered. Errors are for people, and repeat nothing of a secret.
    pub(crate) fn read(secret: &Path, controller_secret: Option<&Path>) -> Result<Self, String> {
        if controller_secret == Some(secret) && is_standard_input(secret) {
            return Err("standard input has one secret: the other one must be in a file".to_owned());
        }
        let secret = read(secret)?;
        let controller_secret = controller_secret.map(read).transpose()?;
        if controller_secret.as_ref().is_some_and(|other| other.has_bytes_of(&secret)) {
            return Err("the host's secret and the controller's are the same".to_owned());
        }
        let (hashes, groups) = (Hash::ALL.to_vec(), Group::ALL.to_vec());
        Ok(Self { secret, controller_secret, hashes, groups, draw: draw_from_kernel })
    }

    /// The same, which offers nothing else where something is given.
    pub(crate) fn offering(mut self, hash: Option<Hash>, group: Option<Group>) -> Self {
        self.hashes = hash.map_or(self.hashes, |hash| vec![hash]);
        self.groups = group.map_or(self.groups, |group| vec![group]);
        self
    }
}

/// Random bytes of the kernel.
fn draw_from_kernel(bytes: &mut [u8]) -> io::Result<()> {
    File::open("/dev/urandom")?.read_exact(bytes)
}

/// The secret in a file, or of standard input (`-`).
fn read(path: &Path) -> Result<Secret, String> {
    let text = if is_standard_input(path) { take(io::stdin().lock()) } else { take(open(path)?) };
    let text = text.map_err(|error| unreadable(path, &error))?;
    Secret::parse(text.trim()).map_err(|why| format!("{} has no secret in it: {why}", path.display()))
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file that nobody else may read.
fn open(path: &Path) -> Result<File, String> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let mode = file.metadata().map_err(|error| unreadable(path, &error))?.mode() & 0o777;
    let path = path.display();
    match mode & 0o077 {
        0 => Ok(file),
        _ => Err(format!(
            "{path} can be read or changed by others (mode {mode:o}), and there is a secret in it: chmod 600 {path}"
        )),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

fn take(source: impl Read) -> io::Result<String> {
    let mut text = String::new();
    source.take(FILE_BYTES_LIMIT).read_to_string(&mut text).map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn secrets_are_read_from_files_that_are_nobody_else_s() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let [first, second] = [1, 2].map(|byte| Secret::new([byte; 32]).to_text());
        let own = file("own", &format!("\n{first}\n"), 0o600);
        let other = file("other", &second, 0o400);
        let keys = Keys::read(&own, Some(&other)).unwrap();
        assert_eq!((keys.secret, keys.controller_secret), (Secret::new([1; 32]), Some(Secret::new([2; 32]))));
        assert_eq!((keys.hashes.len(), keys.groups.len()), (3, 6));
        let refusal = |path: &Path, controller: Option<&Path>| Keys::read(path, controller).unwrap_err();
        assert!(refusal(&own, Some(&own)).contains("are the same"));
        let plain = file("plain", &first.replacen(":01:", ":00:", 1), 0o600);
        assert!(refusal(&own, Some(&plain)).contains("are the same"), "one transformed, one not");
        assert!(refusal(Path::new("-"), Some(Path::new("-"))).contains("standard input has one secret"));
        assert!(refusal(&folder.path().join("none"), None).contains("cannot read"));
        for mode in [0o604, 0o640, 0o602, 0o610] {
            assert!(refusal(&file("open", &first, mode), None).contains("chmod 600"), "{mode:o}");
        }
        let long = format!("{}{first}", " ".repeat(4096 - first.len() + 1));
        let typo = first.replace("AQEB", "AQEC");
        for (text, why) in [(&first[1..], "the form"), ("", "the form"), (&typo, "checksum"), (&long, "the form")] {
            let said = refusal(&file("bad", text, 0o600), Some(&own));
            assert!(said.contains(why) && !said.contains("AQE"), "{said}");
        }
        assert!(Keys::read(&file("long", &long[1..], 0o600), None).is_ok(), "as long as is looked at");
    }

    #[test]
    fn what_the_kernel_draws_is_new() {
        let (mut first, mut second) = ([0; 32], [0; 32]);
        draw_from_kernel(&mut first).unwrap();
        draw_from_kernel(&mut second).unwrap();
        assert!(first != second && first != [0; 32]);
    }
}
