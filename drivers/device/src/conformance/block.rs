//! The contracts of [`BlockDevice`].

use super::{TURNS_MAX, pattern};
use crate::{
    BlockBuf, BlockCompletion, BlockDevice, BlockPool, BlockRange, DeviceErrorKind, Persistence, Prng, SharedBlock,
    Token,
};
use std::collections::BTreeMap;

/// Blocks that the medium of a harness has at least.
const MEDIUM_BLOCKS_MIN: u64 = 64;

/// What a driver's test gives the block suite: one medium of at least 64 blocks and `4 * transfer_blocks_max` blocks, whose content the
/// suite overwrites, and one queue or more to it.
pub trait BlockHarness {
    /// The driver's device.
    type Device: BlockDevice;

    /// The memory that the driver's blocks come from: at least `queue_depth + 2 * transfer_blocks_max + 64` blocks, all free.
    fn blocks(&self) -> &BlockPool;

    /// Open queues to the medium.
    fn queue_count(&self) -> usize {
        1
    }

    /// One of the queues.
    fn device(&mut self, queue: usize) -> &mut Self::Device;

    /// One turn of the loop: hands what is queued to the machine, and waits a short time (milliseconds, or until the next event in
    /// virtual time) for something to finish.
    fn turn(&mut self);

    /// Closes every queue, as the end of the process would, and opens the medium again. Nothing is in flight.
    fn reopen(&mut self);

    /// Cuts the medium's power and opens it again; false when this harness cannot do that.
    fn power_cut(&mut self) -> bool {
        false
    }
}

/// Checks every contract of a block device.
///
/// # Panics
/// When a contract is broken, with its words.
pub fn block_device<H: BlockHarness>(mut make: impl FnMut() -> H) {
    let parts: [fn(&mut Driver<H>); 16] = [
        info_is_sane_and_constant,
        tokens_come_back_exactly_once,
        buffers_come_back,
        reads_return_what_was_written,
        the_largest_transfer_works,
        the_last_block_works,
        nothing_lies_beyond_the_device,
        a_full_queue_empties,
        operations_in_flight_are_independent,
        flushes_complete,
        data_survives_a_restart,
        discards_touch_only_their_range,
        queues_share_the_medium,
        reads_agree_with_a_model,
        durable_and_flushed_writes_survive_a_power_cut,
        a_power_cut_leaves_sectors_old_or_new,
    ];
    for part in parts {
        let mut harness = make();
        part(&mut Driver { harness: &mut harness, tokens: 0 });
    }
}

/// Queues one operation more than there is room for; the caller's test expects the panic.
pub fn block_device_overfilled<H: BlockHarness>(harness: &mut H) {
    let depth = harness.device(0).info().queue_depth;
    for token in 0..=u64::from(depth) {
        harness.device(0).flush(Token(token));
    }
}

/// Reads one block more than a transfer may have; the caller's test expects the panic.
pub fn block_device_oversized<H: BlockHarness>(harness: &mut H) {
    let count = harness.device(0).info().transfer_blocks_max as usize + 1;
    let blocks = pattern::buffers(harness.blocks(), count);
    harness.device(0).read(Token(0), 0, blocks);
}

/// Reads no block; the caller's test expects the panic.
pub fn block_device_without_blocks<H: BlockHarness>(harness: &mut H) {
    harness.device(0).read(Token(0), 0, Vec::new());
}

/// The suite's hand on a harness.
struct Driver<'a, H> {
    harness: &'a mut H,
    tokens: u64,
}

