//! A namespace as a disk, for one reactor.

use crate::{
    Controller, ControllerIdentity, Namespace, Reservation, ReservationReport, Watch,
    controller::{Clock, Shared},
    core::SharedQueue,
    queue::{Kind, Request, Seat},
};
use std::{sync::Arc, time::Duration};
use twinlog_device::{
    BlockBuf, BlockCompletion, BlockDevice, BlockRange, DeviceErrorKind, DeviceHealth, DeviceInfo, Nanos, Persistence,
    SharedBlock, Token,
};
use twinlog_pci::PciFunction;

/// How often a disk looks after a controller that serves: time-outs, events, its status. Reading a register takes about a microsecond.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// One reactor's queue to a namespace. Polling it drives the controller, too.
pub struct NvmeDisk<F: PciFunction, C> {
    shared: Arc<Shared<F>>,
    queue: SharedQueue<F>,
    seat: usize,
    info: DeviceInfo,
    namespace: Namespace,
    watch: Arc<Watch<F>>,
    can_write_zeroes: bool,
    /// Whether a flush does anything.
    has_write_cache: bool,
    clock: C,
    /// Operations since the last poll.
    pending: Vec<Request>,
    /// Operations that ended before they began.
    ended: Vec<BlockCompletion>,
    /// Operations that `poll` has not returned.
    busy_count: usize,
    look_at: Nanos,
}

impl<F: PciFunction, C: Clock> NvmeDisk<F, C> {
    pub(crate) fn new(
        controller: &Controller<F>,
        (queue, seat): (SharedQueue<F>, usize),
        (info, namespace, watch): (DeviceInfo, Namespace, Watch<F>),
        identity: &ControllerIdentity,
        clock: C,
    ) -> Self {
        Self {
            shared: controller.0.clone(),
            queue,
            seat,
            info,
            namespace,
            watch: Arc::new(watch),
            can_write_zeroes: identity.can_write_zeroes,
            has_write_cache: identity.has_write_cache,
            clock,
            pending: Vec::new(),
            ended: Vec::new(),
            busy_count: 0,
            look_at: Nanos(0),
        }
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What tells its reactor how long it may sleep.
    #[must_use]
    pub fn watch(&self) -> Arc<Watch<F>> {
        self.watch.clone()
    }

    /// Queues making `range` read as zeroes, without data; an error of kind `Os(EOPNOTSUPP)` where the controller cannot.
    pub fn write_zeroes(&mut self, token: Token, range: BlockRange) {
        if self.can_write_zeroes {
            self.submit(Request { token, kind: Kind::Zero, range, targets: Vec::new(), sources: Vec::new() });
        } else {
            let request = Request { token, kind: Kind::Zero, range, targets: Vec::new(), sources: Vec::new() };
            self.end(request, Err(DeviceErrorKind::Os(libc::EOPNOTSUPP)));
        }
    }

    /// Queues a reservation command. It is not given again after a reset of the controller, which may have performed it.
    pub fn reserve(&mut self, token: Token, reservation: Reservation) {
        let kind = Kind::Reserve(reservation);
        let range = BlockRange { first: 0, count: 0 };
        self.submit(Request { token, kind, range, targets: Vec::new(), sources: Vec::new() });
    }

    /// What the latest [`Reservation::Report`] that succeeded has told.
    pub fn take_report(&mut self) -> Option<ReservationReport> {
        self.queue.wait().seat(self.seat).report.take()
    }

    fn submit(&mut self, request: Request) {
        assert!(self.room() > 0, "the caller asks for room first");
        let BlockRange { first, count } = request.range;
        if first.checked_add(count).is_none_or(|end| end > self.info.block_count) {
            return self.end(request, Err(DeviceErrorKind::Beyond));
        }
        let has_no_effect = count == 0 && matches!(request.kind, Kind::Discard | Kind::Zero);
        if has_no_effect || (request.kind == Kind::Discard && !self.info.can_discard) {
            return self.end(request, Ok(()));
        }
        self.busy_count += 1;
        self.watch.set_behind(true);
        self.pending.push(request);
    }

    /// Ends an operation that does not begin.
    fn end(&mut self, request: Request, result: Result<(), DeviceErrorKind>) {
        assert!(self.room() > 0, "the caller asks for room first");
        self.busy_count += 1;
        self.watch.set_behind(true);
        self.ended.push(request.end(&self.info.name, result));
    }

    fn check_transfer(&self, count: usize) -> u64 {
        let max = self.info.transfer_blocks_max;
        assert!((1..=max as usize).contains(&count), "a transfer has 1 to {max} blocks");
        count as u64
    }
}

impl<F: PciFunction, C: Clock> BlockDevice for NvmeDisk<F, C> {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn health(&self) -> Option<DeviceHealth> {
        Some(self.shared.health())
    }

    fn room(&self) -> usize {
        self.info.queue_depth as usize - self.busy_count
    }

    fn read(&mut self, token: Token, first: u64, blocks: Vec<BlockBuf>) {
        let count = self.check_transfer(blocks.len());
        let range = BlockRange { first, count };
        self.submit(Request { token, kind: Kind::Read, range, targets: blocks, sources: Vec::new() });
    }

    fn write(&mut self, token: Token, first: u64, blocks: Vec<SharedBlock>, persistence: Persistence) {
        let count = self.check_transfer(blocks.len());
        let range = BlockRange { first, count };
        self.submit(Request { token, kind: Kind::Write(persistence), range, targets: Vec::new(), sources: blocks });
    }

