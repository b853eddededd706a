//! Log pages.

use super::{command::feature, padded, terminated};
use std::mem::{offset_of, size_of};
use zerocopy::{
    FromZeros, Immutable, IntoBytes,
    little_endian::{U16, U32, U64},
};

/// Log identifiers (base 2.0, section 5.16.1, figure 202).
pub mod id {
    #![expect(missing_docs, reason = "the names of the specification")]
    pub const SUPPORTED: u8 = 0x00;
    pub const ERRORS: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const EFFECTS: u8 = 0x05;
    pub const ACCESS: u8 = 0x0c;
    pub const FEATURES: u8 = 0x12;
    pub const MANAGEMENT: u8 = 0x13;
    pub const DISCOVERY: u8 = 0x70;
    pub const RESERVATION: u8 = 0x80;
}

/// Supported log pages (section 5.16.1.1): bit 0 of a page's dword.
#[must_use]
pub fn supported(pages: &[u8]) -> Vec<u8> {
    (0..=255_u8).flat_map(|page| u32::from(pages.contains(&page)).to_le_bytes()).collect()
}

/// Entries of the error log: ELPE is one less.
pub const ERRORS_MAX: usize = 64;

/// A command that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Its number among those of its controller, from 1.
    pub count: u64,
    /// Its queue.
    pub queue: u16,
    /// Its id.
    pub command: u16,
    /// As its completion had it.
    pub status: u16,
    /// Its namespace, as it named it.
    pub namespace: u32,
    /// Its first block, if it names one.
    pub first_block: u64,
}

/// Error information (section 5.16.1.2): entries by age, the newest first, and empty ones.
#[must_use]
pub fn errors<'a>(newest_first: impl Iterator<Item = &'a ErrorEntry>) -> Vec<u8> {
    #[derive(FromZeros, Immutable, IntoBytes)]
    #[repr(C)]
    struct Bytes {
        count: U64,
        queue: U16,
        command: U16,
        status: U16,
        location: U16,
        first_block: U64,
        namespace: U32,
        vendor_specific: u8,
        transport: u8,
        reserved: [u8; 34],
    }
    const _: () = assert!(size_of::<Bytes>() == 64 && offset_of!(Bytes, transport) == 29);
    let mut page = Vec::with_capacity(ERRORS_MAX * size_of::<Bytes>());
    for error in newest_first.take(ERRORS_MAX) {
        let mut bytes = Bytes::new_zeroed();
        (bytes.count, bytes.queue, bytes.command) =
            (U64::new(error.count), U16::new(error.queue), U16::new(error.command));
        bytes.status = U16::new(error.status);
        // Not about one of its fields, as far as the entry says; over TCP.
        (bytes.location, bytes.transport) = (U16::new(0xffff), 3);
        (bytes.first_block, bytes.namespace) = (U64::new(error.first_block), U32::new(error.namespace));
        page.extend_from_slice(bytes.as_bytes());
    }
    page.resize(ERRORS_MAX * size_of::<Bytes>(), 0);
    page
}

/// What the health log page tells of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// A volume is offline.
    pub is_degraded: bool,
    /// Commands of hosts that read.
    pub reads: u64,
    /// Commands of hosts that wrote.
    pub writes: u64,
    /// Sectors of 512 bytes that they read.
    pub read_sectors: u64,
    /// The same, written.
    pub written_sectors: u64,
    /// Commands that met a block which cannot be read.
    pub media_errors: u64,
    /// Entries that the controller's error log has had.
    pub errors: u64,
}