impl<H: BlockHarness> Driver<'_, H> {
    fn device(&mut self) -> &mut H::Device {
        self.harness.device(0)
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    fn block_count(&mut self) -> u64 {
        self.device().info().block_count
    }

    fn depth(&mut self) -> usize {
        self.device().info().queue_depth as usize
    }

    fn transfer_max(&mut self) -> usize {
        self.device().info().transfer_blocks_max as usize
    }

    fn shared(&self, tags: &[u64]) -> Vec<SharedBlock> {
        tags.iter().map(|&tag| pattern::block(self.harness.blocks(), tag)).collect()
    }

    fn buffers(&self, count: usize) -> Vec<BlockBuf> {
        pattern::buffers(self.harness.blocks(), count)
    }

    /// Turns until `count` operations of `queue` have completed, and proves that no further one does.
    fn collect(&mut self, queue: usize, count: usize) -> Vec<BlockCompletion> {
        let mut completions = Vec::new();
        let mut idle_turns = 0;
        while completions.len() < count {
            let before = completions.len();
            self.harness.turn();
            self.harness.device(queue).poll(&mut completions);
            idle_turns = if completions.len() == before { idle_turns + 1 } else { 0 };
            assert!(idle_turns < TURNS_MAX, "every operation completes: {before} of {count} did");
        }
        self.harness.turn();
        self.harness.device(queue).poll(&mut completions);
        assert_eq!(completions.len(), count, "an operation completes once");
        completions
    }

    fn one(&mut self, queue: usize) -> BlockCompletion {
        self.collect(queue, 1).pop().expect("one was collected")
    }

    fn write_on(&mut self, queue: usize, first: u64, tags: &[u64], persistence: Persistence) {
        let (token, blocks) = (self.token(), self.shared(tags));
        self.harness.device(queue).write(token, first, blocks, persistence);
        let completion = self.one(queue);
        assert_eq!(completion.token, token, "a completion carries its operation's token");
        assert_eq!(completion.result, Ok(()), "a write within the device succeeds");
        assert!(completion.blocks.is_empty(), "only reads give buffers back");
    }

    fn write(&mut self, first: u64, tags: &[u64]) {
        self.write_on(0, first, tags, Persistence::Volatile);
    }

    fn read_on(&mut self, queue: usize, first: u64, count: usize) -> Vec<BlockBuf> {
        let (token, blocks) = (self.token(), self.buffers(count));
        self.harness.device(queue).read(token, first, blocks);
        let completion = self.one(queue);
        assert_eq!(completion.token, token, "a completion carries its operation's token");
        assert_eq!(completion.result, Ok(()), "a read within the device succeeds");
        assert_eq!(completion.blocks.len(), count, "a read gives every buffer back");
        completion.blocks
    }

    #[track_caller]
    fn expect(&mut self, first: u64, tags: &[u64], contract: &str) {
        let blocks = self.read_on(0, first, tags.len());
        for (block, &tag) in blocks.iter().zip(tags) {
            pattern::expect(block, tag, contract);
        }
    }

    fn flush_on(&mut self, queue: usize) {
        let token = self.token();
        self.harness.device(queue).flush(token);
        assert_eq!(self.one(queue).result, Ok(()), "a flush succeeds");
    }
}

fn info_is_sane_and_constant<H: BlockHarness>(driver: &mut Driver<H>) {
    let info = driver.device().info().clone();
    assert!(!info.name.is_empty(), "a device has a name");
    assert!(
        info.sector_bytes.is_power_of_two() && (512..=4096).contains(&info.sector_bytes),
        "a sector has 512 to 4096 bytes"
    );
    assert!(info.transfer_blocks_max >= 1 && info.queue_depth >= 1, "a device can do something");
    let blocks_min = MEDIUM_BLOCKS_MIN.max(4 * u64::from(info.transfer_blocks_max));
    assert!(info.block_count >= blocks_min, "the suite needs {blocks_min} blocks");
    assert_eq!(driver.device().room(), info.queue_depth as usize, "an idle device has room for its depth");
    driver.write(0, &[1]);
    driver.flush_on(0);
    assert_eq!(*driver.device().info(), info, "what a device is does not change");
}

fn tokens_come_back_exactly_once<H: BlockHarness>(driver: &mut Driver<H>) {
    // The driver never looks inside a token: extremes and repetitions come back like any other.
    let tokens = [0, u64::MAX, 7, 7, 1 << 63, u64::from(u32::MAX)];
    let mut expected = Vec::new();
    for (index, &token) in tokens.iter().take(driver.depth()).enumerate() {
        let token = Token(token);
        match index % 3 {
            0 => {
                let blocks = driver.shared(&[token.0]);
                driver.device().write(token, index as u64, blocks, Persistence::Volatile);
            }
            1 => driver.device().flush(token),
            _ => {
                let blocks = driver.buffers(1);
                driver.device().read(token, 32, blocks);
            }
        }
        expected.push(token);
    }
    let mut returned: Vec<_> = driver.collect(0, expected.len()).iter().map(|completion| completion.token).collect();
    returned.sort_unstable();
    expected.sort_unstable();
    assert_eq!(returned, expected, "each token comes back exactly once, unchanged");
    for _ in 0..3 {
        driver.harness.turn();
        let mut completions = Vec::new();
        driver.device().poll(&mut completions);
        assert!(completions.is_empty(), "an idle device completes nothing");
    }
}