    fn flush(&mut self, token: Token) {
        let range = BlockRange { first: 0, count: 0 };
        let request = Request { token, kind: Kind::Flush, range, targets: Vec::new(), sources: Vec::new() };
        if !self.has_write_cache {
            return self.end(request, Ok(()));
        }
        self.submit(request);
    }

    fn discard(&mut self, token: Token, range: BlockRange) {
        self.submit(Request { token, kind: Kind::Discard, range, targets: Vec::new(), sources: Vec::new() });
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        let now = self.clock.now();
        if now >= self.look_at || !self.shared.is_live() {
            self.look_at = now + LOOK_INTERVAL;
            self.shared.look(now);
        }
        let count_before = completions.len();
        completions.append(&mut self.ended);
        if let Some(mut queue) = self.queue.attempt() {
            for request in self.pending.drain(..) {
                queue.start(self.seat, request, now);
            }
            queue.turn(now);
            completions.append(&mut queue.seat(self.seat).finished);
            if queue.violation().is_some() {
                self.look_at = now;
            }
        }
        for completion in &completions[count_before..] {
            // That another host has reserved the namespace is no failure of the device.
            if let Err(error) = &completion.result
                && error.kind != DeviceErrorKind::Fenced
            {
                self.shared.note_error(error);
            }
        }
        self.watch.set_behind(!self.pending.is_empty());
        self.busy_count -= completions.len() - count_before;
    }
}

impl<F: PciFunction, C> Drop for NvmeDisk<F, C> {
    fn drop(&mut self) {
        let mut queue = self.queue.wait();
        let seat: &mut Seat = queue.seat(self.seat);
        seat.is_open = false;
        seat.finished.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ControllerOptions, ControllerState,
        model::{Model, ModelConfig, ModelFunction},
    };
    use std::{cell::Cell, rc::Rc};
    use twinlog_device::BlockPool;

    type Time = Rc<Cell<Nanos>>;
    type Disk = NvmeDisk<ModelFunction, Time>;

    /// So many disks on a model, each with a queue of its own.
    fn disks(config: ModelConfig, disk_count: u16) -> (Model, Time, Vec<Disk>) {
        let (model, time) = (Model::new(config), Rc::new(Cell::new(Nanos(1))));
        let pool = BlockPool::new(4).expect("a small mapping");
        let options = ControllerOptions { disk_count, ..ControllerOptions::default() };
        let controller = Controller::start(model.function(), &[&pool], options, time.get()).expect("a usual one");
        while controller.poll(time.get()) != ControllerState::Live {
            model.turn();
        }
        let open = |_| controller.open(1, time.clone()).expect("it is there");
        let disks = (0..disk_count).map(open).collect();
        (model, time, disks)
    }

    #[test]
    fn a_queue_that_another_thread_has_is_not_waited_for() {
        let (model, time, mut disks) = disks(ModelConfig::new(1), 1);
        let disk = &mut disks[0];
        let queue = disk.queue.clone();
        let mut completions = Vec::new();
        disk.flush(Token(1));
        let other = queue.wait();
        for _ in 0..10 {
            time.set(time.get() + LOOK_INTERVAL);
            disk.poll(&mut completions);
            model.turn();
        }
        assert!(completions.is_empty() && disk.room() + 1 == disk.info().queue_depth as usize);
        drop(other);
        for _ in 0..10 {
            disk.poll(&mut completions);
            model.turn();
        }
        assert!(completions.len() == 1 && completions[0].result.is_ok());
    }

    #[test]
    fn nothing_is_late_after_a_pause_though_another_thread_has_a_queue() {
        for locked in 0..3 {
            let (model, time, mut disks) = disks(ModelConfig { activation_units: 300, ..ModelConfig::new(1) }, 3);
            let mut completions = Vec::new();
            let turn = |disks: &mut [Disk], completions: &mut Vec<_>| {
                disks.iter_mut().for_each(|disk| disk.poll(completions));
                model.turn();
                time.set(time.get() + Duration::from_secs(1));
            };
            disks.iter_mut().for_each(|disk| disk.poll(&mut completions));
            model.activate_firmware(25);
            model.turn();
            // The disks have looked just now: they give the controller a command that it takes when it goes on, long after the time of the command.
            disks.iter_mut().for_each(|disk| disk.flush(Token(1)));
            (0..20).for_each(|_| turn(&mut disks, &mut completions));
            assert!(completions.is_empty());
            let queue = disks[locked].queue.clone();
            let other = queue.wait();
            (0..10).for_each(|_| turn(&mut disks, &mut completions));
            drop(other);
            (0..10).for_each(|_| turn(&mut disks, &mut completions));
            assert!(completions.len() == 3 && completions.iter().all(|completion| completion.result.is_ok()));
            let health = disks[0].health().expect("a controller can say");
            assert_eq!((health.timeout_count, health.reset_count), (0, 0), "queue {locked}");
        }
    }

    fn is_send<T: Send>() {}

    /// Reactors are threads: a disk is opened in one and used in another, where the way to the function allows it.
    #[expect(dead_code, reason = "what it says is checked by compiling it")]
    fn a_disk_can_be_given_to_a_thread<F, C: Send>()
    where
        F: PciFunction<Registers: Send, Memory: Send + Sync> + Send,
    {
        is_send::<NvmeDisk<F, C>>();
        is_send::<Controller<F>>();
    }
}
