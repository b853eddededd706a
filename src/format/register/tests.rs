//! Round trips, flipped bits, and what belongs elsewhere.

use super::*;

const PAIR: PairId = PairId(1 << 120 | 7);

fn header() -> MailboxHeader {
    MailboxHeader { pair: PAIR, nodes: ["a".repeat(NAME_BYTES_MAX), "b".to_owned()] }
}

fn beat() -> Beat {
    let (node, incarnation) = (NodeIndex::Second, Incarnation(9));
    Beat { node, incarnation, count: 3, fences: Some(Incarnation(1 << 100)), time_ns: 4 }
}

fn register() -> Register {
    Register {
        pool: PoolId(5),
        generation: 7,
        epoch: Epoch(6),
        owner: Side::Away,
        portion: PortionId(11),
        mirror: MirrorState::InSync(PortionId(12)),
        kept: true,
        changed_ns: 13,
    }
}

/// That every bit of `bytes` matters, and that zeroes are what was never written.
fn every_bit_counts<T: PartialEq + std::fmt::Debug>(
    bytes: &BlockBytes,
    verify: impl Fn(&BlockBytes) -> Result<Option<T>, MailboxError>,
) {
    for bit in 0..BLOCK_BYTES * 8 {
        for original in [bytes, &[0; BLOCK_BYTES]] {
            let mut flipped = *original;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&flipped).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn everything_survives_the_round_trip() {
    assert_eq!(MailboxHeader::verify(&header().encode(), Some(PAIR)), Ok(header()));
    assert_eq!(Beat::verify(&beat().encode(PAIR), PAIR, NodeIndex::Second), Ok(Some(beat())));
    let quiet = Beat { fences: None, ..beat() };
    assert_eq!(Beat::verify(&quiet.encode(PAIR), PAIR, NodeIndex::Second), Ok(Some(quiet)));
    let stale = Register { mirror: MirrorState::Stale, owner: Side::Home, kept: false, generation: 8, ..register() };
    for register in [register(), stale] {
        let block = register.block(PAIR_POOLS_MAX - 1);
        let bytes = register.encode(PAIR, PAIR_POOLS_MAX - 1);
        assert_eq!(Register::verify(&bytes, PAIR, block), Ok(Some(register)));
        assert!(block < MAILBOX_BLOCKS);
    }
}

#[test]
fn every_flipped_bit_is_found() {
    every_bit_counts(&header().encode(), |bytes| MailboxHeader::verify(bytes, None).map(Some));
    every_bit_counts(&beat().encode(PAIR), |bytes| Beat::verify(bytes, PAIR, NodeIndex::Second));
    let block = register().block(0);
    every_bit_counts(&register().encode(PAIR, 0), |bytes| Register::verify(bytes, PAIR, block));
}

#[test]
fn zeroes_are_what_was_never_written() {
    let zeroes = [0; BLOCK_BYTES];
    assert_eq!(Register::verify(&zeroes, PAIR, 4), Ok(None));
    assert_eq!(Beat::verify(&zeroes, PAIR, NodeIndex::First), Ok(None));
    assert_eq!(MailboxHeader::verify(&zeroes, None), Err(MailboxError::Foreign { block: 0 }));
}

#[test]
fn what_belongs_elsewhere_is_refused() {
    let other = MailboxError::OtherPair { found: PAIR, expected: PairId(1) };
    assert_eq!(MailboxHeader::verify(&header().encode(), Some(PairId(1))), Err(other.clone()));
    assert_eq!(Register::verify(&register().encode(PAIR, 0), PairId(1), 5), Err(other));
    assert!(Register::verify(&register().encode(PAIR, 0), PAIR, 4).is_err(), "the other slot");
    assert!(Register::verify(&register().encode(PAIR, 0), PAIR, 7).is_err(), "another register");
    assert!(Beat::verify(&beat().encode(PAIR), PAIR, NodeIndex::First).is_err(), "the other node");
}

#[test]
fn the_newest_generation_counts_and_damage_never_hides_it() {
    let zeroes = [0; BLOCK_BYTES];
    let [older, newer] = [6, 7].map(|generation| Register { generation, ..register() });
    let slots = [older.encode(PAIR, 0), newer.encode(PAIR, 0)];
    assert_eq!(Register::newest(&slots, PAIR, 0), Ok(Some(newer)));
    assert_eq!(Register::newest(&[slots[0], zeroes], PAIR, 0), Ok(Some(older)));
    assert_eq!(Register::newest(&[zeroes, zeroes], PAIR, 0), Ok(None));
    let mut damaged = slots;
    damaged[1][100] ^= 1;
    assert!(matches!(Register::newest(&damaged, PAIR, 0), Err(MailboxError::Damaged { block: 5, .. })));
    let stranger = Register { pool: PoolId(99), ..newer }.encode(PAIR, 0);
    assert!(matches!(Register::newest(&[slots[0], stranger], PAIR, 0), Err(MailboxError::Damaged { .. })));
}

#[test]
fn places_do_not_overlap() {
    let mut blocks: Vec<u64> = (0..PAIR_POOLS_MAX).flat_map(register_blocks).collect();
    blocks.extend(NodeIndex::ALL.map(NodeIndex::beat_block));
    blocks.push(HEADER_BLOCK);
    blocks.sort_unstable();
    blocks.dedup();
    assert_eq!(blocks.len(), 2 * PAIR_POOLS_MAX + 3);
    assert!(blocks.iter().all(|&block| block < MAILBOX_BLOCKS));
}

/// The slots of two registers, each with generations 1 and 2, and of six that were never written.
fn two_registers() -> Vec<[BlockBytes; 2]> {
    let mut slots = vec![[[0; BLOCK_BYTES]; 2]; PAIR_POOLS_MAX];
    for (index, pool) in [(0, PoolId(5)), (1, PoolId(6))] {
        for generation in [1, 2] {
            let register = Register { pool, generation, ..register() };
            slots[index][usize::from(generation == 1)] = register.encode(PAIR, index);
        }
    }
    slots
}

#[test]
fn registers_are_found_and_made_in_the_first_free_place() {
    let slots = two_registers();
    for (index, pool) in [(0, PoolId(5)), (1, PoolId(6))] {
        let (place, found) = locate(&slots, PAIR, pool).expect("whole");
        assert_eq!((place, found.map(|found| (found.pool, found.generation))), (Some(index), Some((pool, 2))));
    }
    assert_eq!(locate(&slots, PAIR, PoolId(7)), Ok((Some(2), None)));
    assert_eq!(locate(&slots[..2], PAIR, PoolId(7)), Ok((None, None)), "there is no room");
}

#[test]
fn a_damaged_slot_is_one_pools_matter() {
    for slot in 0..2 {
        let mut slots = two_registers();
        slots[0][slot][70] ^= 1;
        assert!(locate(&slots, PAIR, PoolId(5)).is_err(), "the other slot is not believed");
        assert_eq!(locate(&slots, PAIR, PoolId(6)).expect("whole").0, Some(1));
        assert_eq!(locate(&slots, PAIR, PoolId(7)), Ok((Some(2), None)), "the damaged one is another pool's");
        slots[0][1 - slot][70] ^= 1;
        assert_eq!(locate(&slots, PAIR, PoolId(6)).expect("whole").0, Some(1));
        assert!(locate(&slots, PAIR, PoolId(7)).is_err(), "whose register it is cannot be told");
    }
}