fn buffers_come_back<H: BlockHarness>(driver: &mut Driver<H>) {
    let free_before = driver.harness.blocks().free_count();
    let count = driver.transfer_max().min(3);
    let buffers = driver.buffers(count);
    let addresses: Vec<_> = buffers.iter().map(|block| block.as_ptr()).collect();
    driver.device().read(Token(1), 0, buffers);
    let blocks = driver.one(0).blocks;
    let returned: Vec<_> = blocks.iter().map(|block| block.as_ptr()).collect();
    assert_eq!(returned, addresses, "a read gives back the buffers it got, in their order");
    let block = pattern::block(driver.harness.blocks(), 5);
    driver.device().write(Token(2), 0, vec![block.clone()], Persistence::Durable);
    driver.one(0);
    let unique = block.try_unique().expect("after completion the driver holds no handle of a written block");
    drop((unique, blocks));
    assert_eq!(driver.harness.blocks().free_count(), free_before, "an idle device holds no blocks");
}

fn reads_return_what_was_written<H: BlockHarness>(driver: &mut Driver<H>) {
    driver.write(10, &[100]);
    driver.write(13, &[101]);
    let count = driver.transfer_max().min(2);
    driver.write(11, &[102, 103][..count]);
    driver.expect(11, &[102, 103][..count], "a read returns the newest completed write");
    driver.expect(10, &[100], "a write leaves the block before it alone");
    driver.expect(13, &[101], "a write leaves the block after it alone");
    for version in 0..20 {
        driver.write(12, &[200 + version]);
        driver.expect(12, &[200 + version], "a read returns the newest completed write");
    }
    // One block that is shared by two places of one write, and by two writes.
    let block = pattern::block(driver.harness.blocks(), 300);
    driver.device().write(Token(1), 20, vec![block.clone()], Persistence::Volatile);
    driver.one(0);
    driver.device().write(Token(2), 21, vec![block; count], Persistence::Volatile);
    driver.one(0);
    driver.expect(20, &[300], "a block may be written to several places");
    driver.expect(21, &[300, 300][..count], "a block may appear twice in a write");
}

fn the_largest_transfer_works<H: BlockHarness>(driver: &mut Driver<H>) {
    let count = driver.transfer_max();
    let tags: Vec<u64> = (1000..).take(count).collect();
    driver.write(3, &tags);
    driver.expect(3, &tags, "a transfer of the largest size arrives whole");
    driver.expect(3 + count as u64 - 1, &tags[count - 1..], "its last block can be read alone");
}

fn the_last_block_works<H: BlockHarness>(driver: &mut Driver<H>) {
    let last = driver.block_count() - 1;
    driver.write(last, &[1]);
    driver.write(0, &[2]);
    driver.expect(last, &[1], "the last block belongs to the device");
    driver.expect(0, &[2], "the first block belongs to the device");
    driver.device().discard(Token(1), BlockRange { first: last, count: 1 });
    assert_eq!(driver.one(0).result, Ok(()), "the last block can be discarded");
}

fn nothing_lies_beyond_the_device<H: BlockHarness>(driver: &mut Driver<H>) {
    let end = driver.block_count();
    let count = driver.transfer_max().min(2);
    driver.write(end - 1, &[1]);
    // The last two lie beyond any addressable byte and overflow the block number.
    let mut firsts = vec![end, end + 1, u64::MAX / 4096, u64::MAX];
    if count == 2 {
        firsts.push(end - 1);
    }
    for first in firsts {
        let name = driver.device().info().name.clone();
        let blocks = driver.buffers(count);
        driver.device().read(Token(1), first, blocks);
        let read = driver.one(0);
        assert_eq!(read.blocks.len(), count, "a failed read gives its buffers back");
        let blocks = driver.shared(&vec![9; count]);
        driver.device().write(Token(2), first, blocks, Persistence::Durable);
        let write = driver.one(0);
        driver.device().discard(Token(3), BlockRange { first, count: count as u64 });
        let discard = driver.one(0);
        for (completion, operation) in [(read, "read"), (write, "write"), (discard, "discard")] {
            let error = completion.result.expect_err("nothing lies beyond the device");
            assert_eq!(error.kind, DeviceErrorKind::Beyond, "an operation beyond the device says so");
            assert_eq!(
                (error.device, error.operation),
                (name.clone(), operation),
                "an error names device and operation"
            );
            assert_eq!((error.first, error.count), (first, count as u64), "an error names the blocks");
        }
    }
    driver.expect(end - 1, &[1], "an operation that reaches beyond the device changes nothing");
    assert_eq!(driver.device().room(), driver.depth(), "failed operations give their room back");
}