/// Health (section 5.16.1.3). What a pool's devices say of themselves is in `twinlog status`: there is no one device behind a namespace.
#[must_use]
pub fn smart(health: &Health) -> Vec<u8> {
    #[derive(FromZeros, Immutable, IntoBytes)]
    #[repr(C)]
    struct Smart {
        warning: u8,
        temperature: [u8; 2],
        spare: u8,
        spare_threshold: u8,
        used: u8,
        reserved_6: [u8; 26],
        units_read: [U64; 2],
        units_written: [U64; 2],
        reads: [U64; 2],
        writes: [U64; 2],
        busy_minutes: [U64; 2],
        power_cycles: [U64; 2],
        power_on_hours: [U64; 2],
        unsafe_shutdowns: [U64; 2],
        media_errors: [U64; 2],
        errors: [U64; 2],
        more: [u8; 320],
    }
    const _: () = assert!(size_of::<Smart>() == 512 && offset_of!(Smart, units_read) == 32);
    const _: () = assert!(offset_of!(Smart, media_errors) == 160 && offset_of!(Smart, errors) == 176);
    let wide = |number: u64| [U64::new(number), U64::ZERO];
    // Thousands of sectors, rounded up.
    let units = |sectors: u64| wide(sectors.div_ceil(1000));
    let mut smart = Smart::new_zeroed();
    smart.warning = u8::from(health.is_degraded) << 2;
    // Percent: nothing here wears out.
    (smart.spare, smart.spare_threshold) = (100, 10);
    (smart.units_read, smart.units_written) = (units(health.read_sectors), units(health.written_sectors));
    (smart.reads, smart.writes) = (wide(health.reads), wide(health.writes));
    (smart.media_errors, smart.errors) = (wide(health.media_errors), wide(health.errors));
    smart.as_bytes().to_vec()
}

/// What has become of a namespace's reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The namespace.
    pub namespace: u32,
    /// Registration preempted 1, reservation released 2, reservation preempted 3.
    pub kind: u8,
}

/// The same in a controller's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotificationEntry {
    /// Its number, never zero.
    pub count: u64,
    /// What it says.
    pub notification: Notification,
}

/// Reservation Notification (section 5.16.1.25): the oldest one, and how many wait behind it; a page of zeroes says that there is none.
#[must_use]
pub fn reservation(oldest: Option<&NotificationEntry>, behind: usize) -> Vec<u8> {
    let mut page = Vec::with_capacity(64);
    if let Some(NotificationEntry { count, notification }) = oldest {
        page.extend(count.to_le_bytes());
        page.extend([notification.kind, u8::try_from(behind).unwrap_or(u8::MAX), 0, 0]);
        page.extend(notification.namespace.to_le_bytes());
    }
    page.resize(64, 0);
    page
}

/// Firmware slots (section 5.16.1.4): one, which runs.
#[must_use]
pub fn firmware() -> Vec<u8> {
    let mut page = vec![1, 0, 0, 0, 0, 0, 0, 0];
    page.extend_from_slice(&padded::<8>(env!("CARGO_PKG_VERSION")));
    page.resize(512, 0);
    page
}

/// Scopes of commands and features: what they are about.
const NAMESPACE_SCOPE: u32 = 1 << 20;
const CONTROLLER_SCOPE: u32 = 1 << 21;

/// Commands supported and effects (section 5.16.1.6): opcodes of admin and of I/O commands, each of these with whether it changes blocks.
#[must_use]
pub fn effects(admin: &[u8], io: &[(u8, bool)]) -> Vec<u8> {
    let admin = supported_in_controller(admin);
    let io = (0..=255_u8).map(|opcode| {
        let found = io.iter().find(|(supported, _)| *supported == opcode);
        found.map_or(0, |(_, changes)| 1 | u32::from(*changes) << 1 | NAMESPACE_SCOPE)
    });
    let mut page: Vec<u8> = admin.chain(io).flat_map(u32::to_le_bytes).collect();
    page.resize(4096, 0);
    page
}

/// A dword for each code, of those that are supported and about the controller.
fn supported_in_controller(codes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    (0..=255_u8).map(|code| if codes.contains(&code) { 1 | CONTROLLER_SCOPE } else { 0 })
}

/// Feature identifiers supported and effects (section 5.16.1.17).
#[must_use]
pub fn features(ids: &[u8]) -> Vec<u8> {
    let of_namespaces = [feature::RESERVATION_NOTICE_MASK, feature::RESERVATION_PERSISTENCE];
    let scoped = |(id, word): (u8, u32)| match word {
        0 => 0,
        _ if of_namespaces.contains(&id) => 1 | NAMESPACE_SCOPE,
        word => word,
    };
    (0..=255_u8).zip(supported_in_controller(ids)).map(scoped).flat_map(u32::to_le_bytes).collect()
}

