//! The guide for NVMe drives as it is written: its commands, in its order, in three guests: two machines with drives that both reach, and the witness'.
//!
//! Serials and addresses of the guests are those of the page, so nothing of it is replaced. What a guest has not, or cannot do, it has a stand-in for: see the
//! payload. After some headings the payload looks whether that has come of it which the page says, and before the last one whether it refuses what it must.

use super::{
    Lab,
    nvme_pair::{network, shared},
    station::PATIENCE,
};
use crate::{
    initramfs::Contents,
    machine::{Guest, Machine},
    node::free_port,
    page::{self, Block},
};
use anyhow::{Context as _, Result, ensure};
use std::fs::File;

const PAGE: &str = include_str!("../../../../docs/operating/bare-metal.md");
const SECTION: &str = "From a fresh Debian to a serving pair";
const NODE_UNIT: &str = include_str!("../../../../docs/operating/twinlog@.service");
const WITNESS_UNIT: &str = include_str!("../../../../docs/operating/twinlog-witness.service");
const PAYLOAD: &str = include_str!("../../guest/bare-metal.sh");
const SYSTEMCTL: &str = include_str!("../../guest/systemctl.sh");

const MACHINES: [&str; 3] = ["first", "second", "third"];
/// The serials of the page. Each drive has a port in the first and one in the second machine.
const DRIVES: [&str; 2] = ["S64GNE0R000002", "S64GNE0R000003"];
const DRIVE_BYTES: u64 = 256 << 20;
/// What `twinlog doctor` wants to be free, and more. It is sparse.
const OWN_BYTES: u64 = 8 << 30;
const MODULES: [&str; 3] = ["nvme", "crc32c_generic", "ext4"];
/// What the page has people load.
const MODULES_LATER: [&str; 2] = ["vfio_pci", "vfio_iommu_type1"];
/// The headings below which the page has commands, each with what the payload looks at, before or after them, and on how many of the machines.
const HEADINGS: [(&str, Look); 10] = [
    ("Install", Look::None),
    ("Switch the IOMMU on", Look::After("has-iommu", 2)),
    ("Load VFIO", Look::After("has-vfio", 2)),
    ("Take the drives from the kernel", Look::After("has-drives", 2)),
    ("Configure", Look::After("is-private", 3)),
    ("Make log, mirror and pool", Look::After("is-made", 2)),
    ("Serve", Look::After("serves", 2)),
    ("Try it", Look::After("is-in-step", 2)),
    ("Give a drive back", Look::Before("keeps-drives", 1)),
    ("Serve again", Look::After("serves", 2)),
];

#[derive(Clone, Copy)]
enum Look {
    None,
    Before(&'static str, usize),
    After(&'static str, usize),
}

struct Site<'a> {
    lab: &'a Lab,
    blocks: Vec<Block<'static>>,
    network: u16,
    guests: Vec<Guest>,
}

pub(super) fn guide(lab: &Lab) -> Result<()> {
    let blocks = page::blocks(PAGE, SECTION)?;
    let mut headings: Vec<&str> = blocks.iter().map(|block| block.heading).collect();
    headings.dedup();
    let known = HEADINGS.map(|(heading, _)| heading);
    ensure!(headings == known, "the guide has the headings {headings:?}, the scenario {known:?}");
    for drive in DRIVES {
        make(lab, drive, DRIVE_BYTES)?;
    }
    for machine in MACHINES {
        make(lab, machine, OWN_BYTES)?;
    }
    let mut site = Site { lab, blocks, network: free_port()?, guests: Vec::new() };
    for number in 0..MACHINES.len() {
        let guest = site.machine(number, None)?.boot()?;
        site.guests.push(guest);
    }
    for guest in &mut site.guests {
        guest.event("ready", PATIENCE)?;
    }
    site.look("is-bare", 2)?;
    for (heading, look) in HEADINGS {
        lab.say(heading);
        site.perform(heading, look).with_context(|| heading)?;
    }
    for guest in &mut site.guests {
        guest.tell("end")?;
        guest.succeed(PATIENCE)?;
        guest.no_iommu_fault()?;
    }
    Ok(())
}

fn make(lab: &Lab, name: &str, bytes: u64) -> Result<()> {
    let image = lab.folder.join(format!("{name}.img"));
    File::create(&image)?.set_len(bytes).with_context(|| format!("making {}", image.display()))
}

impl Site<'_> {
    /// What the page has below a heading.
    fn perform(&mut self, heading: &str, look: Look) -> Result<()> {
        if let Look::Before(word, count) = look {
            self.look(word, count)?;
        }
        let all = self.blocks.iter().enumerate();
        let below: Vec<usize> = all.filter(|(_, block)| block.heading == heading).map(|(number, _)| number).collect();
        for number in below {
            let (machines, commands) = (self.blocks[number].machines, self.blocks[number].commands);
            for machine in machines {
                self.guests[*machine].tell(&format!("type {number}"))?;
            }
            let reboots = commands.lines().any(|line| line == "reboot");
            for machine in machines {
                if reboots {
                    self.reboot(*machine)?
                } else {
                    self.guests[*machine].event("typed", PATIENCE).map(drop)?
                }
            }
        }
        if let Look::After(word, count) = look {
            self.look(word, count)?;
        }
        Ok(())
    }