fn a_full_queue_empties<H: BlockHarness>(driver: &mut Driver<H>) {
    let depth = driver.depth();
    for round in 0..3 {
        let buffers = driver.buffers(depth);
        for (index, buffer) in buffers.into_iter().enumerate() {
            assert_eq!(driver.device().room(), depth - index, "an operation takes one place");
            driver.device().read(Token(index as u64), (index as u64 + round) % MEDIUM_BLOCKS_MIN, vec![buffer]);
        }
        assert_eq!(driver.device().room(), 0, "a full queue has no room");
        let completions = driver.collect(0, depth);
        assert!(completions.iter().all(|completion| completion.result.is_ok()), "a full queue serves every operation");
        assert_eq!(driver.device().room(), depth, "an empty queue has room for its depth");
    }
}

fn operations_in_flight_are_independent<H: BlockHarness>(driver: &mut Driver<H>) {
    let count = driver.depth().min(usize::try_from(MEDIUM_BLOCKS_MIN).expect("small"));
    for index in 0..count as u64 {
        let blocks = driver.shared(&[500 + index]);
        let persistence = if index % 2 == 0 { Persistence::Volatile } else { Persistence::Durable };
        // A stride of 37 visits each of the 64 blocks once.
        driver.device().write(Token(index), index * 37 % MEDIUM_BLOCKS_MIN, blocks, persistence);
    }
    driver.collect(0, count);
    let buffers = driver.buffers(count);
    for (index, buffer) in (0..).zip(buffers) {
        driver.device().read(Token(index), index * 37 % MEDIUM_BLOCKS_MIN, vec![buffer]);
    }
    for completion in driver.collect(0, count) {
        pattern::expect(&completion.blocks[0], 500 + completion.token.0, "writes in flight together all arrive");
    }
}

fn flushes_complete<H: BlockHarness>(driver: &mut Driver<H>) {
    driver.flush_on(0);
    let depth = driver.depth();
    let blocks = driver.shared(&[1]);
    driver.device().write(Token(0), 0, blocks, Persistence::Volatile);
    for token in 1..depth as u64 {
        driver.device().flush(Token(token));
    }
    let completions = driver.collect(0, depth);
    assert!(completions.iter().all(|completion| completion.result.is_ok()), "flushes beside writes in flight succeed");
    assert!(completions.iter().all(|completion| completion.blocks.is_empty()), "only reads give buffers back");
}

fn data_survives_a_restart<H: BlockHarness>(driver: &mut Driver<H>) {
    driver.write(4, &[1]);
    driver.write_on(0, 5, &[2], Persistence::Durable);
    driver.write(6, &[3]);
    driver.flush_on(0);
    driver.write(4, &[4]);
    let info = driver.device().info().clone();
    driver.harness.reopen();
    assert_eq!(*driver.device().info(), info, "a device is the same when it is opened again");
    for (block, tag) in [(4, 4), (5, 2), (6, 3)] {
        driver.expect(block, &[tag], "completed writes survive the process");
    }
}

fn discards_touch_only_their_range<H: BlockHarness>(driver: &mut Driver<H>) {
    for block in 0..6 {
        driver.write(block, &[10 + block]);
    }
    driver.device().discard(Token(1), BlockRange { first: 2, count: 2 });
    assert_eq!(driver.one(0).result, Ok(()), "a discard succeeds, whether or not it frees anything");
    driver.expect(1, &[11], "a discard leaves the block before it alone");
    driver.expect(4, &[14], "a discard leaves the block after it alone");
    driver.read_on(0, 2, 1);
    driver.write(2, &[20]);
    driver.expect(2, &[20], "a discarded block can be written again");
    // A discard is not a transfer: it may be as long as the device.
    let count = driver.block_count();
    driver.device().discard(Token(2), BlockRange { first: 0, count });
    assert_eq!(driver.one(0).result, Ok(()), "a whole device can be discarded");
}

