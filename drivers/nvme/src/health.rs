//! How a controller feels.

use crate::{
    ControllerState,
    spec::{ErrorEntry, HealthLog, Status},
};
use std::time::Duration;
use twinlog_device::{DeviceHealth, DeviceWear, Nanos};

/// What the health log said last (base 5.16.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is critical, as bits: 0 spare, 1 temperature, 2 reliability, 3 read-only, 4 backup of volatile memory. Zero is well.
    pub critical_warning: u8,
    /// Temperature in kelvin.
    pub temperature_k: u16,
    /// Spare that is left, percent.
    pub spare_percent: u8,
    /// Spare below which it is critical, percent.
    pub spare_threshold_percent: u8,
    /// Endurance used, percent; may exceed 100.
    pub used_percent: u8,
    /// Errors of media or data integrity that were not recovered.
    pub media_errors: u128,
    /// Power losses without a shutdown.
    pub unsafe_shutdowns: u128,
    /// When it was asked.
    pub asked_at: Nanos,
}

impl Health {
    pub(crate) fn new(log: &HealthLog, asked_at: Nanos) -> Self {
        Self {
            critical_warning: log.critical_warning,
            temperature_k: log.temperature_k.get(),
            spare_percent: log.spare_percent,
            spare_threshold_percent: log.spare_threshold_percent,
            used_percent: log.used_percent,
            media_errors: log.media_errors.get(),
            unsafe_shutdowns: log.unsafe_shutdowns.get(),
            asked_at,
        }
    }

    /// What is critical, in words.
    fn warnings(&self) -> impl Iterator<Item = &'static str> {
        // A controller that does not set the bit may still say so by its figures.
        let lacks_spare = u8::from(self.spare_percent < self.spare_threshold_percent);
        let bits = self.critical_warning | lacks_spare;
        (0..).zip(WARNINGS).filter(move |(bit, _)| bits >> bit & 1 == 1).map(|(_, words)| words)
    }

    fn wear(&self) -> DeviceWear {
        DeviceWear {
            temperature_celsius: i32::from(self.temperature_k) - CELSIUS_ZERO_K,
            spare_percent: self.spare_percent,
            used_percent: self.used_percent,
            media_errors: u64::try_from(self.media_errors).unwrap_or(u64::MAX),
            unsafe_shutdowns: u64::try_from(self.unsafe_shutdowns).unwrap_or(u64::MAX),
        }
    }

    /// Whether somebody should look after the device.
    #[must_use]
    pub fn is_critical(&self) -> bool {
        self.critical_warning != 0 || self.spare_percent < self.spare_threshold_percent
    }
}

/// What is critical, by the bits of the health log.
const WARNINGS: [&str; 6] = [
    "its spare capacity is below its threshold",
    "its temperature is beyond its limits",
    "its reliability is degraded by errors of the media or inside",
    "it takes no more writes",
    "the backup of its volatile memory has failed",
    "its persistent memory region takes no more writes",
];

/// Zero degrees Celsius, in kelvin.
const CELSIUS_ZERO_K: i32 = 273;

/// How a controller is, as its last turn has left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) state: ControllerState,
    pub(crate) health: Option<Health>,
    pub(crate) reset_count: u64,
    pub(crate) timeout_count: u64,
    pub(crate) change_count: u64,
    pub(crate) oldest: Duration,
    pub(crate) is_paused: bool,
    pub(crate) confined_by: &'static str,
    pub(crate) flushes_writes: bool,
}

impl Condition {
    /// For people.
    pub(crate) fn tell(&self) -> DeviceHealth {
        let trouble = match self.state {
            ControllerState::Live if self.is_paused => {
                Some("it has paused, as for the activation of a firmware: operations wait".to_owned())
            }
            ControllerState::Live => None,
            ControllerState::Starting => Some("it is being reset: operations wait".to_owned()),
            ControllerState::Failed(failure) => Some(failure.to_string()),
        };
        DeviceHealth {
            confined_by: Some(self.confined_by),
            flushes_writes: self.flushes_writes,
            trouble,
            warnings: self.health.iter().flat_map(Health::warnings).collect(),
            timeout_count: self.timeout_count,
            reset_count: self.reset_count,
            change_count: self.change_count,
            oldest: self.oldest,
            wear: self.health.map(|health| health.wear()),
            ..DeviceHealth::default()
        }
    }
}

/// The newest entry of the error log (base 5.16.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedError {
    /// Number of the error over the controller's life.
    pub number: u64,
    /// Status of the command.
    pub status: Status,
    /// First logical block with an error.
    pub lba: u64,
    /// Namespace.
    pub namespace: u32,
}

impl LoggedError {
    /// None for an entry that is not used.
    pub(crate) fn new(entry: &ErrorEntry) -> Option<Self> {
        (entry.number.get() != 0).then(|| Self {
            number: entry.number.get(),
            status: Status(entry.status_and_phase.get() >> 1),
            lba: entry.lba.get(),
            namespace: entry.namespace.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    #[test]
    fn an_error_is_read_as_it_was_logged() {
        let mut bytes = [0; 64];
        assert_eq!(LoggedError::new(&ErrorEntry::read_from_bytes(&bytes).expect("64 bytes")), None);
        (bytes[0], bytes[12], bytes[13], bytes[16], bytes[24]) = (9, 0x02, 0x05, 77, 3);
        let error = LoggedError::new(&ErrorEntry::read_from_bytes(&bytes).expect("64 bytes"));
        let status = Status::UNRECOVERED_READ;
        assert_eq!(error, Some(LoggedError { number: 9, status, lba: 77, namespace: 3 }));
    }
}
