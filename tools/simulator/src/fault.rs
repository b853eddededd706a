//! Faults beyond those of the drivers, what excuses an error, and how often each class fired and mattered.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use std::collections::BTreeMap;
use twinlog_sim::{Fault, SimWorld};

/// What can happen to data behind the engine's back. One plex cannot mend it: it must be found and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Bits of disks flip while the node runs.
    Rot,
    /// A bit of a disk flips while nothing runs.
    RotAtRest,
    /// A disk's write says that it is done and is not.
    LostWrite,
    /// A disk's write lands elsewhere.
    MisdirectedWrite,
    /// A bit of the log flips while nothing runs.
    LogRot,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Rot, Self::RotAtRest, Self::LostWrite, Self::MisdirectedWrite, Self::LogRot];
    /// The drivers' classes that damage.
    const CLASSES: [Fault; 4] = [Fault::BitRot, Fault::LostWrite, Fault::MisdirectedWrite, Fault::LogRot];

    /// Whether any damage was done in `world`.
    #[must_use]
    pub fn was_done(world: &SimWorld) -> bool {
        Self::CLASSES.iter().any(|&fault| world.faults(fault).0 > 0)
    }
}

/// Classes that no single driver knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The process ended; it mattered when requests were unanswered or records had to be replayed.
    Kill,
    /// Power was lost; as above.
    PowerCut,
    /// Everything ended at one exact durable step.
    StepCrash,
    /// The same, but what was not durable by then landed, each part or not.
    StepLanding,
    /// The crash came while a disk was joining the pool; it mattered when the disk had been written to.
    CrashInGrowth,
    /// The crash came while the pool was being opened.
    CrashInRecovery,
    /// A write met a full pool.
    FullPool,
    /// Changes were slowed down, or waited for the log.
    FullLog,
    /// A whole record that cannot be performed lay in the log.
    PoisonedRecord,
    /// A block rotted that a record in the log may need; it mattered when the volume went offline.
    UnperformableRecord,
    /// A log that does not outlive the crash lost what was not flushed.
    LogNotKept,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::PowerCut,
        Self::StepCrash,
        Self::StepLanding,
        Self::CrashInGrowth,
        Self::CrashInRecovery,
        Self::FullPool,
        Self::FullLog,
        Self::PoisonedRecord,
        Self::UnperformableRecord,
        Self::LogNotKept,
    ];

    /// The name in summaries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "process kill",
            Self::PowerCut => "power cut",
            Self::StepCrash => "crash at a durable step",
            Self::StepLanding => "landing at a durable step",
            Self::CrashInGrowth => "crash in growth",
            Self::CrashInRecovery => "crash in recovery",
            Self::FullPool => "full pool",
            Self::FullLog => "full log",
            Self::PoisonedRecord => "poisoned record",
            Self::UnperformableRecord => "unperformable record",
            Self::LogNotKept => "volatile log lost",
        }
    }
}

/// How often a class fired and mattered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// It happened.
    pub fired: u64,
    /// It changed a later byte or an outcome.
    pub mattered: u64,
}

/// Counts of every class, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Tally(pub BTreeMap<&'static str, Count>);

impl Default for Tally {
    fn default() -> Self {
        let names = Fault::ALL.iter().map(|fault| fault.name()).chain(Class::ALL.iter().map(|class| class.name()));
        Self(names.map(|name| (name, Count::default())).collect())
    }
}

impl<'de> Deserialize<'de> for Tally {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (known, mut tally) = ([Self::default(), crate::pair::tally()], BTreeMap::new());
        for (name, count) in BTreeMap::<String, Count>::deserialize(deserializer)? {
            let known = known.iter().find_map(|known| known.0.get_key_value(name.as_str()));
            let known = known.ok_or_else(|| D::Error::custom(format_args!("no class of faults is called {name}")))?;
            tally.insert(*known.0, count);
        }
        Ok(Self(tally))
    }
}

impl Tally {
    /// Counts of these.
    pub fn of(names: impl Iterator<Item = &'static str>) -> Self {
        Self(names.map(|name| (name, Count::default())).collect())
    }

    /// Something of this name happened, and perhaps mattered.
    pub fn count_named(&mut self, name: &'static str, (fired, mattered): (u64, u64)) {
        let count = self.0.entry(name).or_default();
        count.fired += fired;
        count.mattered += mattered;
    }

    /// A class fired, and perhaps mattered.
    pub fn count(&mut self, class: Class, mattered: bool) {
        let count = self.0.entry(class.name()).or_default();
        count.fired += 1;
        count.mattered += u64::from(mattered);
    }

    /// Adds what the drivers counted.
    pub fn add_world(&mut self, world: &SimWorld) {
        for fault in Fault::ALL {
            let (fired, mattered) = world.faults(fault);
            let count = self.0.entry(fault.name()).or_default();
            count.fired += fired;
            count.mattered += mattered;
        }
    }

    /// Adds another tally.
    pub fn add(&mut self, other: &Self) {
        for (name, more) in &other.0 {
            let count = self.0.entry(name).or_default();
            count.fired += more.fired;
            count.mattered += more.mattered;
        }
    }

    /// Classes that never mattered.
    #[must_use]
    pub fn idle(&self) -> Vec<&'static str> {
        self.0.iter().filter(|(_, count)| count.mattered == 0).map(|(name, _)| *name).collect()
    }
}

/// What an error of this life may be blamed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Excuse {
    /// A read of a block may fail.
    pub read: bool,
    /// The pool may stop, or not open.
    pub stop: bool,
    /// Recovery may find a hole: the log does not outlive what happened to it.
    pub hole: bool,
}
