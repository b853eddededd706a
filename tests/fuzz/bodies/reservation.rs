//! Reservations: what an NVMe controller says of them, and those that hosts have of volumes, in the log, between the nodes, and as NVMe/TCP has them.

use super::take;
use twinlog::{
    base::HostId,
    format::reservation::{Reservation, is_valid_length},
    pair::wire::{read_command, write_command},
    serve::nvme_tcp::wire::{command::Command, reservation},
};
use twinlog_nvme::{REPORT_BYTES, REPORT_HOSTS_MAX, ReservationReport};

/// Any report is read; hosts beyond its bytes are not invented.
pub(crate) fn report(data: &[u8]) -> bool {
    let (bytes, _) = take::<REPORT_BYTES>(data);
    let report = ReservationReport::decode(&bytes);
    assert_eq!(report.hosts.len(), usize::from(report.registered_count).min(REPORT_HOSTS_MAX));
    report.kind.is_some() && report.hosts.iter().any(|host| host.holds)
}

/// Bytes: which parser, and what it is given. What is a state or a command is written as it was read, and can be decided.
pub(crate) fn state(data: &[u8]) -> bool {
    let ([parser], bytes) = take::<1>(data);
    let decide = |command| {
        let host = HostId::new([1; 16]).expect("not zero");
        if let Ok(decided) = Reservation::default().decide(host, command) {
            assert_eq!(decided.next.map_or(Ok(()), |next| next.check()), Ok(()));
        }
    };
    match parser % 3 {
        0 => Reservation::read(bytes).is_ok_and(|state| {
            assert!(state.to_bytes() == bytes && is_valid_length(bytes.len() as u64));
            assert!(reservation::report(&state).len() == 64 * (state.registrants.len() + 1));
            true
        }),
        1 => read_command(bytes).is_some_and(|command| {
            assert_eq!(write_command(command), bytes);
            decide(command);
            true
        }),
        _ => {
            let (entry, data) = take::<64>(bytes);
            let command = Command::parse(&entry);
            let _length = reservation::report_bytes(&command);
            reservation::parse(&command, data).is_ok_and(|command| {
                decide(command);
                true
            })
        }
    }
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
