//! `twinlog events`: what has happened on a node, and what happens.

use super::{
    args::EventsArgs,
    layout,
    output::{Exit, Failure, Output, unexpected},
    pause,
};
use humantime::format_rfc3339_millis;
use serde::Serialize;
use std::time::{Duration, UNIX_EPOCH};
use twinlog::{
    control::client::AdminClient,
    node::admin::{AdminReply, AdminRequest, NodeEvent},
};

/// How often a node that is followed is asked.
const POLL: Duration = Duration::from_millis(200);

/// Prints every event that the node keeps, and those that come.
pub(crate) fn run(args: &EventsArgs, output: &Output) -> Result<Exit, Failure> {
    let (mut node, mut life, mut after) = (None, 0, 0);
    loop {
        match ask(args, &mut node, after) {
            Ok((now, events, last)) => {
                // A process that was started again counts from the beginning.
                if life != 0 && now != life {
                    (life, after) = (now, 0);
                    continue;
                }
                life = now;
                events.iter().for_each(|event| show(event, output));
                after = events.last().map_or(after, |event| event.sequence);
                if after < last && !events.is_empty() {
                    continue;
                }
                if !args.follow {
                    return Ok(Exit::Done);
                }
            }
            Err(failure) if !args.follow || life == 0 => return Err(failure),
            // It has died or stops; whoever follows waits until it is back.
            Err(_) => node = None,
        }
        pause(POLL);
    }
}

/// The life of the node's process, its events after number `after`, and the number of the last one.
fn ask(args: &EventsArgs, node: &mut Option<AdminClient>, after: u64) -> Result<(u64, Vec<NodeEvent>, u64), Failure> {
    let client = match node {
        Some(client) => client,
        None => node.insert(layout::connect(&args.node)?),
    };
    match client.call(&AdminRequest::Events { after })? {
        AdminReply::Events { life, events, last } => Ok((life, events, last)),
        other => Err(unexpected(other)),
    }
}

fn show(event: &NodeEvent, output: &Output) {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        #[serde(flatten)]
        event: &'a NodeEvent,
    }
    let time = format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(event.time_ns)).to_string();
    output.event(&Line { time: time.clone(), event }, || {
        let value = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let fields: String = event.fields.iter().map(|(name, of)| format!(" {name}={}", value(of))).collect();
        format!("{time} {:<5} {}{fields}\n", event.level, event.event)
    });
}
