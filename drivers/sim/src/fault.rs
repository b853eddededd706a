//! The classes of faults, their rates, and how often each fired and mattered.

use std::{cell::Cell, fmt};

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A read returns [`Medium`](twinlog_device::DeviceErrorKind::Medium); the next one may succeed.
    ReadError,
    /// A write returns [`Medium`](twinlog_device::DeviceErrorKind::Medium); each of its sectors is old or new.
    WriteError,
    /// A bit of a block that was written some time ago flips.
    BitRot,
    /// A write says that it is done and changes nothing.
    LostWrite,
    /// A write says that it is done and has landed on other blocks.
    MisdirectedWrite,
    /// An operation takes a hundred times as long as the slowest.
    SlowOperation,
    /// The device fails, and everything after it, until it is repaired.
    DeviceGone,
    /// A write returns [`NoSpace`](twinlog_device::DeviceErrorKind::NoSpace) and changes nothing.
    NoSpace,
    /// A power cut loses a completed, unflushed write of a block. It matters when the block then holds something else.
    CacheLost,
    /// A power cut leaves a block with old and new sectors.
    TornWrite,
    /// A write that was in flight at a power cut or kill lands, although it was never answered.
    UnansweredWrite,
    /// A client goes away without a word.
    Disconnect,
    /// A power cut or kill loses a part of a log store whose persist had not completed.
    LogLost,
    /// A power cut or kill leaves a log persist with old and new parts.
    LogTorn,
    /// A part of a log store lands although its persist was never answered.
    LogUnanswered,
    /// A bit of a log flips.
    LogRot,
    /// A persist of a log fails.
    LogPersistError,
    /// A read of a log fails.
    LogReadError,
}

/// Classes of faults.
const FAULT_COUNT: usize = Fault::ALL.len();

impl Fault {
    /// Every class.
    pub const ALL: [Self; 18] = [
        Self::ReadError,
        Self::WriteError,
        Self::BitRot,
        Self::LostWrite,
        Self::MisdirectedWrite,
        Self::SlowOperation,
        Self::DeviceGone,
        Self::NoSpace,
        Self::CacheLost,
        Self::TornWrite,
        Self::UnansweredWrite,
        Self::Disconnect,
        Self::LogLost,
        Self::LogTorn,
        Self::LogUnanswered,
        Self::LogRot,
        Self::LogPersistError,
        Self::LogReadError,
    ];

    /// The name in summaries.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ReadError => "read error",
            Self::WriteError => "write error",
            Self::BitRot => "bit rot",
            Self::LostWrite => "lost write",
            Self::MisdirectedWrite => "misdirected write",
            Self::SlowOperation => "slow operation",
            Self::DeviceGone => "device gone",
            Self::NoSpace => "no space",
            Self::CacheLost => "cached write lost",
            Self::TornWrite => "torn write",
            Self::UnansweredWrite => "unanswered write landed",
            Self::Disconnect => "disconnect",
            Self::LogLost => "log store lost",
            Self::LogTorn => "torn log persist",
            Self::LogUnanswered => "unanswered log store landed",
            Self::LogRot => "log bit rot",
            Self::LogPersistError => "log persist error",
            Self::LogReadError => "log read error",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// How often the faults of a medium are drawn, per million operations that they can hit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    per_million: [u32; FAULT_COUNT],
}

impl FaultPlan {
    /// The classes that a plan can have; the others come from power cuts, kills and clients.
    pub const DRAWN: [Fault; 8] = [
        Fault::ReadError,
        Fault::WriteError,
        Fault::BitRot,
        Fault::LostWrite,
        Fault::MisdirectedWrite,
        Fault::SlowOperation,
        Fault::DeviceGone,
        Fault::NoSpace,
    ];

    /// This plan with `fault` drawn `per_million` times in a million operations.
    ///
    /// # Panics
    /// When the class is none of [`Self::DRAWN`], or the rate is above a million.
    #[must_use]
    pub fn with(mut self, fault: Fault, per_million: u32) -> Self {
        assert!(Self::DRAWN.contains(&fault), "{fault} is not drawn by a plan");
        assert!(per_million <= 1_000_000, "a rate is at most a million in a million");
        self.per_million[fault.index()] = per_million;
        self
    }

    /// The rate of `fault`.
    #[must_use]
    pub fn per_million(&self, fault: Fault) -> u32 {
        self.per_million[fault.index()]
    }

    /// Whether no fault is ever drawn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.per_million == [0; FAULT_COUNT]
    }
}

/// How often each class fired and mattered.
#[derive(Default)]
pub(crate) struct FaultCounts {
    fired: [Cell<u64>; FAULT_COUNT],
    mattered: [Cell<u64>; FAULT_COUNT],
}

impl FaultCounts {
    pub(crate) fn fired(&self, fault: Fault) {
        let count = &self.fired[fault.index()];
        count.set(count.get() + 1);
    }

    pub(crate) fn mattered(&self, fault: Fault) {
        let count = &self.mattered[fault.index()];
        count.set(count.get() + 1);
    }

    pub(crate) fn of(&self, fault: Fault) -> (u64, u64) {
        (self.fired[fault.index()].get(), self.mattered[fault.index()].get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_own_index_and_name() {
        for (index, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault.index(), index);
            assert!(Fault::ALL[index + 1..].iter().all(|other| other.name() != fault.name()));
        }
    }

    #[test]
    fn a_plan_keeps_its_rates_apart() {
        let plan = FaultPlan::default().with(Fault::BitRot, 5).with(Fault::NoSpace, 7);
        assert_eq!(plan.per_million(Fault::BitRot), 5);
        assert_eq!(plan.per_million(Fault::NoSpace), 7);
        assert_eq!(plan.per_million(Fault::ReadError), 0);
        assert!(!plan.is_empty() && FaultPlan::default().is_empty());
    }

    #[test]
    #[should_panic(expected = "not drawn by a plan")]
    fn a_plan_refuses_what_power_cuts_do() {
        let _ = FaultPlan::default().with(Fault::TornWrite, 1);
    }
}
