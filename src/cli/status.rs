//! `twinlog status`

use super::{
    args::{NodeArgs, StatusArgs},
    client::status_of,
    layout::{self, Layout},
    output::{Exit, Failure, Output},
    pause,
    place::Place,
};
use serde::Serialize;
use std::time::Duration;
use twinlog::{
    control::{
        render,
        status::{Judgement, Verdict, judge, unreachable},
    },
    node::admin::NodeStatus,
};

/// Time between two samples of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Time between the two samples from which a single `status` takes its rates.
const RATE_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    judgement: &'a Judgement,
    status: Option<&'a NodeStatus>,
}

/// Shows the status once, or until interrupted.
pub(crate) fn run(args: &StatusArgs, output: &Output) -> Result<Exit, Failure> {
    let mut before = None;
    if !args.watch && !args.exceptions && !output.is_json() {
        before = status_of(&args.node).ok();
        if before.is_some() {
            pause(RATE_INTERVAL);
        }
    }
    loop {
        let (status, judgement) = sample(&args.node)?;
        let exit = match judgement.verdict {
            Verdict::Ok => Exit::Done,
            Verdict::Stopped => Exit::Error,
            Verdict::Degraded | Verdict::Resync | Verdict::TakenOver => Exit::Degraded,
        };
        let shown = status.as_ref().filter(|_| !args.exceptions);
        output.show(&Report { judgement: &judgement, status: shown }, || {
            // Clears the screen and goes to its upper left corner.
            let clear = if args.watch { "\x1b[2J\x1b[H" } else { "" };
            let figures = shown.map(|status| render::figures(status, before.as_ref())).unwrap_or_default();
            format!("{clear}{}{figures}", render::summary(&judgement))
        })?;
        if !args.watch {
            return Ok(exit);
        }
        before = status;
        pause(WATCH_INTERVAL);
    }
}

/// A status with its meaning. A node that does not answer has the verdict STOPPED; wrong names are failures.
fn sample(node: &NodeArgs) -> Result<(Option<NodeStatus>, Judgement), Failure> {
    match status_of(node) {
        Ok(status) => {
            let mut judgement = judge(&status);
            let place = Place::of_node(node);
            judgement.next = place.complete(&judgement.next);
            judgement.findings.iter_mut().for_each(|finding| finding.next = place.complete(&finding.next));
            Ok((Some(status), judgement))
        }
        Err(failure) => {
            let home = Layout::new(&node.dir, &node.node).home();
            if node.admin.is_none() && !home.exists() {
                let message = format!("there is no node in {}", home.display());
                return Err(Failure::new(
                    Exit::Error,
                    message,
                    "name it: --dir DIR or --admin SOCKET; make one: `twinlog up`",
                ));
            }
            let is_watched = node.admin.is_none() && layout::is_held(&Layout::new(&node.dir, &node.node).lock());
            let next = if is_watched {
                "wait: `twinlog up` runs there and starts it (unless --no-restart), or has said why it cannot"
                    .to_owned()
            } else {
                Place::of_node(node).complete(&failure.hint)
            };
            Ok((None, unreachable(&failure.message, &next)))
        }
    }
}
