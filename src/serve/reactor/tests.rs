//! A reactor whose front end only counts.

use super::*;
use crate::{cp::message::Grant, node::pools::OpenedPool, reactor::IdlePolicy};
use twinlog_device::BlockPool;
use twinlog_sim::{Agenda, SimDisk, SimLog, SimNet, SimPlatform, SimWorld};

#[derive(Default)]
struct Front {
    polls: u32,
    waits: u32,
}

impl<N: Network> FrontEnd<N> for Front {
    fn poll<S: VolumeService>(&mut self, _net: &mut N, _service: &mut S, _now: Nanos) -> bool {
        self.polls += 1;
        false
    }

    fn take_events(&mut self, _net: &mut N) {
        self.waits += 1;
    }

    fn stop(&mut self, _now: Nanos) {}

    fn is_stopped(&self) -> bool {
        false
    }

    fn connection_count(&self) -> usize {
        0
    }
}

struct NoOpener;

impl PoolOpener<SimDisk, SimLog> for NoOpener {
    fn begin(&mut self, _slot: PoolSlot, _grant: Grant) {}

    fn poll(&mut self) -> Option<OpenedPool<SimDisk, SimLog>> {
        None
    }
}

/// What nobody takes from the network keeps a real reactor from sleeping, for as long as the volumes are unknown.
#[test]
fn in_every_turn_the_front_end_takes_what_the_network_has_to_say_or_has_clients_wait() {
    let world = SimWorld::new(1);
    let (agenda, blocks) = (Agenda::new(&world), BlockPool::new(16).expect("a small pool"));
    let end = Arc::new(NodeEnd::default());
    let mut reactor = Reactor::new(ReactorParts {
        platform: SimPlatform::<SimLog>::new(agenda.clone(), blocks.clone()),
        pools: Pools::new(blocks, None),
        net: SimNet::open(&agenda).0,
        front: Front::default(),
        idle: Idle::new(IdlePolicy::Adaptive),
        calls: None,
        open_device: Box::new(|_| None),
        opener: Box::new(NoOpener),
        pair: None,
        end: Arc::clone(&end),
        peers: Vec::new(),
    });
    let mut counts = || {
        assert!((0..3).all(|_| reactor.poll_once()));
        (reactor.parts.front.waits, reactor.parts.front.polls)
    };
    assert_eq!(counts(), (3, 0), "no pool is open yet");
    end.shut.store(true, Ordering::Release);
    assert_eq!(counts(), (3, 3), "clients are sent away");
}

/// Reactor 0 stands still over the end of the lease, and closes the pool in its next turn; the interconnect has ended between the two.
#[test]
fn nobody_goes_on_without_the_thread_that_ended_with_the_lease() {
    let end = NodeEnd::default();
    end.serve_until(Some(Nanos(5)));
    assert!(end.serves_or_ends(|| Nanos(4)));
    assert!(!end.may_serve(|| Nanos(5)) && end.may_serve(|| Nanos(4)), "a look ends nothing");
    assert!(!end.serves_or_ends(|| Nanos(5)));
    end.serve_until(None);
    assert!(!end.serves_or_ends(|| Nanos(6)) && !end.may_serve(|| Nanos(6)));
}
