//! The NVMe driver beside the kernel's, in one guest: reads of a second. Not a test: what is emulated has the figures of an emulation.

use super::{Lab, nvme};
use crate::initramfs::Contents;
use anyhow::{Context as _, Result};
use std::{collections::BTreeMap, time::Duration};

const PAYLOAD: &str = include_str!("../../guest/nvme-speed.sh");
/// For one figure, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(300);
const SECONDS: u32 = 2;
/// Fewer have no median worth the name.
const ROUNDS_MIN: u32 = 5;
const DEPTHS: [&str; 2] = ["1", "32"];
const WHO: [(&str, &str); 2] =
    [("driver", "Twinlog's driver through VFIO"), ("kernel", "the kernel's driver, fio with io_uring")];

pub(super) fn run(lab: &Lab) -> Result<()> {
    let rounds = lab.rounds.max(ROUNDS_MIN);
    let contents = Contents {
        payload: PAYLOAD,
        modules: vec!["nvme", "vfio_pci", "vfio_iommu_type1"],
        programs: vec!["fio"],
        binaries: vec![lab.twinlog.clone(), lab.own.clone()],
        files: [("lab/settings".to_owned(), format!("rounds={rounds}\nseconds={SECONDS}\n").into_bytes())].into(),
    };
    let mut machine = lab.machine("guest", &contents)?;
    // One processor: the other of a small machine is QEMU's, where the controller is.
    (machine.memory_mib, machine.has_iommu) = (1024, true);
    // Else the kernel's driver would pay for its mappings, and everybody for reading the time, far more than outside an emulation.
    machine.kernel_arguments = "iommu=pt tsc=reliable clocksource=tsc".to_owned();
    for index in 0..2 {
        machine.devices.extend(nvme::controller(lab, index, None)?);
    }
    let mut guest = machine.boot()?;
    let mut figures: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for _ in 0..usize::try_from(rounds)? * DEPTHS.len() * WHO.len() {
        let figure = guest.event("figure", PATIENCE)?;
        let words: Vec<&str> = figure.split(' ').collect();
        let [who, depth, reads] = words[..] else { anyhow::bail!("no figure: {figure:?}\n{}", guest.logs()) };
        let reads = reads.parse().with_context(|| format!("no figure: {figure:?}\n{}", guest.logs()))?;
        figures.entry((who.to_owned(), depth.to_owned())).or_default().push(reads);
    }
    guest.succeed(PATIENCE)?;
    guest.no_iommu_fault()?;
    if cfg!(debug_assertions) {
        println!("  not optimized: these figures mean nothing; cargo run --release");
    }
    for depth in DEPTHS {
        println!(
            "\n| 4 KiB random read, depth {depth}, {rounds} rounds | reads of a second: median (min–max) | Twinlog / it, by round |"
        );
        println!("|---|---|---|");
        let of = |who: &str| figures.get(&(who.to_owned(), depth.to_owned())).context("every figure was sent");
        let own = of(WHO[0].0)?;
        for (who, name) in WHO {
            let reads = of(who)?;
            let ratios = own.iter().zip(reads).map(|(own, other)| own / other).collect::<Vec<_>>();
            let ratio = if who == WHO[0].0 { String::new() } else { spread(&ratios, 2) };
            println!("| {name} | {} | {ratio} |", spread(reads, 0));
        }
    }
    println!();
    Ok(())
}

/// Median, least and greatest.
fn spread(values: &[f64], digits: usize) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, median, last) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
    format!("{median:.digits$} ({first:.digits$}–{last:.digits$})")
}
