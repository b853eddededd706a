//! A disk and log memory that are plain memory and finish everything at once.

use std::{cell::RefCell, rc::Rc};
use twinlog_device::{
    BLOCK_BYTES, BlockBuf, BlockBytes, BlockCompletion, BlockDevice, BlockRange, DeviceError, DeviceErrorKind,
    DeviceInfo, DurabilityClass, LogCompletion, LogInfo, LogMemory, Persistence, SharedBlock, Token,
};

/// The blocks of a disk; what was never written is zero.
pub(crate) type Blocks = Rc<RefCell<Vec<Option<Box<BlockBytes>>>>>;
/// The bytes of a lane's region.
pub(crate) type Region = Rc<RefCell<Vec<u8>>>;

/// A disk.
pub(crate) struct RamDisk {
    blocks: Blocks,
    info: DeviceInfo,
    completions: Vec<BlockCompletion>,
}

impl RamDisk {
    pub(crate) fn new(blocks: &Blocks) -> Self {
        let info = DeviceInfo {
            name: "ram".to_owned(),
            block_count: blocks.borrow().len() as u64,
            sector_bytes: 512,
            transfer_blocks_max: 256,
            queue_depth: 64,
            can_discard: false,
            durability: DurabilityClass::Volatile,
        };
        Self { blocks: Rc::clone(blocks), info, completions: Vec::new() }
    }

    fn end(
        &mut self,
        token: Token,
        operation: &'static str,
        (first, count): (u64, usize),
        blocks: Vec<BlockBuf>,
    ) -> bool {
        let beyond = first.checked_add(count as u64).is_none_or(|end| end > self.info.block_count);
        let error = || DeviceError {
            device: self.info.name.clone(),
            operation,
            first,
            count: count as u64,
            kind: DeviceErrorKind::Beyond,
        };
        let result = if beyond { Err(error()) } else { Ok(()) };
        self.completions.push(BlockCompletion { token, result, blocks });
        !beyond
    }
}

impl BlockDevice for RamDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn room(&self) -> usize {
        self.info.queue_depth as usize - self.completions.len()
    }

    fn read(&mut self, token: Token, first: u64, mut blocks: Vec<BlockBuf>) {
        let stored = Rc::clone(&self.blocks);
        let stored = stored.borrow();
        for (index, buffer) in (first..).zip(&mut blocks) {
            match usize::try_from(index).ok().and_then(|index| stored.get(index)) {
                Some(Some(bytes)) => buffer.copy_from_slice(&bytes[..]),
                _ => buffer.fill(0),
            }
        }
        self.end(token, "read", (first, blocks.len()), blocks);
    }

    fn write(&mut self, token: Token, first: u64, blocks: Vec<SharedBlock>, _persistence: Persistence) {
        if self.end(token, "write", (first, blocks.len()), Vec::new()) {
            let mut stored = self.blocks.borrow_mut();
            for (index, block) in (usize::try_from(first).expect("within the device")..).zip(blocks) {
                let place = stored[index].get_or_insert_with(|| Box::new([0; BLOCK_BYTES]));
                place.copy_from_slice(&*block);
            }
        }
    }

    fn flush(&mut self, token: Token) {
        self.end(token, "flush", (0, 0), Vec::new());
    }

    fn discard(&mut self, token: Token, range: BlockRange) {
        let count = usize::try_from(range.count).expect("small");
        self.end(token, "discard", (range.first, count), Vec::new());
    }

    fn poll(&mut self, completions: &mut Vec<BlockCompletion>) {
        completions.append(&mut self.completions);
    }
}

/// Log memory.
pub(crate) struct RamLog {
    bytes: Region,
    info: LogInfo,
    completions: Vec<LogCompletion>,
}

impl RamLog {
    pub(crate) fn new(bytes: &Region) -> Self {
        let info = LogInfo {
            name: "ram".to_owned(),
            backend: "memory",
            size_bytes: bytes.borrow().len() as u64,
            unit_bytes: 64,
            atomic_bytes: 8,
            durability: DurabilityClass::Volatile,
            pending_bytes_max: 8 << 20,
        };
        Self { bytes: Rc::clone(bytes), info, completions: Vec::new() }
    }
}

impl LogMemory for RamLog {
    fn info(&self) -> &LogInfo {
        &self.info
    }

    fn room_bytes(&self) -> u64 {
        self.info.pending_bytes_max
    }

    fn store(&mut self, offset_bytes: u64, bytes: &[u8]) {
        let start = usize::try_from(offset_bytes).expect("within the region");
        self.bytes.borrow_mut()[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn persist(&mut self, token: Token) {
        self.completions.push(LogCompletion { token, result: Ok(Vec::new()) });
    }

    fn room(&self) -> usize {
        8_usize.saturating_sub(self.completions.len())
    }

    fn read(&mut self, token: Token, offset_bytes: u64, length_bytes: usize) {
        let start = usize::try_from(offset_bytes).expect("within the region");
        let bytes = self.bytes.borrow()[start..start + length_bytes].to_vec();
        self.completions.push(LogCompletion { token, result: Ok(bytes) });
    }

    fn poll(&mut self, completions: &mut Vec<LogCompletion>) {
        completions.append(&mut self.completions);
    }
}
