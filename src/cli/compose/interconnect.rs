//! An interconnect with a thread of its own: a log record leaves while the reactor goes on.

use super::{
    Shared, Starting, hear,
    pair::{LinkStart, PairStart, PairWay, WayStart, carrier, detection},
    spawn,
};
use crate::cli::output::Failure;
use std::{sync::Arc, thread::available_parallelism};
use twinlog::{
    control::config::{NodeConfig, PairConfig},
    pair::seam::{Carrier, Far, FarEnd, Limits, seam},
    reactor::{Idle, Waker},
    serve::{InterconnectLoop, InterconnectParts},
};
use twinlog_device::Platform;
use twinlog_uring::{Ring, UringPlatform};

/// What the main thread gives to the interconnect's.
type Connections = (FarEnd, Box<LinkStart>);

/// Whether the interconnect of a node of this machine has one.
pub(crate) fn has_thread(config: &NodeConfig, pair: &PairConfig) -> bool {
    // One: it is not known, and nothing is taken for granted.
    let cpus = available_parallelism().map_or(1, usize::from);
    pair.has_interconnect_thread(config.reactors.count, cpus)
}

/// The thread, for people.
pub(crate) fn words(pair: &PairConfig) -> String {
    let cpu = pair.interconnect_cpu.map(|cpu| format!(", CPU {cpu}"));
    format!("a thread of its own{}", cpu.unwrap_or_default())
}

/// Starts the thread, and leaves in `start` the half that reactor 0 uses; also returns what wakes the thread.
pub(super) fn start(
    shared: &Arc<Shared>,
    pair: &PairConfig,
    start: &mut PairStart,
    reactor: &Arc<dyn Waker>,
) -> Result<(Starting<Connections>, Arc<dyn Waker>), Failure> {
    let thread = spawn(shared, ("interconnect".to_owned(), pair.interconnect_cpu), open)?;
    let waker = hear(&thread.waker)?;
    let (near, far) = seam(Limits::with_detection(detection(pair)), Arc::clone(reactor), Arc::clone(&waker));
    if let WayStart::Here(link) = std::mem::replace(&mut start.way, WayStart::Beside(Box::new(near))) {
        // A thread that is gone has said why: heard later.
        let _thread_gone = thread.connections.send((far, link));
    }
    Ok((thread, waker))
}

fn open(
    shared: &Arc<Shared>,
    ring: &Ring,
    (far, link): Connections,
) -> Result<impl FnOnce() -> Option<String> + use<>, Failure> {
    let (way, ring, shared) = (carrier(shared, ring, *link)?, ring.clone(), Arc::clone(shared));
    Ok(move || {
        match way {
            PairWay::Clear(way) => run(&shared, ring, far, way),
            PairWay::Encrypted(way) => run(&shared, ring, far, way),
        }
        None
    })
}

fn run<C: Carrier>(shared: &Shared, ring: Ring, far: FarEnd, carrier: C) {
    let platform = UringPlatform::new(ring);
    let far = Far::new(far, carrier, platform.now());
    let idle = Idle::new(shared.config.reactors.idle);
    InterconnectLoop::new(InterconnectParts { platform, far, idle, end: Arc::clone(&shared.end) }).run();
}