    fn look(&mut self, word: &str, count: usize) -> Result<()> {
        for guest in &mut self.guests[..count] {
            guest.tell(word)?;
        }
        for guest in &mut self.guests[..count] {
            guest.event(word, PATIENCE)?;
        }
        Ok(())
    }

    /// Boots a guest anew with what it wants its kernel to be told.
    fn reboot(&mut self, number: usize) -> Result<()> {
        let arguments = self.guests[number].event("reboot", PATIENCE)?;
        self.guests[number].cut()?;
        self.guests[number] = self.machine(number, Some(&arguments))?.boot()?;
        self.guests[number].event("ready", PATIENCE).map(drop)
    }

    /// A machine whose kernel has been told nothing of an IOMMU, or what the guest wants.
    fn machine(&self, number: usize, arguments: Option<&str>) -> Result<Machine> {
        let (lab, name) = (self.lab, MACHINES[number]);
        let mut files = vec![
            ("lab/settings".to_owned(), format!("name={name}\nnumber={number}\n").into_bytes()),
            ("lab/systemctl".to_owned(), SYSTEMCTL.into()),
            ("source/docs/operating/twinlog@.service".to_owned(), NODE_UNIT.into()),
            ("source/docs/operating/twinlog-witness.service".to_owned(), WITNESS_UNIT.into()),
        ];
        let steps = self.blocks.iter().enumerate();
        files.extend(steps.map(|(step, block)| (format!("lab/steps/{step}"), block.commands.into())));
        let (now, all) =
            (lab.modules.resolve(&MODULES)?, lab.modules.resolve(&[&MODULES[..], &MODULES_LATER].concat())?);
        let later = all.into_iter().filter(|module| !now.contains(module));
        files.extend(later.map(|module| (format!("lab/available/{}.ko", module.name), module.content)));
        let contents = Contents {
            payload: PAYLOAD,
            modules: MODULES.to_vec(),
            programs: vec!["install", "mkfs.ext4", "setpriv", "useradd"],
            binaries: vec![lab.twinlog.clone()],
            files: files.into_iter().collect(),
        };
        let mut machine = lab.machine(&format!("{name}{}", arguments.map_or("", |_| "-again")), &contents)?;
        machine.memory_mib = 768;
        machine.has_iommu = true;
        // Of two words about the IOMMU the kernel takes the last.
        let told = arguments.unwrap_or("intel_iommu=off");
        machine.kernel_arguments = format!("intel_iommu=off {told} {}", machine.kernel_arguments);
        let own = lab.folder.join(format!("{name}.img"));
        machine.devices.extend([
            "-drive".to_owned(),
            format!("file={},if=none,id=own,format=raw", own.display()),
            "-device".to_owned(),
            "virtio-blk-pci,drive=own".to_owned(),
        ]);
        let drives = if number < 2 { &DRIVES[..] } else { &[] };
        for (drive_number, drive) in (1..).zip(drives) {
            machine.devices.extend(["-device".to_owned(), format!("nvme,id={drive},serial={drive}")]);
            machine.devices.extend(shared(&lab.folder, drive, (drive, 1), drive_number));
        }
        machine.devices.extend(network(self.network, number));
        Ok(machine)
    }
}
