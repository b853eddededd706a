//! A model of what an NBD volume must do, driven beside a server: every command, at any alignment, on several connections, with
//! block status; and servers with planted defects, each of which the model must find.
//!
//! Foreign suites are weak oracles here: of seven defects like these, a client that writes patterns and reads them back finds four,
//! and a file system finds what it happens to touch.

#[path = "../common/mod.rs"]
mod common;

mod faulty;
mod model;

use common::nbd::Client;
use faulty::{Bug, FaultyServer};
use model::Model;
use std::path::Path;

/// Bytes of the volumes here.
const VOLUME_BYTES: usize = 8 << 20;

/// Connections of one run.
const CONNECTIONS: usize = 3;

/// Batches of requests of one run: several thousand requests.
const BATCHES: usize = 600;

/// Drives a server and a model of it side by side.
///
/// # Errors
/// The first difference, or whatever else went wrong.
fn drive(socket: &Path, seed: u64, batches: usize) -> Result<(), String> {
    let connect = |_| Client::connect(socket, "vol-a", VOLUME_BYTES as u64);
    let mut clients = (0..CONNECTIONS).map(connect).collect::<Result<Vec<_>, _>>()?;
    let mut model = Model::new(seed, VOLUME_BYTES);
    for batch in 0..batches {
        model.step(&mut clients).map_err(|difference| format!("seed {seed}, batch {batch}: {difference}"))?;
    }
    model.check_all(&mut clients[0]).map_err(|difference| format!("seed {seed}, at the end: {difference}"))
}

#[test]
fn the_target_does_what_the_model_says() {
    let target = common::Target::start("8MiB");
    let seed = common::seed();
    println!("seed {seed}");
    drive(&target.socket(), seed, BATCHES).unwrap();
}

#[test]
fn the_target_does_what_the_model_says_across_kills() {
    let mut target = common::Target::start("8MiB");
    let seed = common::seed();
    println!("seed {seed}");
    let mut model = Model::new(seed, VOLUME_BYTES);
    for life in 0..5 {
        let connect = |_| Client::connect(&target.socket(), "vol-a", VOLUME_BYTES as u64).unwrap();
        let mut clients: Vec<Client> = (0..CONNECTIONS).map(connect).collect();
        if life > 0 {
            model
                .check_all(&mut clients[0])
                .unwrap_or_else(|difference| panic!("seed {seed}, life {life}: {difference}"));
        }
        for _ in 0..100 {
            model.step(&mut clients).unwrap_or_else(|difference| panic!("seed {seed}, life {life}: {difference}"));
        }
        // Everything was answered, so everything must be there in the next life.
        target.kill();
        target.restart();
    }
}

#[test]
fn a_sound_server_passes() {
    let server = FaultyServer::start(None, VOLUME_BYTES);
    for seed in 0..3 {
        server.clear();
        drive(server.socket(), seed, BATCHES).unwrap();
    }
}

#[test]
fn every_planted_defect_is_found() {
    for bug in Bug::ALL {
        let found = (0..3).filter(|seed| {
            let server = FaultyServer::start(Some(bug), VOLUME_BYTES);
            let result = drive(server.socket(), *seed, BATCHES);
            println!("{bug:?}: {}", result.as_ref().err().map_or("not found", String::as_str));
            result.is_err()
        });
        assert_eq!(found.count(), 3, "{bug:?} was not found with each of three seeds");
    }
}