/// NVMe-MI commands supported and effects (section 5.16.1.18): none is.
#[must_use]
pub fn management() -> Vec<u8> {
    vec![0; 4096]
}

/// How a controller reaches the namespaces of a group (section 8.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its node performs the commands.
    Optimized,
    /// Its node forwards them.
    NonOptimized,
    /// Its node refuses them: it knows nobody who performs them.
    Inaccessible,
}

/// A group of namespaces that are reached alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessGroup {
    /// Its number, from 1.
    pub id: u32,
    /// How often the group has changed since the controller was reset.
    pub changes: u64,
    /// How it is reached.
    pub access: Access,
    /// Its namespaces, in order.
    pub namespaces: Vec<u32>,
}

/// Asymmetric namespace access (section 5.16.1.13): the groups, and how often the page has changed since the controller was reset.
#[must_use]
pub fn access(changes: u64, groups: &[AccessGroup]) -> Vec<u8> {
    #[derive(Immutable, IntoBytes)]
    #[repr(C)]
    struct Head {
        changes: U64,
        groups: U16,
        reserved: [u8; 6],
    }
    #[derive(Immutable, IntoBytes)]
    #[repr(C)]
    struct Group {
        id: U32,
        namespaces: U32,
        changes: U64,
        access: u8,
        reserved: [u8; 15],
    }
    const _: () = assert!(size_of::<Head>() == 16 && size_of::<Group>() == 32);
    let count = U16::new(u16::try_from(groups.len()).expect("a few groups"));
    let mut page = Head { changes: U64::new(changes), groups: count, reserved: [0; 6] }.as_bytes().to_vec();
    for AccessGroup { id, changes, access, namespaces } in groups {
        let count = u32::try_from(namespaces.len()).expect("a list");
        let access = match access {
            Access::Optimized => 1,
            Access::NonOptimized => 2,
            Access::Inaccessible => 3,
        };
        let (id, namespace_count, changes) = (U32::new(*id), U32::new(count), U64::new(*changes));
        let group = Group { id, namespaces: namespace_count, changes, access, reserved: [0; 15] };
        page.extend_from_slice(group.as_bytes());
        page.extend(namespaces.iter().copied().flat_map(u32::to_le_bytes));
    }
    page
}

/// What a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subsystem {
    /// A discovery service, this one.
    CurrentDiscovery,
    /// Volumes.
    Nvme,
}

/// Where a subsystem can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// What is there.
    pub subsystem: Subsystem,
    /// Its number: the same for the same address.
    pub number: u16,
    /// The subsystem's name.
    pub name: String,
    /// Host part, in text.
    pub address: std::net::SocketAddr,
}

/// A discovery log entry (section 5.16.1.23, figure 264).
#[derive(FromZeros, Immutable, IntoBytes)]
#[repr(C)]
struct Entry {
    transport: u8,
    family: u8,
    kind: u8,
    requirements: u8,
    port: U16,
    controller: U16,
    queue_max: U16,
    flags: U16,
    reserved_12: [u8; 20],
    service: [u8; 32],
    reserved_64: [u8; 192],
    name: [u8; 256],
    address: [u8; 256],
    specific: [u8; 256],
}

/// The discovery log's head (figure 263).
#[derive(FromZeros, Immutable, IntoBytes)]
#[repr(C)]
struct Head {
    generation: U64,
    count: U64,
    format: U16,
    reserved: [u8; 1006],
}

const _: () = assert!(size_of::<Entry>() == 1024 && size_of::<Head>() == 1024);
const _: () = assert!(offset_of!(Entry, service) == 32 && offset_of!(Entry, name) == 256);

