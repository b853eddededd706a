//! Limits, and how they follow from each other.

/// Bytes of a block.
pub const BLOCK_BYTES: u64 = twinlog_device::BLOCK_BYTES as u64;

/// References in one tree node: a block of 4096 bytes holds 128 references of 32 bytes.
pub const TREE_FANOUT: u64 = 128;

/// Blocks of one allocation area: one bitmap block has 4096 x 8 bits. An area spans 128 MiB.
pub const AREA_BLOCKS: u64 = BLOCK_BYTES * 8;

/// Devices of one pool.
pub const DEVICES_MAX: usize = 32;

/// Lanes of one portion, and so reactors of one node.
pub const LANES_MAX: usize = 16;

/// Pools of one pair: each node may be the home of four.
pub const PAIR_POOLS_MAX: usize = 8;

/// Forwarded changes of a pool that a partner may wait for: 256 names of 8 bytes fit a superblock, 16 for each of the most lanes.
pub const FORWARD_SLOTS: usize = 256;

/// Largest volume: 1 PiB. Its tree has 6 levels (128^5 < 2^38 blocks <= 128^6).
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

/// Bytes of a name of a volume, a pool or a node, as UTF-8.
pub const NAME_BYTES_MAX: usize = 64;

/// Largest payload of one change: what is atomic across a crash. Longer writes are several changes.
pub const CHANGE_BYTES_MAX: u64 = 1 << 20;

/// Largest request of a client; the NBD document's own recommendation for servers that do not negotiate less.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;

/// Requests that one connection may have in flight; more wait in the socket.
pub const REQUESTS_PER_CONNECTION_MAX: usize = 256;

/// Bytes of payload that one connection may have being written, being read, or waiting to be sent. Eight parts of the largest size:
/// enough for 64 requests of 128 KiB. All connections together have a quarter of the node's memory.
pub const CONNECTION_BYTES_MAX: u64 = 8 << 20;

/// Connections of one node.
pub const CONNECTIONS_MAX: usize = 256;

/// Hosts that can be registrants of one volume: as many as can be connected to a node, with an admin queue and one more each.
pub const REGISTRANTS_MAX: usize = CONNECTIONS_MAX / 2;

/// Smallest lane: room for four changes of the largest size, so that a full-size write never waits for more than a consistency point.
pub const LANE_BYTES_MIN: u64 = 4 * (CHANGE_BYTES_MAX + 2 * BLOCK_BYTES);

const _: () = assert!(TREE_FANOUT * 32 == BLOCK_BYTES);
const _: () = assert!(VOLUME_BYTES_MAX / BLOCK_BYTES <= TREE_FANOUT.pow(6));
const _: () = assert!(VOLUME_BYTES_MAX / BLOCK_BYTES > TREE_FANOUT.pow(5));
