//! A namespace as this driver may use it: what identify returned, checked.

use crate::{
    ReservationKind, Unsupported,
    spec::{IdentifyController, IdentifyNamespace, attribute, once},
};
use std::time::Duration;
use twinlog_device::BLOCK_BYTES;

/// Logarithm of the bytes of a block.
const BLOCK_SHIFT: u32 = BLOCK_BYTES.trailing_zeros();

/// Pages that a controller without a limit may transfer at once, as a logarithm; every use is bounded further.
const UNLIMITED_SHIFT: u8 = 20;

/// Models whose controllers answer a write with FUA before it is durable. QEMU's performs it like any other, whatever lies below it
/// (`hw/nvme/ctrl.c` of 7.2 does not look at the bit); its flush does what it must.
const FUA_IGNORED: [&str; 1] = ["QEMU NVMe Ctrl"];

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// Serial number.
    pub serial: String,
    /// Model.
    pub model: String,
    /// Firmware.
    pub firmware: String,
    /// Identifier of the controller in its subsystem.
    pub controller_id: u16,
    /// Most blocks of one transfer, at least one.
    pub transfer_blocks_max: u32,
    /// Whether completed writes may be volatile.
    pub has_write_cache: bool,
    /// Whether FUA does not make a write durable: the model is known for that, or the caller says so. A write and then a flush does.
    pub ignores_fua: bool,
    /// Whether it can deallocate.
    pub can_deallocate: bool,
    /// Whether it can write zeroes.
    pub can_write_zeroes: bool,
    /// Whether it knows reservations, and hosts by identifiers of 128 bits.
    pub has_reservations: bool,
    /// Whether a command may name its data by a scatter gather list.
    pub has_sgls: bool,
    /// Logical blocks that one command writes atomically: in normal operation, over a power failure. With another firmware they may be fewer.
    pub atomic_lbas: [u32; 2],
    /// Aborts at the same time.
    pub(crate) aborts_max: u16,
    /// Asynchronous event requests at the same time.
    pub(crate) events_max: u16,
    /// Notices that it can give (OAES).
    pub(crate) notices: u32,
    /// How long a shutdown may take, microseconds; zero for not said.
    pub(crate) shutdown_us: u32,
    /// How long the activation of a firmware may take; zero for not said.
    pub(crate) activation: Duration,
}

/// The unit of MTFA.
const ACTIVATION_UNIT: Duration = Duration::from_millis(100);

impl ControllerIdentity {
    /// # Errors
    /// When its queues have entries of other sizes.
    pub(crate) fn verify(raw: &IdentifyController) -> Result<Self, Unsupported> {
        // Entries of 64 and 16 bytes, as logarithms (base 3.1.3.5: IOSQES 6, IOCQES 4).
        let holds = |shifts: u8, wanted: u8| (shifts & 0xF..=shifts >> 4).contains(&wanted);
        if !holds(raw.entry_shifts[0], 6) || !holds(raw.entry_shifts[1], 4) {
            return Err(Unsupported::QueueSize);
        }
        let shift = match raw.transfer_shift_max {
            0 => UNLIMITED_SHIFT,
            shift => shift.min(UNLIMITED_SHIFT),
        };
        let commands = raw.commands.get();
        let model = text(&raw.model);
        Ok(Self {
            serial: text(&raw.serial),
            ignores_fua: FUA_IGNORED.contains(&model.as_str()),
            model,
            firmware: text(&raw.firmware),
            controller_id: raw.controller_id.get(),
            transfer_blocks_max: 1 << shift,
            has_write_cache: raw.write_cache & 1 == 1,
            can_deallocate: commands & once::DATASET != 0,
            can_write_zeroes: commands & once::WRITE_ZEROES != 0,
            has_reservations: commands & once::RESERVATIONS != 0 && raw.attributes.get() & attribute::WIDE_HOST_ID != 0,
            // 1: addresses of any alignment, 2: of four bytes; 3 means nothing.
            has_sgls: matches!(raw.sgls.get() & 3, 1 | 2),
            atomic_lbas: [raw.atomic_normal, raw.atomic_power_fail].map(|lbas| u32::from(lbas.get()) + 1),
            aborts_max: u16::from(raw.aborts_max) + 1,
            events_max: u16::from(raw.events_max) + 1,
            notices: raw.events.get(),
            shutdown_us: raw.shutdown_us.get(),
            activation: ACTIVATION_UNIT * u32::from(raw.activation_units.get()),
        })
    }

    /// Whether a durable write is a write and then a flush.
    pub(crate) fn flushes_writes(&self) -> bool {
        self.has_write_cache && self.ignores_fua
    }

