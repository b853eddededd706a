//! What an NVMe controller says of reservations.

use super::take;
use twinlog_nvme::{REPORT_BYTES, REPORT_HOSTS_MAX, ReservationReport};

/// Any report is read; hosts beyond its bytes are not invented.
pub(crate) fn report(data: &[u8]) -> bool {
    let (bytes, _) = take::<REPORT_BYTES>(data);
    let report = ReservationReport::decode(&bytes);
    assert_eq!(report.hosts.len(), usize::from(report.registered_count).min(REPORT_HOSTS_MAX));
    report.kind.is_some() && report.hosts.iter().any(|host| host.holds)
}

/// Nobody; one that holds; two, of which one holds.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let report = |count: u8| {
        let mut bytes = vec![0; 64 * (usize::from(count) + 1)];
        (bytes[0], bytes[4], bytes[5], bytes[9]) = (count, count.min(1), count, 1);
        for (host, entry) in (1..).zip(bytes.chunks_exact_mut(64).skip(1)) {
            (entry[0], entry[2], entry[8], entry[16]) = (host, u8::from(host == 1), host, host);
        }
        bytes
    };
    (0..3).map(report).collect()
}
