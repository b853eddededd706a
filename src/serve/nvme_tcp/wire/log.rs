//! Log pages.

use super::{padded, terminated};
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
    pub const DISCOVERY: u8 = 0x70;
}

/// Supported log pages (section 5.16.1.1): bit 0 of a page's dword.
#[must_use]
pub fn supported(pages: &[u8]) -> Vec<u8> {
    (0..=255_u8).flat_map(|page| u32::from(pages.contains(&page)).to_le_bytes()).collect()
}

/// Error information (section 5.16.1.2): one entry, which says that there was no error.
#[must_use]
pub fn errors() -> Vec<u8> {
    vec![0; 64]
}

/// Health (section 5.16.1.3). What a pool's devices say of themselves is in `twinlog status`: there is no one device behind a namespace.
#[must_use]
pub fn smart() -> Vec<u8> {
    #[derive(FromZeros, Immutable, IntoBytes)]
    #[repr(C)]
    struct Smart {
        warning: u8,
        temperature: [u8; 2],
        spare: u8,
        spare_threshold: u8,
        more: [u8; 507],
    }
    const _: () = assert!(size_of::<Smart>() == 512 && offset_of!(Smart, spare) == 3);
    let mut smart = Smart::new_zeroed();
    // Percent: nothing here wears out.
    (smart.spare, smart.spare_threshold) = (100, 10);
    smart.as_bytes().to_vec()
}

/// Firmware slots (section 5.16.1.4): one, which runs.
#[must_use]
pub fn firmware() -> Vec<u8> {
    let mut page = vec![1, 0, 0, 0, 0, 0, 0, 0];
    page.extend_from_slice(&padded::<8>(env!("CARGO_PKG_VERSION")));
    page.resize(512, 0);
    page
}

/// Commands supported and effects (section 5.16.1.6): opcodes of admin and of I/O commands, each with whether it changes blocks.
#[must_use]
pub fn effects(admin: &[u8], io: &[(u8, bool)]) -> Vec<u8> {
    let admin = (0..=255_u8).map(|opcode| u32::from(admin.contains(&opcode)));
    let io = (0..=255_u8).map(|opcode| {
        let found = io.iter().find(|(supported, _)| *supported == opcode);
        found.map_or(0, |(_, changes)| 1 | u32::from(*changes) << 1)
    });
    let mut page: Vec<u8> = admin.chain(io).flat_map(u32::to_le_bytes).collect();
    page.resize(4096, 0);
    page
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
        assert_eq!([supported(&[]).len(), errors().len(), smart().len(), firmware().len()], [1024, 64, 512, 512]);
        let page = effects(&[6], &[(1, true), (2, false)]);
        assert_eq!((page.len(), page[24], page[1024 + 4], page[1024 + 8], page[1024]), (4096, 1, 3, 1, 0));
        assert_eq!(supported(&[2])[..12], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
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