    /// What is known of the controller once it was identified again, perhaps with another firmware: one may have been activated meanwhile. What open disks
    /// were told stays as they know it, also where it can do more now: the next firmware may be the former one.
    ///
    /// None if it is another controller, or does not keep what disks were told: a write cache that nobody flushes loses what was answered.
    pub(crate) fn renewed(&self, found: Self) -> Option<Self> {
        let is_same =
            (&self.serial, &self.model, self.controller_id) == (&found.serial, &found.model, found.controller_id);
        let Self { transfer_blocks_max, has_write_cache, has_sgls, .. } = *self;
        let Self { can_deallocate, can_write_zeroes, has_reservations, .. } = *self;
        let is_kept = found.transfer_blocks_max >= transfer_blocks_max
            && (has_write_cache || !found.has_write_cache)
            && (!has_sgls || found.has_sgls)
            && (!can_deallocate || found.can_deallocate)
            && (!can_write_zeroes || found.can_write_zeroes)
            && (!has_reservations || found.has_reservations);
        (is_same && is_kept).then_some(Self {
            transfer_blocks_max,
            has_write_cache,
            has_sgls,
            can_deallocate,
            can_write_zeroes,
            has_reservations,
            ..found
        })
    }
}

/// The printable part of an ASCII field.
fn text(bytes: &[u8]) -> String {
    let printable = bytes.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { ' ' });
    printable.collect::<String>().trim().to_owned()
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its number in the controller.
    pub id: u32,
    /// Whole blocks of 4 KiB.
    pub block_count: u64,
    /// Logarithm of the logical blocks of one block: 3 for a format of 512 bytes, 0 for one of 4096.
    pub lba_shift: u32,
    /// Globally unique identifier; zero for none.
    pub guid: [u8; 16],
    /// Extended unique identifier; zero for none.
    pub eui64: [u8; 8],
    /// Whether several controllers may have it.
    pub is_shared: bool,
    /// What it knows of reservations, as in RESCAP; zero for nothing, and where the controller does not know them.
    pub reservations: u8,
    /// Logical blocks that one command writes atomically: in normal operation, over a power failure. With another firmware they may be fewer.
    pub atomic_lbas: [u32; 2],
}

impl Namespace {
    /// # Errors
    /// When its format or size is none that this driver can use.
    pub(crate) fn verify(
        id: u32,
        raw: &IdentifyNamespace,
        controller: &ControllerIdentity,
    ) -> Result<Self, Unsupported> {
        let index = usize::from(raw.format & 0xF) | usize::from(raw.format >> 5 & 3) << 4;
        if index > usize::from(raw.format_max) {
            return Err(Unsupported::Format);
        }
        let format = raw.formats.get(index).ok_or(Unsupported::Format)?;
        if format.metadata_bytes.get() != 0 {
            return Err(Unsupported::Metadata);
        }
        let data_shift = u32::from(format.data_shift);
        if !(9..=BLOCK_SHIFT).contains(&data_shift) {
            return Err(Unsupported::Format);
        }
        let lba_shift = BLOCK_SHIFT - data_shift;
        let block_count = raw.size.get() >> lba_shift;
        if block_count == 0 || block_count.checked_mul(BLOCK_BYTES as u64).is_none() {
            return Err(Unsupported::Size);
        }
        let own = raw.features & 2 != 0;
        let atomic = [raw.atomic_normal, raw.atomic_power_fail].map(|lbas| u32::from(lbas.get()) + 1);
        Ok(Self {
            id,
            block_count,
            lba_shift,
            guid: raw.guid,
            eui64: raw.eui64,
            is_shared: raw.sharing & 1 == 1,
            reservations: if controller.has_reservations { raw.reservations } else { 0 },
            atomic_lbas: if own { atomic } else { controller.atomic_lbas },
        })
    }

    /// Whether it is the same namespace. Larger atomic units may differ, on which nobody depends ([`Self::sector_bytes`]): a new firmware may have others.
    pub(crate) fn is_same(&self, found: &Self) -> bool {
        *self == Self { atomic_lbas: self.atomic_lbas, ..found.clone() }
    }

    /// Whether a reservation of `kind` can be held on it.
    #[must_use]
    pub fn can_reserve(&self, kind: ReservationKind) -> bool {
        self.reservations & kind.capability() != 0
    }

    /// Whether registrations can be made to survive a loss of power (RESCAP bit 0).
    #[must_use]
    pub fn can_persist(&self) -> bool {
        self.reservations & 1 != 0
    }

