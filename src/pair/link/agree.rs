//! What two nodes must agree on before they are a pair: one comparison of two hellos, so that both find the same.

use super::PATHS_MAX;
use crate::{
    base::limits::BLOCK_BYTES,
    pair::wire::{Hello, PoolFacts, Refusal, RefusalReason},
};

/// Features that this program has: none is needed yet.
const FEATURES_KNOWN: u64 = 0;

/// Whether a node with the hello `own` goes on with one that says `other`.
///
/// # Errors
/// The first thing that is wrong; the text names what each of the two has.
pub(super) fn judge(own: &Hello, other: &Hello) -> Result<(), Refusal> {
    use RefusalReason as Reason;
    let unknown = other.features_required & !FEATURES_KNOWN;
    let (us, them) = (&own.name, &other.name);
    let names = (&own.name, &own.partner) == (&other.partner, &other.name);
    let need = |good: bool, reason: Reason, text: &dyn Fn() -> String| {
        if good { Ok(()) } else { Err(Refusal { reason, text: text() }) }
    };
    need(unknown == 0, Reason::Features, &|| {
        format!("node {them} requires features {unknown:#x}, which node {us} does not have")
    })?;
    need(own.pair == other.pair, Reason::Pair, &|| {
        format!("node {them} is of pair {}, node {us} of pair {}", other.pair, own.pair)
    })?;
    need(names, Reason::Name, &|| format!("node {them} looks for {}, node {us} for {}", other.partner, own.partner))?;
    need(own.role == other.role.other(), Reason::Role, &|| {
        format!("node {them} and node {us} both connect, or both listen")
    })?;
    need(usize::from(other.path) < PATHS_MAX, Reason::Malformed, &|| {
        format!("node {them} has a path {}, of at most {PATHS_MAX}", other.path)
    })?;
    need(own.configuration == other.configuration, Reason::Configuration, &|| {
        let (theirs, ours) = (other.configuration, own.configuration);
        format!("what both must have configured alike differs: checksum {theirs:016x} at {them}, {ours:016x} at {us}")
    })?;
    need(own.pools.len() == other.pools.len(), Reason::Pools, &|| {
        format!("node {them} has {} pools of the pair, node {us} has {}", other.pools.len(), own.pools.len())
    })?;
    own.pools.iter().try_for_each(|facts| judge_pool(facts, own, other))
}

fn judge_pool(facts: &PoolFacts, own: &Hello, other: &Hello) -> Result<(), Refusal> {
    let (us, them) = (&own.name, &other.name);
    let refuse = |reason, text| Err(Refusal { reason, text });
    let Some(theirs) = other.pools.iter().find(|theirs| theirs.pool == facts.pool) else {
        return refuse(RefusalReason::Pools, format!("node {them} does not have pool {} of node {us}", facts.pool));
    };
    if theirs.role == facts.role {
        let text = format!("both nodes, {them} and {us}, have pool {} in the same role", facts.pool);
        return refuse(RefusalReason::Pools, text);
    }
    if (theirs.lane_count, theirs.ring_bytes) != (facts.lane_count, facts.ring_bytes) {
        let text = format!(
            "the portions of pool {} differ: {} lanes of {} bytes at {them}, {} of {} at {us}",
            facts.pool, theirs.lane_count, theirs.ring_bytes, facts.lane_count, facts.ring_bytes
        );
        return refuse(RefusalReason::Portions, text);
    }
    let units = [theirs.unit_bytes, facts.unit_bytes];
    let is_unit = |unit: &u32| unit.is_power_of_two() && u64::from(*unit) <= BLOCK_BYTES;
    if !units.iter().all(is_unit) {
        let text = format!(
            "a portion of pool {} has a unit of {} bytes at {them}, {} at {us}",
            facts.pool, units[0], units[1]
        );
        return refuse(RefusalReason::Portions, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{Incarnation, PairId, PoolId, PortionId},
        changelog::PortionRole,
        pair::wire::Role,
    };

    fn facts(number: u128, role: PortionRole) -> PoolFacts {
        let (pool, portion) = (PoolId(number), PortionId(7));
        PoolFacts { pool, role, portion, ring_bytes: 8 << 20, unit_bytes: 64, lane_count: 2 }
    }

    fn hellos() -> [Hello; 2] {
        let hello = |role, name: &str, partner: &str, pools: [PortionRole; 2]| Hello {
            role,
            path: 0,
            features_required: 0,
            pair: PairId(1),
            configuration: 5,
            incarnation: Incarnation(1),
            session: 1,
            connection: 1,
            challenge: [0; 32],
            name: name.to_owned(),
            partner: partner.to_owned(),
            pools: vec![facts(1, pools[0]), facts(2, pools[1])],
        };
        [
            hello(Role::Connects, "a", "b", [PortionRole::Own, PortionRole::Mirror]),
            hello(Role::Listens, "b", "a", [PortionRole::Mirror, PortionRole::Own]),
        ]
    }

    fn reasons(change: impl FnOnce(&mut Hello)) -> [Option<RefusalReason>; 2] {
        let [own, mut other] = hellos();
        change(&mut other);
        [judge(&own, &other), judge(&other, &own)].map(|result| result.err().map(|refusal| refusal.reason))
    }

    #[test]
    fn both_nodes_find_the_same() {
        use RefusalReason as Reason;
        let both = |reason| [Some(reason); 2];
        assert_eq!(reasons(|_| {}), [None, None]);
        assert_eq!(reasons(|other| other.pools.reverse()), [None, None], "the order of pools means nothing");
        assert_eq!(reasons(|other| other.pools[0].unit_bytes = 4096), [None, None], "units may differ");
        assert_eq!(
            reasons(|other| other.pools[1].portion = PortionId(1)),
            [None, None],
            "portions have ids of their own"
        );
        assert_eq!(reasons(|other| other.pair = PairId(2)), both(Reason::Pair));
        assert_eq!(reasons(|other| other.name = "c".to_owned()), both(Reason::Name));
        assert_eq!(reasons(|other| other.partner = "c".to_owned()), both(Reason::Name));
        assert_eq!(reasons(|other| other.role = Role::Connects), both(Reason::Role));
        assert_eq!(reasons(|other| other.configuration = 6), both(Reason::Configuration));
        assert_eq!(reasons(|other| other.pools.truncate(1)), both(Reason::Pools));
        assert_eq!(reasons(|other| other.pools[0].pool = PoolId(3)), both(Reason::Pools));
        assert_eq!(reasons(|other| other.pools[0] = other.pools[1]), [Some(Reason::Pools), None], "one pool twice");
        assert_eq!(reasons(|other| other.pools[0].role = PortionRole::Own), both(Reason::Pools));
        assert_eq!(reasons(|other| other.pools[0].lane_count = 3), both(Reason::Portions));
        assert_eq!(reasons(|other| other.pools[1].ring_bytes = 4096), both(Reason::Portions));
        assert_eq!(reasons(|other| other.pools[1].unit_bytes = 3), both(Reason::Portions));
        assert_eq!(reasons(|other| other.features_required = 1), [Some(Reason::Features), None]);
        assert_eq!(reasons(|other| other.path = 200), [Some(Reason::Malformed), None]);
    }

    #[test]
    fn a_refusal_names_both() {
        let [own, mut other] = hellos();
        other.configuration = 0xBAD;
        let text = judge(&own, &other).expect_err("they differ").to_string();
        assert!(text.contains("0bad at b") && text.contains("0005 at a"), "{text}");
    }
}
