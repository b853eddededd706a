//! `twinlog witness`: keeps the registers of pairs whose nodes share no disk for them.

use super::{
    args::WitnessArgs,
    compose,
    output::{Exit, Failure, Output},
};
use serde::Serialize;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::net::SocketAddr;
use twinlog::control::logging::{self, LogFormat, LogLevel};

#[derive(Serialize)]
struct Listening<'a> {
    event: &'static str,
    address: SocketAddr,
    pairs: &'a [String],
}

/// Serves until told to stop. What a node was answered is durable: there is nothing to be done at the end.
pub(crate) fn run(args: &WitnessArgs, output: &Output) -> Result<Exit, Failure> {
    let _events = logging::start(LogLevel::Info, LogFormat::Text);
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]);
    let mut signals = signals.map_err(|error| Failure::system("watch signals of", "this process", &error))?;
    let witness = compose::serve_witness(args.listen, &args.dir)?;
    let listening = Listening { event: "listening", address: witness.address, pairs: &witness.pairs };
    output.event(&listening, || {
        format!("twinlog: witness of {} listens at {}\n", witness.pairs.join(", "), witness.address)
    });
    let signal = signals.forever().next();
    tracing::info!(signal, "the witness has stopped");
    Ok(Exit::Done)
}