    /// Bytes of a logical block: what a power failure leaves old or new, whatever the size of the command. Larger atomic units hold only
    /// for commands that are no larger than they.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        1 << (BLOCK_SHIFT - self.lba_shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{
        FromZeros,
        little_endian::{U16, U64},
    };

    fn controller() -> IdentifyController {
        let mut raw = IdentifyController::new_zeroed();
        raw.entry_shifts = [0x66, 0x44];
        raw
    }

    fn namespace(format: u8, data_shift: u8, size: u64) -> IdentifyNamespace {
        let mut raw = IdentifyNamespace::new_zeroed();
        (raw.format, raw.format_max) = (format, format & 0xF);
        raw.formats[usize::from(format & 0xF)].data_shift = data_shift;
        raw.size = U64::new(size);
        raw
    }

    fn verify(raw: &IdentifyNamespace) -> Result<Namespace, Unsupported> {
        Namespace::verify(1, raw, &ControllerIdentity::verify(&controller()).expect("entries of the usual sizes"))
    }

    #[test]
    fn transfers_have_a_limit_whatever_the_controller_says() {
        for (shift, blocks) in [(0, 1 << 20), (1, 2), (5, 32), (20, 1 << 20), (255, 1 << 20)] {
            let mut raw = controller();
            raw.transfer_shift_max = shift;
            let identity = ControllerIdentity::verify(&raw).expect("a usual controller");
            assert_eq!(identity.transfer_blocks_max, blocks);
        }
    }

    #[test]
    fn entries_have_the_usual_sizes() {
        for (shifts, works) in
            [([0x66, 0x44], true), ([0x74, 0x43], true), ([0x55, 0x44], false), ([0, 0], false), ([0x66, 0x55], false)]
        {
            let mut raw = controller();
            raw.entry_shifts = shifts;
            assert_eq!(ControllerIdentity::verify(&raw).is_ok(), works, "{shifts:x?}");
        }
    }

    #[test]
    fn formats_of_512_to_4096_bytes_are_used() {
        let plain = verify(&namespace(0, 9, 80)).expect("512 bytes");
        assert_eq!((plain.block_count, plain.lba_shift, plain.sector_bytes()), (10, 3, 512));
        let large = verify(&namespace(1, 12, 80)).expect("4096 bytes");
        assert_eq!((large.block_count, large.lba_shift, large.sector_bytes()), (80, 0, 4096));
        for shift in [0, 8, 13, 64, 255] {
            assert_eq!(verify(&namespace(0, shift, 80)), Err(Unsupported::Format));
        }
    }

    #[test]
    fn what_identify_cannot_mean_is_refused() {
        assert_eq!(verify(&namespace(0, 9, 0)), Err(Unsupported::Size));
        assert_eq!(verify(&namespace(0, 9, 7)), Err(Unsupported::Size), "less than a block");
        assert_eq!(verify(&namespace(0, 12, u64::MAX)), Err(Unsupported::Size));
        let mut beyond = namespace(0, 9, 80);
        beyond.format = 1;
        assert_eq!(verify(&beyond), Err(Unsupported::Format), "a format that is not listed");
        beyond.format = 0x6F;
        beyond.format_max = 255;
        assert_eq!(verify(&beyond), Err(Unsupported::Format));
        let mut metadata = namespace(0, 9, 80);
        metadata.formats[0].metadata_bytes = 8.into();
        assert_eq!(verify(&metadata), Err(Unsupported::Metadata));
    }

    #[test]
    fn another_firmware_keeps_what_disks_were_told() {
        let mut raw = controller();
        (raw.transfer_shift_max, raw.sgls) = (5, 1.into());
        raw.commands = (once::DATASET | once::WRITE_ZEROES | once::RESERVATIONS).into();
        raw.attributes = attribute::WIDE_HOST_ID.into();
        let known = ControllerIdentity::verify(&raw).expect("a usual controller");
        let renewed = |change: &dyn Fn(&mut IdentifyController)| {
            let mut raw = raw.clone();
            change(&mut raw);
            known.renewed(ControllerIdentity::verify(&raw).expect("a usual controller"))
        };
        assert_eq!(renewed(&|_| ()), Some(known.clone()));
        let other = renewed(&|raw| {
            (raw.firmware, raw.aborts_max, raw.events_max) = (*b"2.0     ", 9, 9);
            (raw.events, raw.shutdown_us, raw.activation_units) = (5.into(), 7.into(), 3.into());
            (raw.atomic_normal, raw.atomic_power_fail) = (3.into(), 4.into());
            raw.transfer_shift_max = 6;
        });
        let other = other.expect("the same controller");
        assert_eq!((other.firmware.as_str(), other.transfer_blocks_max), ("2.0", 32));
        assert_eq!((other.aborts_max, other.events_max, other.notices, other.shutdown_us), (10, 10, 5, 7));
        assert_eq!((other.activation, other.atomic_lbas), (ACTIVATION_UNIT * 3, [4, 5]));
        let worse: [&dyn Fn(&mut IdentifyController); 10] = [
            &|raw| raw.serial[0] = b'x',
            &|raw| raw.model[0] = b'x',
            &|raw| raw.controller_id = 9.into(),
            &|raw| raw.transfer_shift_max = 4,
            &|raw| raw.write_cache = 1,
            &|raw| raw.sgls = 0.into(),
            &|raw| raw.commands = (once::WRITE_ZEROES | once::RESERVATIONS).into(),
            &|raw| raw.commands = (once::DATASET | once::RESERVATIONS).into(),
            &|raw| raw.commands = (once::DATASET | once::WRITE_ZEROES).into(),
            &|raw| raw.attributes = 0.into(),
        ];
        for (index, change) in worse.into_iter().enumerate() {
            assert_eq!(renewed(change), None, "change {index}");
        }
    }

    #[test]
    fn a_namespace_may_have_atomic_limits_of_its_own() {
        let mut raw = namespace(0, 9, 80);
        raw.atomic_power_fail = U16::new(7);
        assert_eq!(verify(&raw).expect("usable").atomic_lbas, [1, 1], "the controller's");
        raw.features = 2;
        assert_eq!(verify(&raw).expect("usable").atomic_lbas, [1, 8]);
    }
}
