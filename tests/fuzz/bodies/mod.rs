//! One function for each parser. It takes any bytes, asserts what must hold for every input, and says whether it understood them.

mod admin;
mod config;
mod format;
pub(crate) mod lane;
mod link;
mod nbd;
pub(crate) mod nvme_tcp;
mod pool;
mod ram;
pub(crate) mod reservation;
pub(crate) mod witness;

/// A body: any bytes in; whether they were valid out.
pub(crate) type Body = fn(&[u8]) -> bool;

/// Every target by its name.
pub(crate) const TARGETS: [(&str, Body); 25] = [
    ("nbd-handshake", nbd::handshake),
    ("nbd-session", nbd::session),
    ("nvme-tcp-unit", nvme_tcp::unit),
    ("nvme-tcp-session", nvme_tcp::session),
    ("nvme-tcp-authentication", nvme_tcp::authentication),
    ("record", lane::record),
    ("lane", lane::lane),
    ("link-frame", link::frame),
    ("link-session", link::session),
    ("superblock", format::superblock),
    ("block", format::block),
    ("pool", pool::pool),
    ("config", config::config),
    ("admin", admin::admin),
    ("size", config::size),
    ("witness", witness::witness),
    ("reservation-report", reservation::report),
    ("reservation-state", reservation::state),
    ("load-handshake", twinlog_load::fuzz::handshake),
    ("load-replies", twinlog_load::fuzz::replies),
    ("load-nvme-open", twinlog_load::fuzz::nvme_open),
    ("load-nvme-answers", twinlog_load::fuzz::nvme_answers),
    ("load-nvme-authentication", twinlog_load::fuzz::nvme_authentication),
    ("load-journal", twinlog_load::fuzz::journal),
    ("load-target", twinlog_load::fuzz::target),
];

/// The first `N` bytes of `data`, zeroes where it is shorter, and the rest.
pub(crate) fn take<const N: usize>(data: &[u8]) -> ([u8; N], &[u8]) {
    let mut first = [0; N];
    let (head, rest) = data.split_at(data.len().min(N));
    first[..head.len()].copy_from_slice(head);
    (first, rest)
}
