//! What the specifications ask of a controller, and what is here: NVMe base 2.0 (sections 3.1.2 and 5), NVM command set 1.0, and the fabrics parts of the base.
//! The test beside it holds the server to these rows, and `docs/nvme-conformance.md` to both.

/// What a kind of controller must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Mandatory,
    Optional,
    Prohibited,
}

use Need::{Mandatory as M, Optional as O, Prohibited as P};

/// One thing that a host can ask for.
pub(crate) struct Row {
    pub(crate) code: u16,
    pub(crate) name: &'static str,
    /// Of an I/O controller, of a discovery controller.
    pub(crate) needs: [Need; 2],
    pub(crate) has: [bool; 2],
}

const fn row(code: u16, name: &'static str, needs: [Need; 2], has: [u8; 2]) -> Row {
    Row { code, name, needs, has: [has[0] == 1, has[1] == 1] }
}

/// Admin commands by opcode. Those of the memory-based transport are prohibited over TCP.
pub(crate) const ADMIN: &[Row] = &[
    row(0x00, "Delete I/O Submission Queue", [P, P], [0, 0]),
    row(0x01, "Create I/O Submission Queue", [P, P], [0, 0]),
    row(0x02, "Get Log Page", [M, M], [1, 1]),
    row(0x04, "Delete I/O Completion Queue", [P, P], [0, 0]),
    row(0x05, "Create I/O Completion Queue", [P, P], [0, 0]),
    row(0x06, "Identify", [M, M], [1, 1]),
    row(0x08, "Abort", [M, O], [1, 1]),
    row(0x09, "Set Features", [M, O], [1, 1]),
    row(0x0a, "Get Features", [M, O], [1, 1]),
    row(0x0c, "Asynchronous Event Request", [M, O], [1, 1]),
    row(0x0d, "Namespace Management", [O, P], [0, 0]),
    row(0x10, "Firmware Commit", [O, P], [0, 0]),
    row(0x11, "Firmware Image Download", [O, P], [0, 0]),
    row(0x14, "Device Self-test", [O, P], [0, 0]),
    row(0x15, "Namespace Attachment", [O, P], [0, 0]),
    row(0x18, "Keep Alive", [M, O], [1, 1]),
    row(0x19, "Directive Send", [O, P], [0, 0]),
    row(0x1a, "Directive Receive", [O, P], [0, 0]),
    row(0x1c, "Virtualization Management", [P, P], [0, 0]),
    row(0x1d, "NVMe-MI Send", [O, P], [0, 0]),
    row(0x1e, "NVMe-MI Receive", [O, P], [0, 0]),
    row(0x20, "Capacity Management", [O, P], [0, 0]),
    row(0x24, "Lockdown", [O, P], [0, 0]),
    row(0x7c, "Doorbell Buffer Config", [P, P], [0, 0]),
    row(0x80, "Format NVM", [O, P], [0, 0]),
    row(0x81, "Security Send", [O, P], [0, 0]),
    row(0x82, "Security Receive", [O, P], [0, 0]),
    row(0x84, "Sanitize", [O, P], [0, 0]),
    row(0x86, "Get LBA Status", [O, P], [0, 0]),
];

/// Commands of I/O queues by opcode.
pub(crate) const NVM: &[Row] = &[
    row(0x00, "Flush", [M, P], [1, 0]),
    row(0x01, "Write", [M, P], [1, 0]),
    row(0x02, "Read", [M, P], [1, 0]),
    row(0x04, "Write Uncorrectable", [O, P], [0, 0]),
    row(0x05, "Compare", [O, P], [1, 0]),
    row(0x08, "Write Zeroes", [O, P], [1, 0]),
    row(0x09, "Dataset Management", [O, P], [1, 0]),
    row(0x0c, "Verify", [O, P], [1, 0]),
    row(0x0d, "Reservation Register", [O, P], [1, 0]),
    row(0x0e, "Reservation Report", [O, P], [1, 0]),
    row(0x11, "Reservation Acquire", [O, P], [1, 0]),
    row(0x15, "Reservation Release", [O, P], [1, 0]),
    row(0x19, "Copy", [O, P], [0, 0]),
];