fn queues_share_the_medium<H: BlockHarness>(driver: &mut Driver<H>) {
    let last = driver.harness.queue_count() - 1;
    for round in 1..10 {
        driver.write_on(0, 8, &[round], Persistence::Volatile);
        let seen = driver.read_on(last, 8, 1);
        pattern::expect(&seen[0], round, "a queue reads what another one has written");
        driver.flush_on(last);
        if driver.harness.power_cut() {
            driver.expect(8, &[round], "a flush covers what completed on other queues before it was queued");
        }
    }
}

fn reads_agree_with_a_model<H: BlockHarness>(driver: &mut Driver<H>) {
    let mut prng = Prng::new(0xB10C);
    let mut model = BTreeMap::<u64, u64>::new();
    let (depth, transfer_max) = (driver.depth().min(16), driver.transfer_max().min(5) as u64);
    for batch in 0..60 {
        // Operations of one batch take one block in eight each, so that none depends on another's order.
        let count = usize::try_from(prng.between(1, depth.min(8) as u64)).expect("small");
        let mut reads = BTreeMap::new();
        for slot in 0..count as u64 {
            let length = prng.between(1, transfer_max);
            let first = slot * 8 + prng.below(8 - length + 1);
            if prng.chance(1, 2) {
                let tags: Vec<u64> = (first..first + length).map(|block| batch * 1000 + block).collect();
                let blocks = driver.shared(&tags);
                let persistence = if prng.chance(1, 4) { Persistence::Durable } else { Persistence::Volatile };
                driver.device().write(Token(slot), first, blocks, persistence);
                model.extend((first..).zip(tags));
            } else {
                let blocks = driver.buffers(usize::try_from(length).expect("small"));
                driver.device().read(Token(slot), first, blocks);
                reads.insert(Token(slot), first);
            }
        }
        for completion in driver.collect(0, count) {
            assert_eq!(completion.result, Ok(()), "operations within the device succeed");
            let first = reads.get(&completion.token).copied().unwrap_or(0);
            for (block, bytes) in (first..).zip(&completion.blocks) {
                if let Some(&tag) = model.get(&block) {
                    pattern::expect(bytes, tag, "a read returns the newest completed write");
                }
            }
        }
    }
}

fn durable_and_flushed_writes_survive_a_power_cut<H: BlockHarness>(driver: &mut Driver<H>) {
    for round in 0..8 {
        for block in 1..8 {
            driver.write(block, &[round * 10 + block]);
        }
        driver.flush_on(0);
        driver.write_on(0, 0, &[round * 10], Persistence::Durable);
        driver.write(9, &[round]);
        if !driver.harness.power_cut() {
            return;
        }
        for block in 0..8 {
            driver.expect(block, &[round * 10 + block], "durable and flushed writes survive a power cut");
        }
    }
}

fn a_power_cut_leaves_sectors_old_or_new<H: BlockHarness>(driver: &mut Driver<H>) {
    let sector_bytes = driver.device().info().sector_bytes as usize;
    for round in 1..40 {
        let (old, new) = (round * 10, round * 10 + 1);
        for block in [3, 4] {
            driver.write(block, &[old]);
        }
        driver.flush_on(0);
        // Block 3 has completed without a flush, block 4 is in flight.
        driver.write(3, &[new]);
        let blocks = driver.shared(&[new]);
        driver.device().write(Token(1), 4, blocks, Persistence::Durable);
        if !driver.harness.power_cut() {
            driver.one(0);
            return;
        }
        for block in [3, 4] {
            let bytes = driver.read_on(0, block, 1).pop().expect("one was read");
            for (index, sector) in bytes.chunks(sector_bytes).enumerate() {
                let offset = index * sector_bytes;
                let whole = pattern::holds(sector, offset, old) || pattern::holds(sector, offset, new);
                assert!(whole, "a power cut leaves each sector old or new");
            }
        }
    }
}
