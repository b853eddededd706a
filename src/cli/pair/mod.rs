//! `twinlog pair`: takeover, giveback, and what the pair is doing about each pool; [`configure`] and [`create`] make a pair on two machines.

mod configure;
mod create;

use super::{
    args::{NodeArgs, PairCommand},
    client::{ask, show_done, status_of},
    output::{Exit, Failure, Output, unexpected},
    provision,
};
use serde::Serialize;
use std::path::Path;
use twinlog::{
    control::config,
    node::admin::{AdminReply, AdminRequest, PairPoolStatus, PairStatus},
};

/// Runs a command of the pair.
pub(crate) fn run(command: PairCommand, output: &Output) -> Result<Exit, Failure> {
    match command {
        PairCommand::Takeover { pool, force, yes, node } => takeover(pool, force, yes, &node, output),
        PairCommand::Giveback { pool, node } => {
            show_done(ask(&node, &AdminRequest::PairGiveback { pool })?, output, "the partner owns the pool")
        }
        PairCommand::Drain(node) => drain(&node, output),
        PairCommand::Explain(node) => explain(&node, output),
        PairCommand::Mailbox { config } => make_mailbox(&config, output),
        PairCommand::Configure(args) => configure::run(&args, output),
        PairCommand::Create { config } => create::run(&config, output),
    }
}

/// Makes an empty mailbox; one that is there is never touched, as nobody could tell who may serve a pool.
fn make_mailbox(file: &Path, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Made<'a> {
        mailbox: &'a Path,
    }
    let config = config::load(file)?;
    let Some((pair, path)) = config.pair.as_ref().and_then(|pair| Some((pair, pair.mailbox.as_deref()?))) else {
        let message = format!("{} has no [pair] with a `mailbox`", file.display());
        return Err(Failure::new(Exit::Usage, message, "a witness makes what it needs by itself"));
    };
    if path.exists() {
        let message = format!("{} is there, and may say who serves which pool", path.display());
        return Err(Failure::new(
            Exit::Refused,
            message,
            "stop both nodes, look whether it can be mended, then move it away",
        ));
    }
    provision::make_mailbox(path, [&config.name, &pair.partner])?;
    output.show(&Made { mailbox: path }, || format!("{} is made, with no register in it\n", path.display()))?;
    Ok(Exit::Done)
}

fn takeover(pool: Option<String>, force: bool, yes: bool, node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    if force && !yes {
        let pair = pair_of(node)?;
        let status = chosen(&pair, pool.as_deref())?;
        let message = format!(
            "a forced takeover of pool {} may lose answered changes: the register says that this node's log is {}, and {} served it last",
            status.name,
            status.mirror,
            if status.owner.is_empty() { "nobody knows who" } else { &status.owner }
        );
        let hint = format!("twinlog pair takeover {} --force --yes", status.name);
        return Err(Failure::new(Exit::Refused, message, hint));
    }
    show_done(ask(node, &AdminRequest::PairTakeover { pool, force })?, output, "this node owns the pool")
}

/// Hands over whatever this node serves: a pool of the partner's as with `giveback`, then the own one, to be kept.
fn drain(node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    if let Some(away) = pair_of(node)?.pools.get(1).filter(|pool| pool.is_away) {
        let given_back = ask(node, &AdminRequest::PairGiveback { pool: Some(away.name.clone()) })?;
        if given_back != AdminReply::Done {
            return Err(unexpected(given_back));
        }
    }
    let text = "the partner owns this node's pool, and keeps it: `twinlog pair takeover POOL` here, or `pair giveback` there, ends that";
    show_done(ask(node, &AdminRequest::PairDrain)?, output, text)
}

/// For each pool: what this node sees, what it does, why, until when, and what comes next.
fn explain(node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Explained<'a> {
        partner: &'a str,
        link: &'a str,
        refusal: &'a [String; 2],
        pools: &'a [PairPoolStatus],
    }
    let pair = pair_of(node)?;
    let explained = Explained { partner: &pair.partner, link: &pair.link, refusal: &pair.refusal, pools: &pair.pools };
    output.show(&explained, || {
        let mut text = format!("partner {}: interconnect {}\n", pair.partner, pair.link);
        let [refusal, mending] = &pair.refusal;
        if !refusal.is_empty() {
            text.push_str(&format!("  {:<20} {refusal}\n  {:<20} {mending}\n", "no pair", "mend it"));
        }
        for pool in &pair.pools {
            let owner = if pool.owner.is_empty() { "unknown" } else { &pool.owner };
            let kept = if pool.kept { ", which keeps it" } else { "" };
            text.push_str(&format!("\npool {}: {}\n", pool.name, pool.row));
            let lines = [
                ("register", format!("owner {owner}{kept}, epoch {}, mirrored log {}", pool.epoch, pool.mirror)),
                ("here", pool.open.clone()),
                ("does", pool.action.clone()),
                ("why", pool.why.clone()),
                ("until", pool.deadline.clone()),
                ("next", pool.next.clone()),
                ("command", pool.command.clone()),
                ("trouble", pool.trouble.clone()),
                ("fence", pool.fence.replace('\n', " / ")),
                ("if this node died", pool.if_dies[0].clone()),
                ("if its partner died", pool.if_dies[1].clone()),
            ];
            for (head, tail) in lines.iter().filter(|(_, tail)| !tail.is_empty()) {
                text.push_str(&format!("  {head:<20} {tail}\n"));
            }
        }
        text
    })?;
    Ok(Exit::Done)
}

fn pair_of(node: &NodeArgs) -> Result<PairStatus, Failure> {
    status_of(node)?.pair.ok_or_else(|| Failure::new(Exit::Error, "this node has no partner", "twinlog status"))
}

/// The pool of that name; without one the partner's.
fn chosen<'a>(pair: &'a PairStatus, name: Option<&str>) -> Result<&'a PairPoolStatus, Failure> {
    let found = match name {
        Some(name) => pair.pools.iter().find(|pool| pool.name == name),
        None => pair.pools.get(1),
    };
    found.ok_or_else(|| {
        Failure::new(Exit::Error, format!("no pool is called '{}'", name.unwrap_or_default()), "twinlog pair explain")
    })
}
