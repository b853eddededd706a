//! A thread that computes the powers of NVMe/TCP authentication: milliseconds each, which no reactor has.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::{sync::Arc, thread::Builder};
use twinlog::{
    base::limits::CONNECTIONS_MAX,
    reactor::Waker,
    serve::nvme_tcp::auth::{Calculator, Job},
};

/// Powers that wait: each connection waits for one at a time.
const JOBS_MAX: usize = CONNECTIONS_MAX;

/// The way to the thread.
#[derive(Debug)]
struct Thread(Sender<Job>);

impl Calculator for Thread {
    fn start(&self, job: Job) -> bool {
        self.0.try_send(job).is_ok()
    }
}

/// Somebody who computes, and what [`start`] needs.
pub(super) fn channel() -> (Box<dyn Calculator>, Receiver<Job>) {
    let (sender, jobs) = bounded(JOBS_MAX);
    (Box::new(Thread(sender)), jobs)
}

/// Starts the thread. It wakes the reactors after each power, and ends with whoever asks it.
pub(super) fn start(jobs: Receiver<Job>, reactors: Vec<Arc<dyn Waker>>) -> std::io::Result<()> {
    let work = move || {
        while let Ok(job) = jobs.recv() {
            job.run();
            reactors.iter().for_each(|reactor| reactor.wake());
        }
    };
    Builder::new().name("powers".to_owned()).spawn(work).map(drop)
}
