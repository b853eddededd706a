//! A record that recovery cannot perform: a block that it needs has rotted while nothing ran.
//!
//! ```text
//! a block rots --> start --+--> the volume is offline: refused, the others verified --> perhaps a crash, still offline --> the block heals
//!                          |                                                        --> volume online, perhaps a crash in the middle --+
//!                          '--> no record needed the block ----------------------------------> the block heals ------------------------+--> end
//! ```
//!
//! The next life verifies every byte of every volume: what was answered before is there.

use super::{Halt, History, Oracle, Order, Violation, found};
use crate::{
    clients::Ask,
    fault::Class,
    needs::{Content, Rotten},
    pattern::WriteId,
    setup::{BLOCK, Weakness, index},
};
use twinlog::{base::ObjectId, node::admin::AdminRequest};

impl History {
    /// Lets a block rot that a record in the log needs, if there is one, and sees what becomes of it.
    pub(super) fn rot_what_a_record_needs(&mut self) -> Result<(), Violation> {
        let Some(target) = self.draw_target() else { return Ok(()) };
        self.note(|_| format!("bit {} of block {} rots: volume {}", target.bit, target.block, target.volume));
        self.excuse.read = false;
        self.excuse.stop = false;
        self.turns_left = u64::MAX;
        let result = self.live_with(&target);
        self.offline = None;
        self.refuses_online = false;
        match result {
            Ok(()) => {}
            Err(Halt::Found(violation)) => return Err(violation),
            Err(Halt::Crash) => unreachable!("a planned crash is met where it is planned"),
            Err(Halt::Stopped(reason)) => {
                let what = format!("one block of one volume stops the pool: {reason}");
                return Err(Violation { oracle: Oracle::Damage, what });
            }
        }
        self.end_here();
        Ok(())
    }

    fn live_with(&mut self, target: &Rotten) -> Result<(), Halt> {
        let mut lsn = self.start_beside(target.volume)?;
        let is_offline = lsn.is_some();
        self.tally.count(Class::UnperformableRecord, is_offline);
        if is_offline {
            self.offline = Some(target.volume);
            self.be_refused(target.volume)?;
        }
        self.read_all_but(target.volume)?;
        if self.prng.chance(1, 2) {
            self.end_here();
            let again = self.start_beside(target.volume)?;
            if again != lsn {
                return Err(found(Oracle::Damage, format!("volume {} was {lsn:?}, and is {again:?}", target.volume)));
            }
            self.read_all_but(target.volume)?;
        }
        if is_offline && self.prng.chance(1, 3) {
            self.refuses_online = true;
            self.bring_online(target.volume)?;
            self.refuses_online = false;
            self.checkpoint()?;
        }
        target.heal(self.machine().disks());
        let mut crashes = u64::from(self.prng.chance(1, 2));
        while lsn.is_some() {
            self.turns_left = if crashes > 0 { self.prng.between(1, 150) } else { u64::MAX };
            crashes = 0;
            match self.bring_online(target.volume) {
                Ok(()) => break,
                Err(Halt::Crash) => {
                    self.turns_left = u64::MAX;
                    self.end_here();
                    lsn = self.start_beside(target.volume)?;
                }
                Err(halt) => return Err(halt),
            }
        }
        self.turns_left = u64::MAX;
        self.offline = None;
        Ok(())
    }

    /// Starts a process. Returns the position of the record that keeps the volume offline; no other is.
    fn start_beside(&mut self, volume: ObjectId) -> Result<Option<u64>, Halt> {
        let reactors = u16::try_from(self.prng.between(1, u64::from(self.setup.reactors_max))).expect("at most two");
        self.start(reactors)?;
        self.is_recovering = false;
        let offline = self.node().offline();
        if let Some((other, _)) = offline.iter().find(|(other, _)| *other != volume) {
            return Err(found(Oracle::Damage, format!("volume {other} is offline, and nothing of it has rotted")));
        }
        Ok(offline.first().map(|(_, lsn)| *lsn))
    }

    /// Ends the process; nobody waits for anything.
    fn end_here(&mut self) {
        self.sessions.iter_mut().for_each(|session| *session = None);
        self.node = None;
        let mut prng = self.prng.fork();
        let is_weak = matches!(self.setup.weakness, Some(Weakness::NoPowerCut | Weakness::NoCrash));
        if self.prng.chance(1, 2) && !is_weak {
            self.machine().power_cut(&mut prng);
        } else {
            self.machine().process_kill(&mut prng);
        }
        self.order = None;
        self.settle_clock();
    }

    /// Whatever is asked of the volume is refused.
    fn be_refused(&mut self, volume: ObjectId) -> Result<(), Halt> {
        if self.setup.is_nbd {
            return Ok(());
        }
        for _ in 0..self.prng.between(1, 4) {
            let ask = match self.prng.below(5) {
                0 | 1 => Ask::Read(0..BLOCK),
                2 => Ask::Flush,
                3 => Ask::Discard(0..BLOCK, false),
                _ => Ask::Write(0..BLOCK, WriteId(0), false),
            };
            let session = index(self.prng.below(self.setup.sessions as u64));
            self.until(|history| history.fly(session, volume, ask.clone(), false))?;
            self.until(|history| history.flying.is_empty())?;
        }
        Ok(())
    }

    fn read_all_but(&mut self, volume: ObjectId) -> Result<(), Halt> {
        self.read_volumes(|id| id != volume)
    }

    fn bring_online(&mut self, volume: ObjectId) -> Result<(), Halt> {
        let name = self.model.volumes()[&volume].name.clone();
        self.ask(Order::Online, AdminRequest::VolumeOnline { name, accept_loss: false })
    }

    /// Lets a block rot on the way to what a record changes that will be replayed.
    fn draw_target(&mut self) -> Option<Rotten> {
        let machine = self.cluster.machines.first()?;
        let content = Content::newest(machine.disks(), self.setup.device_blocks[0])?;
        content.rot(&machine.logs, |id| self.model.volumes().contains_key(&id), &mut self.prng)
    }
}
