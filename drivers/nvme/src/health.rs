//! How a controller feels.

use crate::spec::{ErrorEntry, HealthLog, Status};
use twinlog_device::Nanos;

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

    /// Whether somebody should look after the device.
    #[must_use]
    pub fn is_critical(&self) -> bool {
        self.critical_warning != 0 || self.spare_percent < self.spare_threshold_percent
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
