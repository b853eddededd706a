//! Hosts that reserve the volumes of a pool: what they ask for, and what their [accounts](crate::model::reservation) make of the answers.
//!
//! What they draw, they draw from a stream of their own: the rest of a seed's history is drawn as it is without hosts.

use crate::{
    clients::{Answer, Ask, Refusal},
    history::{Oracle, Violation},
    model::{
        Model,
        reservation::{Account, Deed, HOSTS, Heard, PENDING_MAX, draw_host},
    },
    pattern::WriteId,
};
use std::collections::BTreeMap;
use twinlog::base::ObjectId;
use twinlog_device::Prng;

/// The hosts of one pool.
#[derive(Debug)]
pub(crate) struct Reserving {
    prng: Prng,
    accounts: BTreeMap<ObjectId, Account>,
}

impl Reserving {
    pub(crate) fn new(seed: u64) -> Self {
        Self { prng: Prng::new(seed ^ 0x4057), accounts: BTreeMap::new() }
    }

    /// In one of four histories of those that can have hosts.
    pub(crate) fn draw(seed: u64) -> Option<Self> {
        let mut reserving = Self::new(seed);
        reserving.prng.chance(1, 4).then_some(reserving)
    }

    /// Now and then a command about the reservation, in the place of another request, which goes to `node` of a pair.
    pub(crate) fn draw_deed(&mut self, volume: ObjectId, node: Option<usize>) -> Option<Ask> {
        if !self.prng.chance(1, 6) {
            return None;
        }
        let host = draw_host(&mut self.prng);
        let host = self.at_home(host, node);
        self.draw_deed_of(host, volume)
    }

    /// The same of a host whose commands may have to be sent again: there are fewer of them.
    pub(crate) fn draw_own_deed(&mut self, host: u8, volume: ObjectId) -> Option<Ask> {
        let has_room = self.under_way(volume) < PENDING_MAX / 2;
        if self.prng.chance(1, 6) && has_room { self.draw_deed_of(host, volume) } else { None }
    }

    /// Whether so many commands can be sent again now that all their orders can still be tried.
    pub(crate) fn has_room_for(&self, again: usize, volume: ObjectId) -> bool {
        self.under_way(volume) + again <= PENDING_MAX
    }

    fn under_way(&self, volume: ObjectId) -> usize {
        self.accounts.get(&volume).map_or(0, Account::under_way)
    }

    fn draw_deed_of(&mut self, host: u8, volume: ObjectId) -> Option<Ask> {
        let deed = Deed::draw(&mut self.prng);
        let account = self.accounts.entry(volume).or_default();
        // What is under way is of interest when its host is preempted.
        let victim = account.busy_host().filter(|_| self.prng.chance(3, 4));
        let deed = victim.map_or(deed, |victim| deed.aimed_at(victim));
        let is_possible = account.may_begin(host, deed);
        is_possible.then_some(Ask::Reserve(host, deed))
    }

    /// Whose a request to `node` of a pair is; 0: nobody's that can register.
    pub(crate) fn host_of(&mut self, ask: &Ask, node: Option<usize>) -> u8 {
        if let Ask::Reserve(host, _) = ask {
            return *host;
        }
        let host = u8::try_from(self.prng.below(u64::from(HOSTS) + 1)).expect("a few");
        self.at_home(host, node)
    }

    /// The first host is seldom at the second node, and the second one seldom at the first: who writes over both in turn has its changes refused as late.
    fn at_home(&mut self, host: u8, node: Option<usize>) -> u8 {
        let other = match (node, host) {
            (Some(0), 2) => 1,
            (Some(1), 1) => 2,
            _ => return host,
        };
        if self.prng.chance(7, 8) { other } else { host }
    }

    pub(crate) fn begin(&mut self, (id, host): (u64, u8), volume: ObjectId, ask: &Ask, write: Option<WriteId>) {
        let account = self.accounts.entry(volume).or_default();
        match ask {
            Ask::Reserve(host, deed) => account.begin(id, *host, *deed),
            ask => account.attempt(id, host, is_change(ask).then_some(write)),
        }
    }

    /// What an answer says of a volume's reservation. Changes that it keeps out have happened by now or never will.
    ///
    /// # Errors
    /// It cannot be.
    pub(crate) fn end(
        &mut self,
        id: u64,
        volume: ObjectId,
        (ask, answer): (&Ask, &Answer),
        model: &mut Model,
    ) -> Result<(), Violation> {
        let account = self.accounts.entry(volume).or_default();
        let heard = match (ask, answer) {
            (_, Answer::Refused(Refusal::Failed(_) | Refusal::Unserved)) => {
                account.lose(id);
                return Ok(());
            }
            (_, Answer::Refused(Refusal::Reserved)) => Heard::Refused,
            (_, Answer::Refused(Refusal::Preempted)) => Heard::Aborted,
            // It never happens.
            (_, Answer::Refused(_)) => Heard::Nothing,
            (_, Answer::Reservation(state)) => Heard::State(state.clone()),
            _ => Heard::Done,
        };
        let judged = match ask {
            Ask::Reserve(..) => account.end(id, &heard),
            _ => account.end_attempt(id, &heard),
        };
        let what = judged.map_err(|what| Violation { oracle: Oracle::Reservations, what });
        account.bar().into_iter().for_each(|write| model.doubt_write(write));
        what
    }

    /// A command that is not answered is sent again, and what was sent before is called `copy`: it may be done too.
    pub(crate) fn ask_again(&mut self, (id, copy): (u64, u64), volume: ObjectId) {
        if let Some(account) = self.accounts.get_mut(&volume) {
            account.ask_again(id, copy);
        }
    }

    /// A request for the volume's bytes is sent again: the answer will be about that. Returns whether it may still be done.
    pub(crate) fn attempt_again(&mut self, id: u64, volume: ObjectId) -> bool {
        self.accounts.get_mut(&volume).is_none_or(|account| account.attempt_again(id))
    }

    /// A command has come back undone.
    pub(crate) fn come_back(&mut self, id: u64, volume: ObjectId) {
        if let Some(account) = self.accounts.get_mut(&volume) {
            account.come_back(id);
        }
    }

    /// Nobody hears what becomes of a request.
    pub(crate) fn lose(&mut self, id: u64, volume: ObjectId) {
        if let Some(account) = self.accounts.get_mut(&volume) {
            account.lose(id);
        }
    }

    /// Whoever had requests in hand of which nobody hears is gone: they have been done or never will be. The start of a node alone is a loss of power.
    pub(crate) fn settle(&mut self, loses_power: bool) {
        self.accounts.values_mut().for_each(|account| account.settle(loses_power));
    }
}

/// Whether it changes the volume, in the eyes of a reservation.
fn is_change(ask: &Ask) -> bool {
    matches!(ask, Ask::Write(..) | Ask::Exchange(..) | Ask::Discard(..) | Ask::Zero(..) | Ask::Flush)
}
