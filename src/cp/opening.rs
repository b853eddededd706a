//! Opening a pool up to the point where its lanes can be replayed: superblock, lists, object table.

use super::lists::ListReader;
use crate::{
    format::{
        chain::{AddressRange, Subtree},
        superblock::Superblock,
    },
    fs::directory::Directory,
    pool::{
        io::{Io, IoEvent, Tag},
        superblocks::{OpenSuperblocks, PoolError},
        tree::{Walk, walk},
    },
};
use twinlog_device::BlockDevice;

/// Blocks of the object table read in one turn.
const STEP_BLOCKS: usize = 64;

/// What was read.
#[derive(Debug)]
pub struct OpenPool {
    /// The newest consistency point, trusted.
    pub superblock: Superblock,
    /// Its object table.
    pub directory: Directory,
    /// Its freed list.
    pub freed: Vec<AddressRange>,
    /// Its reap list.
    pub reap: Vec<Subtree>,
    /// Blocks of both lists themselves.
    pub list_blocks: Vec<AddressRange>,
}

enum Stage {
    Superblocks(Box<OpenSuperblocks>),
    Freed(ListReader<AddressRange>),
    Reap(ListReader<Subtree>),
    Directory(u64),
}

/// A pool being opened.
pub struct Opening {
    tag: Tag,
    stage: Stage,
    pool: Option<OpenPool>,
}

impl Opening {
    /// Starts reading; events for `owner` must come back through `event`.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn new<D: BlockDevice>(io: &mut Io<D>, owner: u16) -> Result<Self, PoolError> {
        let stage = Stage::Superblocks(Box::new(OpenSuperblocks::new(io, owner)?));
        Ok(Self { tag: Tag { owner, id: 0 }, stage, pool: None })
    }

    /// Takes an I/O event.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn event<D: BlockDevice>(&mut self, io: &mut Io<D>, event: IoEvent) -> Result<(), PoolError> {
        match (&mut self.stage, event) {
            (Stage::Superblocks(superblocks), event) => {
                if let Some((superblock, _)) = superblocks.event(io, event)? {
                    let blocks = superblock.devices.iter().map(|device| device.block_count).sum();
                    self.stage = Stage::Freed(ListReader::new(superblock.freed, blocks));
                    self.pool = Some(OpenPool {
                        superblock,
                        directory: Directory::default(),
                        freed: Vec::new(),
                        reap: Vec::new(),
                        list_blocks: Vec::new(),
                    });
                }
                Ok(())
            }
            // Blocks arrive through the cache; an unreadable one ends the opening.
            (_, IoEvent::Fetched { result, .. }) => result.map(drop).map_err(PoolError::Unreadable),
            (_, IoEvent::Done { result, .. }) => Ok(result.map(drop)?),
        }
    }

    /// Goes on for one turn; the pool when it has been read.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub fn step<D: BlockDevice>(&mut self, io: &mut Io<D>) -> Result<Option<OpenPool>, PoolError> {
        let Some(pool) = &mut self.pool else { return Ok(None) };
        match &mut self.stage {
            Stage::Superblocks(_) => {}
            Stage::Freed(list) => {
                if list.step(io, self.tag).map_err(PoolError::Unreadable)? {
                    let blocks = pool.superblock.devices.iter().map(|device| device.block_count).sum();
                    let next = Stage::Reap(ListReader::new(pool.superblock.reap, blocks));
                    let Stage::Freed(list) = std::mem::replace(&mut self.stage, next) else { unreachable!("matched") };
                    (pool.freed, pool.list_blocks) = list.into_parts();
                }
            }
            Stage::Reap(list) => {
                if list.step(io, self.tag).map_err(PoolError::Unreadable)? {
                    let Stage::Reap(list) = std::mem::replace(&mut self.stage, Stage::Directory(0)) else {
                        unreachable!("matched")
                    };
                    let (reap, mut blocks) = list.into_parts();
                    pool.reap = reap;
                    pool.list_blocks.append(&mut blocks);
                }
            }
            Stage::Directory(next) => {
                for _ in 0..STEP_BLOCKS {
                    match walk(&pool.superblock.object_table, *next, |key| io.cached(key)) {
                        Walk::Hole(u64::MAX) => {
                            pool.directory.finish().map_err(PoolError::Unreadable)?;
                            return Ok(self.pool.take());
                        }
                        Walk::Hole(until) => *next = until,
                        Walk::Missing(node) => {
                            let _ = io.fetch(&node, self.tag);
                            break;
                        }
                        Walk::Found(reference) => {
                            let Some(block) = io.fetch(&reference, self.tag) else { break };
                            pool.directory.load_block(*next, &block).map_err(PoolError::Unreadable)?;
                            *next += 1;
                        }
                    }
                }
            }
        }
        Ok(None)
    }
}