/// The discovery log.
#[must_use]
pub fn discovery(generation: u64, ports: &[Port], admin_queue_max: u16) -> Vec<u8> {
    let mut head = Head::new_zeroed();
    head.generation = U64::new(generation);
    head.count = U64::new(ports.len() as u64);
    let mut page = head.as_bytes().to_vec();
    for port in ports {
        let mut entry = Entry::new_zeroed();
        // TCP; AF_IPv4 or AF_IPv6.
        (entry.transport, entry.family) = (3, if port.address.is_ipv4() { 1 } else { 2 });
        (entry.kind, entry.flags) = match port.subsystem {
            // The entry for this very service, which keeps persistent connections (EFLAGS bit 1).
            Subsystem::CurrentDiscovery => (3, U16::new(2)),
            Subsystem::Nvme => (2, U16::ZERO),
        };
        // Nothing is said of secure channels; hosts may do without flow control of submission queues.
        entry.requirements = 4;
        (entry.port, entry.controller) = (U16::new(port.number), U16::new(0xffff));
        entry.queue_max = U16::new(admin_queue_max);
        entry.service = padded(&port.address.port().to_string());
        entry.address = padded(&port.address.ip().to_string());
        entry.name = terminated(&port.name);
        page.extend_from_slice(entry.as_bytes());
    }
    page
}

/// Used by all pages that consist of dwords.
pub const DWORD_BYTES: u64 = size_of::<U32>() as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_the_lengths_of_the_specification() {
        let lengths =
            [supported(&[]).len(), errors([].iter()).len(), smart(&Health::default()).len(), firmware().len()];
        assert_eq!(lengths, [1024, 4096, 512, 512]);
        let page = effects(&[6], &[(1, true), (2, false)]);
        assert_eq!((page.len(), page[24], page[1024 + 4], page[1024 + 8], page[1024]), (4096, 1, 3, 1, 0));
        assert_eq!(supported(&[2])[..12], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn errors_and_health_lie_where_the_specification_says() {
        let entry =
            ErrorEntry { count: 7, queue: 2, command: 0x304, status: 0x8004, namespace: 9, first_block: 1 << 32 };
        let page = errors([entry; ERRORS_MAX + 1].iter());
        assert_eq!((page.len(), &page[4032..4048]), (4096, &page[..16]));
        assert_eq!(page[..16], [7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 4, 3, 4, 0x80, 0xff, 0xff]);
        assert_eq!(page[16..32], [0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 3, 0, 0]);
        let health = Health {
            is_degraded: true,
            reads: 2,
            writes: 3,
            read_sectors: 1,
            written_sectors: 1001,
            media_errors: 4,
            errors: 5,
        };
        let page = smart(&health);
        assert_eq!((page[0], page[3], page[4]), (4, 100, 10));
        let numbers = [32, 48, 64, 80, 96, 160, 176].map(|at| page[at]);
        assert_eq!(numbers, [1, 2, 2, 3, 0, 4, 5]);
    }

    #[test]
    fn groups_of_namespaces_are_listed_with_their_access() {
        let group = |id, access, namespaces| AccessGroup { id, changes: u64::from(id), access, namespaces };
        let page = access(9, &[group(1, Access::Optimized, vec![1, 3]), group(2, Access::NonOptimized, Vec::new())]);
        assert_eq!((page.len(), page[0], page[8]), (16 + 32 + 8 + 32, 9, 2));
        assert_eq!((page[16], page[20], page[24], page[32]), (1, 2, 1, 1));
        assert_eq!(page[48..56], [1, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!((page[56], page[60], page[64], page[72]), (2, 0, 2, 2));
    }

    #[test]
    fn the_discovery_log_lists_ports() {
        let port = |number, subsystem, address: &str| Port {
            subsystem,
            number,
            name: "nqn.x".to_owned(),
            address: address.parse().expect("an address"),
        };
        let ports =
            [port(1, Subsystem::CurrentDiscovery, "127.0.0.1:4420"), port(2, Subsystem::Nvme, "[2001:db8::1]:65535")];
        let page = discovery(7, &ports, 32);
        assert_eq!((page.len(), page[0], page[8]), (3072, 7, 2));
        assert_eq!(page[1024..1034], [3, 1, 3, 4, 1, 0, 0xff, 0xff, 32, 0]);
        assert_eq!(page[1034], 2);
        assert_eq!((&page[1056..1061], page[1087]), (&b"4420 "[..], b' '));
        assert_eq!((&page[1280..1286], &page[1536..1546]), (&b"nqn.x\0"[..], &b"127.0.0.1 "[..]));
        assert_eq!((page[2049], page[2050], &page[2560..2572]), (2, 2, &b"2001:db8::1 "[..]));
    }
}
