//! Two hosts at one medium: what a reservation keeps out, what a preemption ends, and what the end of a process leaves.

use std::{collections::BTreeSet, time::Duration};
use twinlog_device::{
    BlockCompletion, BlockDevice, BlockPool, BlockRange, DeviceErrorKind, Persistence, Prng, Token, Wait,
};
use twinlog_sim::{Aborts, Agenda, HostQueue, MediumConfig, ReservationOrder, SimDisk, SimMedium, SimWorld};

const FENCED: Result<(), DeviceErrorKind> = Err(DeviceErrorKind::Fenced);

struct Rig {
    world: SimWorld,
    medium: SimMedium,
    agenda: Agenda,
    blocks: BlockPool,
    /// One queue of each host.
    disks: [SimDisk; 2],
    prng: Prng,
}

impl Rig {
    fn new(seed: u64) -> Self {
        Self::with(seed, MediumConfig::new("disk", 64))
    }

    /// One whose first host holds the reservation.
    fn with(seed: u64, config: MediumConfig) -> Self {
        let world = SimWorld::new(seed);
        let medium = SimMedium::new(&world, config);
        let agenda = Agenda::new(&world);
        let disks = [0, 1].map(|host| medium.open_for(&agenda, HostQueue { host, opening: 1 }));
        let prng = world.fork_prng();
        let rig = Self { world, medium, agenda, blocks: BlockPool::new(128).expect("a small mapping"), disks, prng };
        assert_eq!(rig.medium.reserve(0, ReservationOrder::Acquire { key: 1 }), FENCED, "it has not registered");
        assert_eq!(rig.medium.reserve(0, ReservationOrder::Register { key: 1 }), Ok(()));
        assert_eq!(rig.medium.reserve(0, ReservationOrder::Acquire { key: 1 }), Ok(()));
        rig
    }

    fn preempt(&mut self, aborts: Aborts) {
        assert_eq!(self.medium.reserve(1, ReservationOrder::Register { key: 2 }), Ok(()));
        assert_eq!(self.medium.reserve(1, ReservationOrder::Acquire { key: 2 }), FENCED, "it is held");
        assert_eq!(self.medium.reserve(1, ReservationOrder::Preempt { key: 2, victim: 9, aborts }), FENCED, "nobody's");
        assert_eq!(self.medium.reserve(1, ReservationOrder::Preempt { key: 2, victim: 1, aborts }), Ok(()));
        assert_eq!(self.medium.registrations().map(|now| (now.keys, now.holder)), Ok(([None, Some(2)], Some(1))));
    }

    fn start_write(&mut self, host: usize, block: u64) {
        let mut bytes = self.blocks.allocate().expect("few are used");
        bytes.fill(7);
        self.disks[host].write(Token(block), block, vec![bytes.freeze()], Persistence::Durable);
    }

    fn complete(&mut self, host: usize, count: usize) -> Vec<BlockCompletion> {
        let mut completions = Vec::new();
        while completions.len() < count {
            self.agenda.turn(Wait::UpTo(Duration::from_secs(1)));
            self.disks[host].poll(&mut completions);
        }
        completions
    }

    fn result(&mut self, host: usize) -> Result<(), DeviceErrorKind> {
        self.complete(host, 1).remove(0).result.map_err(|error| error.kind)
    }

    fn write(&mut self, host: usize, block: u64) -> Result<(), DeviceErrorKind> {
        self.start_write(host, block);
        self.result(host)
    }

    fn landed(&self) -> BTreeSet<u64> {
        (0..64).filter(|&block| self.medium.block(block)[0] == 7).collect()
    }
}

#[test]
fn only_the_holder_changes_anything_and_everybody_reads() {
    let mut rig = Rig::new(1);
    assert_eq!((rig.write(0, 1), rig.write(1, 2)), (Ok(()), FENCED));
    rig.preempt(Aborts::AtOnce);
    rig.disks[0].read(Token(0), 1, vec![rig.blocks.allocate().expect("few are used")]);
    assert_eq!(rig.result(0), Ok(()));
    assert_eq!(rig.write(0, 3), FENCED);
    rig.disks[0].flush(Token(0));
    assert_eq!(rig.result(0), FENCED);
    rig.disks[0].discard(Token(0), BlockRange { first: 1, count: 1 });
    assert_eq!(rig.result(0), FENCED);
    assert!(rig.medium.take_lost(0) && !rig.medium.take_lost(0), "told once");
    assert_eq!(rig.landed(), BTreeSet::from([1]));
    // It is entitled again: its next opening writes, the queue that was refused does not.
    assert_eq!(rig.medium.reserve(0, ReservationOrder::Register { key: 3 }), Ok(()));
    assert_eq!(rig.medium.reserve(0, ReservationOrder::Preempt { key: 3, victim: 2, aborts: Aborts::AtOnce }), Ok(()));
    assert_eq!(rig.write(0, 4), FENCED);
    rig.disks[0] = rig.medium.open_for(&rig.agenda, HostQueue { host: 0, opening: 3 });
    assert_eq!((rig.write(0, 4), rig.write(1, 5)), (Ok(()), FENCED));
}

