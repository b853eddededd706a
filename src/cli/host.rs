//! `twinlog host`: who may connect over NVMe/TCP.

use super::{
    args::{HostCommand, NodeArgs, SecretArgs},
    client::ask,
    compose::random_id,
    output::{Exit, Failure, Output, unexpected},
};
use serde::Serialize;
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};
use twinlog::{
    control::render,
    node::admin::{AdminReply, AdminRequest, HostEntry, SecretText},
    serve::nvme_tcp::auth::Secret,
};

/// Largest file in which a secret is looked for.
const FILE_BYTES_MAX: u64 = 4096;

#[derive(Serialize)]
struct Hosts<'a> {
    hosts: &'a [HostEntry],
}

/// The host, and what was made for it, which nobody can be told again.
#[derive(Serialize)]
struct Changed<'a> {
    nqn: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    controller_secret: Option<&'a str>,
}

/// `twinlog host ...`
pub(crate) fn run(command: HostCommand, output: &Output) -> Result<Exit, Failure> {
    match command {
        HostCommand::Add { nqn, host_id, secrets, node } => add(&nqn, host_id, &secrets, &node, output),
        HostCommand::List(node) => match ask(&node, &AdminRequest::HostList)? {
            AdminReply::Hosts { hosts } => {
                output.show(&Hosts { hosts: &hosts }, || render::hosts(&hosts))?;
                Ok(Exit::Done)
            }
            other => Err(unexpected(other)),
        },
        HostCommand::Remove { nqn, node } => match ask(&node, &AdminRequest::HostRemove { nqn: nqn.clone() })? {
            AdminReply::Done => {
                output.show(&Changed { nqn: &nqn, secret: None, controller_secret: None }, String::new)?;
                Ok(Exit::Done)
            }
            other => Err(unexpected(other)),
        },
    }
}

fn add(nqn: &str, id: Option<String>, secrets: &SecretArgs, node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    let secret = secret(secrets.secret_file.as_deref(), secrets.new_secret)?;
    let controller = self::secret(secrets.controller_secret_file.as_deref(), secrets.new_controller_secret)?;
    let text = |secret: &Option<(String, bool)>| secret.as_ref().map(|(text, _)| SecretText(text.clone()));
    let request =
        AdminRequest::HostAdd { nqn: nqn.to_owned(), id, secret: text(&secret), controller_secret: text(&controller) };
    match ask(node, &request)? {
        AdminReply::Done => {}
        other => return Err(unexpected(other)),
    }
    let made = |secret: &Option<(String, bool)>| secret.clone().filter(|(_, is_new)| *is_new).map(|(text, _)| text);
    let (secret, controller) = (made(&secret), made(&controller));
    let added = Changed { nqn, secret: secret.as_deref(), controller_secret: controller.as_deref() };
    output.show(&added, || {
        let line = |option: &str, secret: Option<&str>| secret.map(|secret| format!("{option} {secret}\n"));
        let lines = [line("--dhchap-secret", added.secret), line("--dhchap-ctrl-secret", added.controller_secret)];
        lines.into_iter().flatten().collect()
    })?;
    Ok(Exit::Done)
}

/// The secret in a file, or a new one, and whether it is new.
fn secret(file: Option<&Path>, is_new: bool) -> Result<Option<(String, bool)>, Failure> {
    if is_new {
        let [low, high] = [random_id()?, random_id()?].map(u128::to_le_bytes);
        let bits = [low, high].concat().try_into().expect("twice sixteen");
        return Ok(Some((Secret::new(bits).to_text(), true)));
    }
    let Some(path) = file else { return Ok(None) };
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::system("read", path.display(), &error))?;
    Ok(Some((text.trim().to_owned(), false)))
}