/// Log pages by identifier.
pub(crate) const LOGS: &[Row] = &[
    row(0x00, "Supported Log Pages", [M, M], [1, 1]),
    row(0x01, "Error Information", [M, O], [1, 0]),
    row(0x02, "SMART / Health Information", [M, P], [1, 0]),
    row(0x03, "Firmware Slot Information", [M, P], [1, 0]),
    row(0x04, "Changed Namespace List", [O, P], [1, 0]),
    row(0x05, "Commands Supported and Effects", [M, O], [1, 0]),
    row(0x06, "Device Self-test", [O, P], [0, 0]),
    row(0x07, "Telemetry Host-Initiated", [O, O], [0, 0]),
    row(0x08, "Telemetry Controller-Initiated", [O, O], [0, 0]),
    row(0x0c, "Asymmetric Namespace Access", [O, P], [1, 0]),
    row(0x0d, "Persistent Event Log", [O, O], [0, 0]),
    row(0x12, "Feature Identifiers Supported and Effects", [M, O], [1, 0]),
    row(0x13, "NVMe-MI Commands Supported and Effects", [O, O], [1, 0]),
    row(0x14, "Command and Feature Lockdown", [O, P], [0, 0]),
    row(0x70, "Discovery", [P, M], [0, 1]),
    row(0x80, "Reservation Notification", [O, P], [1, 0]),
    row(0x81, "Sanitize Status", [O, P], [0, 0]),
];

/// Features by identifier. Interrupts are the memory-based transport's.
pub(crate) const FEATURES: &[Row] = &[
    row(0x01, "Arbitration", [M, P], [1, 0]),
    row(0x02, "Power Management", [M, P], [1, 0]),
    row(0x03, "LBA Range Type", [O, P], [0, 0]),
    row(0x04, "Temperature Threshold", [M, P], [1, 0]),
    row(0x05, "Error Recovery", [M, P], [1, 0]),
    row(0x06, "Volatile Write Cache", [O, P], [1, 0]),
    row(0x07, "Number of Queues", [M, P], [1, 0]),
    row(0x08, "Interrupt Coalescing", [P, P], [0, 0]),
    row(0x09, "Interrupt Vector Configuration", [P, P], [0, 0]),
    row(0x0a, "Write Atomicity Normal", [M, P], [1, 0]),
    row(0x0b, "Asynchronous Event Configuration", [M, O], [1, 1]),
    row(0x0f, "Keep Alive Timer", [M, O], [1, 1]),
    row(0x16, "Host Behavior Support", [O, P], [0, 0]),
    row(0x81, "Host Identifier", [O, O], [1, 1]),
    row(0x82, "Reservation Notification Mask", [O, P], [1, 0]),
    row(0x83, "Reservation Persistence", [O, P], [1, 0]),
    row(0x84, "Namespace Write Protection", [O, P], [0, 0]),
];

/// Identify structures by CNS.
pub(crate) const STRUCTURES: &[Row] = &[
    row(0x00, "Namespace", [M, P], [1, 0]),
    row(0x01, "Controller", [M, M], [1, 1]),
    row(0x02, "Active namespaces", [M, P], [1, 0]),
    row(0x03, "Namespace identification descriptors", [M, P], [1, 0]),
    row(0x04, "NVM set list", [O, P], [0, 0]),
    row(0x05, "Namespace of the command set", [M, P], [1, 0]),
    row(0x06, "Controller of the command set", [M, P], [1, 0]),
    row(0x07, "Active namespaces of the command set", [M, P], [1, 0]),
    row(0x08, "Namespace, whatever its command set", [M, P], [1, 0]),
    row(0x10, "Allocated namespaces", [O, P], [0, 0]),
    row(0x12, "Controllers of a namespace", [O, P], [0, 0]),
    row(0x13, "Controllers of the subsystem", [O, P], [0, 0]),
    row(0x1c, "Command sets", [O, P], [0, 0]),
];

/// Properties by offset.
pub(crate) const PROPERTIES: &[Row] = &[
    row(0x00, "CAP", [M, M], [1, 1]),
    row(0x08, "VS", [M, M], [1, 1]),
    row(0x14, "CC", [M, M], [1, 1]),
    row(0x1c, "CSTS", [M, M], [1, 1]),
    row(0x20, "NSSR", [O, O], [0, 0]),
    row(0x68, "CRTO", [M, M], [1, 1]),
];

/// What a field must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holds {
    /// A number, little-endian; of reserved and unused fields zero.
    Number(u64),
    /// Text, filled with spaces.
    Text(&'static str),
    /// Text that ends with zeroes: the subsystem's name.
    Name,
    /// This controller's id.
    Controller,
    /// Something that is not all zeroes, and the same in every look.
    Identity,
}