/// Each write that was in flight has landed when the preemption is answered, or never does; and its host hears of each.
#[test]
fn what_is_aborted_has_landed_or_never_does() {
    let (mut all_landed, mut all_aborted) = (0, 0);
    for seed in 0..50 {
        let mut rig = Rig::new(seed);
        (0..8).for_each(|block| rig.start_write(0, block));
        rig.preempt(Aborts::AtOnce);
        rig.medium.forbid(0, 1);
        let landed = rig.landed();
        let answered = rig.complete(0, 8).into_iter().filter(|completion| completion.result.is_ok());
        assert_eq!(answered.map(|completion| completion.token.0).collect::<BTreeSet<_>>(), landed, "seed {seed}");
        assert_eq!((rig.landed(), rig.medium.reservation_counts().trespasses), (landed.clone(), 0));
        all_landed += landed.len();
        all_aborted += 8 - landed.len();
    }
    assert!(all_landed > 100 && all_aborted > 100, "{all_landed} landed, {all_aborted} did not");
}

/// Without an abort what is under way lands after the preemption, and whoever forbids it sees that.
#[test]
fn what_is_under_way_may_land_after_a_preemption_that_aborts_nothing() {
    let mut late = 0;
    for seed in 0..50 {
        let mut rig = Rig::new(seed);
        (0..8).for_each(|block| rig.start_write(0, block));
        rig.preempt(Aborts::Nothing);
        rig.medium.forbid(0, 1);
        assert_eq!(rig.landed(), BTreeSet::new());
        rig.complete(0, 8);
        assert_eq!(rig.medium.reservation_counts().trespasses, rig.landed().len() as u64, "seed {seed}");
        assert_eq!(rig.write(0, 9), FENCED, "what is new is refused");
        late += rig.landed().len();
    }
    assert!(late > 100, "{late} of 400");
}

/// A controller that takes its time: what is under way lands after the reservation has changed hands, and nothing when the abort has ended.
#[test]
fn what_is_aborted_later_may_land_until_that_has_ended() {
    let (mut all_late, mut all_aborted) = (0, 0);
    for seed in 0..50 {
        let mut rig = Rig::new(seed);
        (0..8).for_each(|block| rig.start_write(0, block));
        rig.preempt(Aborts::Later);
        assert_eq!(rig.landed(), BTreeSet::new());
        let first = rig.complete(0, 4);
        rig.medium.end_aborts(0);
        rig.medium.forbid(0, 1);
        let landed = rig.landed();
        let answered = first.into_iter().chain(rig.complete(0, 4)).filter(|completion| completion.result.is_ok());
        assert_eq!(answered.map(|completion| completion.token.0).collect::<BTreeSet<_>>(), landed, "seed {seed}");
        assert_eq!((rig.landed(), rig.medium.reservation_counts().trespasses), (landed.clone(), 0));
        all_late += landed.len();
        all_aborted += 8 - landed.len();
    }
    assert!(all_late > 100 && all_aborted > 100, "{all_late} landed, {all_aborted} did not");
}

#[test]
fn the_end_of_a_host_leaves_the_other_one_and_lands_nothing_that_is_kept_out() {
    for seed in 0..50 {
        let mut rig = Rig::new(seed);
        rig.preempt(Aborts::AtOnce);
        (0..8).for_each(|block| rig.start_write(0, block));
        (8..16).for_each(|block| rig.start_write(1, block));
        let mut prng = rig.prng.fork();
        rig.medium.process_kill_of(0, &mut prng);
        assert_eq!(rig.landed(), BTreeSet::new(), "seed {seed}");
        rig.complete(1, 8);
        assert_eq!(rig.landed(), (8..16).collect(), "seed {seed}");
    }
}

#[test]
fn registrations_survive_a_power_cut_where_the_medium_keeps_them() {
    for keeps_reservations in [false, true] {
        let mut rig = Rig::with(1, MediumConfig { keeps_reservations, ..MediumConfig::new("disk", 64) });
        let mut prng = rig.prng.fork();
        rig.medium.power_cut(&mut prng);
        rig.world.recover();
        assert_eq!(rig.medium.holder(), keeps_reservations.then_some(0));
        let other = HostQueue { host: 1, opening: 2 };
        rig.disks[1] = rig.medium.open_for(&rig.agenda, other);
        assert_eq!(rig.write(1, 1).is_ok(), !keeps_reservations);
    }
}