/// A field: its first byte, its length, its name, and what it holds in each kind of structure.
pub(crate) type Field = (usize, usize, &'static str, [Holds; 2]);

const fn both(at: usize, bytes: usize, name: &'static str, number: u64) -> Field {
    (at, bytes, name, [Holds::Number(number); 2])
}

const fn each(at: usize, bytes: usize, name: &'static str, io: u64, discovery: u64) -> Field {
    (at, bytes, name, [Holds::Number(io), Holds::Number(discovery)])
}

const fn text(at: usize, bytes: usize, name: &'static str, text: &'static str) -> Field {
    (at, bytes, name, [Holds::Text(text); 2])
}

/// Identify Controller (base 2.0, figure 275), of an I/O controller and of a discovery controller.
pub(crate) const CONTROLLER: &[Field] = &[
    both(0, 2, "VID", 0),
    both(2, 2, "SSVID", 0),
    (4, 20, "SN", [Holds::Identity; 2]),
    text(24, 40, "MN", "Twinlog"),
    text(64, 8, "FR", env!("CARGO_PKG_VERSION")),
    both(72, 1, "RAB", 0),
    both(73, 3, "IEEE", 0),
    each(76, 1, "CMIC: several controllers, asymmetric access", 0b1010, 0),
    both(77, 1, "MDTS: 1 MiB", 8),
    (78, 2, "CNTLID", [Holds::Controller; 2]),
    both(80, 4, "VER: 2.0", 0x0002_0000),
    both(84, 4, "RTD3R", 0),
    both(88, 4, "RTD3E", 0),
    each(92, 4, "OAES: namespaces, access; the discovery log", 0x900, 0x8000_0000),
    both(96, 4, "CTRATT: host identifiers of 128 bits", 1),
    both(100, 2, "RRLS", 0),
    both(102, 9, "reserved", 0),
    each(111, 1, "CNTRLTYPE", 1, 2),
    both(112, 16, "FGUID", 0),
    both(128, 6, "CRDT1 to CRDT3", 0),
    both(134, 119, "reserved", 0),
    both(253, 3, "NVMSR, VWCI, MEC", 0),
    both(256, 2, "OACS", 0),
    both(258, 1, "ACL: one", 0),
    both(259, 1, "AERL: four", 3),
    each(260, 1, "FRMW: one slot, which cannot be written", 3, 0),
    each(261, 1, "LPA: effects, parts of pages, all lists of what is supported", 0b10_0110, 0b100),
    each(262, 1, "ELPE: 64", 63, 0),
    both(263, 1, "NPSS: one", 0),
    both(264, 2, "AVSCC, APSTA", 0),
    both(266, 4, "WCTEMP, CCTEMP", 0),
    both(270, 2, "MTFA", 0),
    both(272, 8, "HMPRE, HMMIN", 0),
    both(280, 32, "TNVMCAP, UNVMCAP", 0),
    both(312, 4, "RPMBS", 0),
    both(316, 3, "EDSTT, DSTO", 0),
    both(319, 1, "FWUG", 0),
    both(320, 2, "KAS: 1 s", 10),
    both(322, 6, "HCTMA, MNTMT, MXTMT", 0),
    both(328, 4, "SANICAP", 0),
    both(332, 6, "HMMINDS, HMMAXD", 0),
    both(338, 4, "NSETIDMAX, ENDGIDMAX", 0),
    each(342, 1, "ANATT: 10 s", 10, 0),
    each(343, 1, "ANACAP: optimized, non-optimized, inaccessible; a namespace stays in its group", 0x47, 0),
    each(344, 4, "ANAGRPMAX", 2, 0),
    each(348, 4, "NANAGRPID", 2, 0),
    both(352, 4, "PELS", 0),
    both(356, 2, "domain", 0),
    both(358, 10, "reserved", 0),
    both(368, 16, "MEGCAP", 0),
    both(384, 128, "reserved", 0),
    each(512, 1, "SQES: 64 bytes", 0x66, 0),
    each(513, 1, "CQES: 16 bytes", 0x44, 0),
    both(514, 2, "MAXCMD", 128),
    each(516, 4, "NN", 0xffff_fffd, 0),
    each(520, 2, "ONCS: compare, dataset management, write zeroes, reservations, verify", 0xad, 0),
    each(522, 2, "FUSES: compare and write", 1, 0),
    both(524, 1, "FNA", 0),
    each(525, 1, "VWC: there is one; flush of one namespace", 0b101, 0),
    both(526, 4, "AWUN, AWUPF", 0),
    both(530, 2, "ICSVSCC, NWPC", 0),
    both(532, 2, "ACWU", 0),
    both(534, 2, "CDFS", 0),
    both(536, 4, "SGLS: any alignment, offsets, transport data blocks", 0x30_0001),
    each(540, 4, "MNAN", 1024, 0),
    both(544, 20, "MAXDNA, MAXCNA", 0),
    both(564, 204, "reserved", 0),
    (768, 256, "SUBNQN", [Holds::Name; 2]),
    both(1024, 768, "reserved", 0),
    each(1792, 4, "IOCCSZ: 16 KiB in the capsule", (64 + 16384) / 16, 0),
    each(1796, 4, "IORCSZ", 1, 0),
    both(1800, 2, "ICDOFF", 0),
    both(1802, 1, "FCATT: the dynamic controller model", 0),
    each(1803, 1, "MSDBD", 1, 0),
    both(1804, 2, "OFCS", 0),
    both(1806, 1, "DCTYPE: not said", 0),
    both(1807, 241, "reserved", 0),
    both(2048, 1024, "power states", 0),
    both(3072, 1024, "vendor specific", 0),
];

/// Identify Namespace (NVM command set 1.0, figure 97), of a volume of 8 MiB and of one that does not exist.
pub(crate) const NAMESPACE: &[Field] = &[
    each(0, 8, "NSZE", 2048, 0),
    each(8, 8, "NCAP", 2048, 0),
    each(16, 8, "NUSE", 2048, 0),
    each(24, 1, "NSFEAT: thin, names that are never used again", 0b1001, 0),
    each(25, 1, "NLBAF: two", 1, 0),
    both(26, 1, "FLBAS", 0),
    both(27, 3, "MC, DPC, DPS", 0),
    each(30, 1, "NMIC: shared", 1, 0),
    each(31, 1, "RESCAP: all types, persistence, IEKEY as since 1.3", 0xff, 0),
    both(32, 1, "FPI", 0),
    each(33, 1, "DLFEAT: zeroes, by Write Zeroes as well", 0b1001, 0),
    both(34, 12, "NAWUN, NAWUPF, NACWU, NABSN, NABO, NABSPF", 0),
    both(46, 2, "NOIOB", 0),
    both(48, 16, "NVMCAP", 0),
    both(64, 28, "NPWG, NPWA, NPDG, NPDA, NOWS, MSSRL, MCL, MSRC", 0),
    each(92, 4, "ANAGRPID", 1, 0),
    both(96, 3, "reserved", 0),
    both(99, 1, "NSATTR", 0),
    both(100, 4, "NVMSETID, ENDGID", 0),
    (104, 16, "NGUID", [Holds::Identity, Holds::Number(0)]),
    both(120, 8, "EUI64", 0),
    each(128, 4, "LBAF0: 4 KiB", 12 << 16, 0),
    each(132, 4, "LBAF1: 512 bytes, good performance (LBAF0 has the best)", 1 << 24 | 9 << 16, 0),
    both(136, 248, "LBAF2 to LBAF63", 0),
    both(384, 3712, "vendor specific", 0),
];

/// SMART / Health Information (base 2.0, figure 207) of a node that has just started.
pub(crate) const HEALTH: &[Field] = &[
    both(0, 1, "critical warning", 0),
    both(1, 2, "composite temperature: not known", 0),
    both(3, 1, "available spare, %", 100),
    both(4, 1, "available spare threshold, %", 10),
    both(5, 1, "percentage used", 0),
    both(6, 1, "endurance group summary", 0),
    both(7, 25, "reserved", 0),
    both(32, 16, "data units read", 0),
    both(48, 16, "data units written", 0),
    both(64, 16, "host read commands", 0),
    both(80, 16, "host write commands", 0),
    both(96, 16, "controller busy time", 0),
    both(112, 16, "power cycles", 0),
    both(128, 16, "power on hours", 0),
    both(144, 16, "unsafe shutdowns", 0),
    both(160, 16, "media and data integrity errors", 0),
    both(176, 16, "error log entries", 0),
    both(192, 8, "minutes at warning and critical temperature", 0),
    both(200, 16, "temperature sensors", 0),
    both(216, 16, "thermal management", 0),
    both(232, 280, "reserved", 0),
];

/// Firmware Slot Information (base 2.0, figure 208).
pub(crate) const FIRMWARE: &[Field] = &[
    both(0, 1, "AFI: slot 1", 1),
    both(1, 7, "reserved", 0),
    text(8, 8, "FRS1", env!("CARGO_PKG_VERSION")),
    both(16, 48, "FRS2 to FRS7", 0),
    both(64, 448, "reserved", 0),
];

/// A discovery log entry (base 2.0, figure 264): of the subsystem with the volumes, of the discovery service itself.
pub(crate) const ENTRY: &[Field] = &[
    both(0, 1, "TRTYPE: TCP", 3),
    both(1, 1, "ADRFAM: IPv4", 1),
    each(2, 1, "SUBTYPE", 2, 3),
    both(3, 1, "TREQ: submission queues without flow control", 4),
    both(4, 2, "PORTID", 1),
    both(6, 2, "CNTLID: the dynamic controller model", 0xffff),
    both(8, 2, "ASQSZ", 128),
    each(10, 2, "EFLAGS: connections may stay", 0, 2),
    both(12, 20, "reserved", 0),
    text(32, 32, "TRSVCID", "4420"),
    both(64, 192, "reserved", 0),
    (256, 256, "SUBNQN", [Holds::Name; 2]),
    text(512, 256, "TRADDR", "127.0.0.1"),
    both(768, 256, "TSAS: no TLS", 0),
];
