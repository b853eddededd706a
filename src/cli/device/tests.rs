//! A machine with controllers as a directory of files, with a kernel that does what is written to them.

use super::{
    bind::{Bound, UserDriver, bind, unbind},
    controller::{self, Controller, Identity, UseKind},
    machine::{Kernel, Machine, Owner, PciAddress},
    place::place,
};
use crate::cli::{
    args::{BindArgs, UnbindArgs},
    output::{Exit, Failure},
};
use nix::unistd::User;
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, symlink},
    path::Path,
};
use tempfile::TempDir;

const DISK: &str = "0000:01:00.0";
const OTHER: &str = "0000:02:00.0";
const DISK_BYTES: u64 = 16 << 20;

struct Fake {
    directory: TempDir,
    machine: Machine,
}

impl Fake {
    /// A machine with an IOMMU, vfio-pci, and the controllers S1 (nvme0n1, group 7) and S2 (nvme1n1, group 8).
    fn new() -> Self {
        Self::with(KERNEL)
    }

    /// The same, with another kernel.
    fn with(kernel: Kernel) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let machine = Machine::below(directory.path(), kernel);
        let fake = Self { directory, machine };
        fake.put("sys/class/iommu/dmar0/x", "");
        fake.put("dev/vfio/vfio", "");
        for driver in ["nvme", "vfio-pci", "e1000e"] {
            fake.put(&format!("sys/bus/pci/drivers/{driver}/bind"), "");
        }
        fake.controller(DISK, 0, "S1", 7);
        fake.controller(OTHER, 1, "S2", 8);
        fake
    }

    fn put(&self, path: &str, text: &str) {
        put(self.directory.path(), path, text);
    }

    fn controller(&self, address: &str, index: u32, serial: &str, group: u32) {
        self.device(address, "0x010802", "nvme", group);
        let block = format!("nvme{index}n1");
        let place = format!("sys/bus/pci/devices/{address}/nvme/nvme{index}");
        self.put(&format!("{place}/serial"), &format!("{serial:<20}\n"));
        self.put(&format!("{place}/model"), "Model One\n");
        self.put(&format!("{place}/{block}/nsid"), "1\n");
        self.put(&format!("sys/class/block/{block}/size"), &format!("{}\n", DISK_BYTES / 512));
        self.put(&format!("sys/class/block/{block}/dev"), &format!("259:{index}\n"));
        self.put(&format!("dev/{block}"), "");
        let file = File::options().write(true).open(self.machine.path(&format!("dev/{block}"))).expect("a disk");
        file.set_len(DISK_BYTES).expect("sized");
    }

    fn device(&self, address: &str, class: &str, driver: &str, group: u32) {
        let place = format!("sys/bus/pci/devices/{address}");
        self.put(&format!("{place}/class"), class);
        self.put(&format!("{place}/vendor"), "0x1b36\n");
        self.put(&format!("{place}/device"), "0x0010\n");
        self.put(&format!("{place}/driver_override"), "(null)\n");
        self.put(&format!("sys/kernel/iommu_groups/{group}/type"), "DMA-FQ\n");
        self.put(&format!("sys/kernel/iommu_groups/{group}/devices/{address}"), "");
        self.link(&format!("{place}/iommu_group"), &format!("../../../kernel/iommu_groups/{group}"));
        self.link(&format!("{place}/driver"), &format!("../../drivers/{driver}"));
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.machine.path(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        symlink(target, path).expect("linked");
    }

    fn remove(&self, path: &str) {
        fs::remove_dir_all(self.machine.path(path))
            .or_else(|_| fs::remove_file(self.machine.path(path)))
            .expect("there");
    }

    /// Bytes on the disk of S1.
    fn write_disk(&self, at: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.machine.path("dev/nvme0n1")).expect("a disk");
        file.write_all_at(bytes, at).expect("written");
    }

    fn find(&self, address: &str) -> Controller {
        controller::all(&self.machine).into_iter().find(|found| found.address.as_str() == address).expect("there")
    }

    fn owner(&self, path: &str) -> Owner {
        self.machine.owner(path).expect("there")
    }

    fn driver(&self) -> Option<String> {
        self.find(DISK).driver
    }

    fn bind(&self, args: &BindArgs) -> Result<Bound, Failure> {
        bind(&self.machine, args)
    }

    fn unbind(&self, name: &str) -> Result<Bound, Failure> {
        unbind(&self.machine, &UnbindArgs { name: name.to_owned(), controller: None })
    }

    /// Asserts that S1 is not bound, for a reason with this in it, and that nothing has been touched; gives the remedy.
    #[track_caller]
    fn refuses(&self, args: &BindArgs, reason: &str) -> String {
        let failure = self.bind(args).expect_err("refused");
        assert_eq!(failure.exit, Exit::Refused, "{failure:?}");
        assert!(failure.message.contains(reason), "{failure:?}");
        assert_eq!(self.driver().as_deref(), Some("nvme"));
        assert_eq!(
            self.machine.text(&format!("sys/bus/pci/devices/{DISK}/driver_override")).as_deref(),
            Some("(null)")
        );
        failure.hint
    }
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("below the root")).expect("made");
    fs::write(path, text).expect("written");
}

/// A kernel that keeps owners in files, so that it lets anybody give away anything, as root may.
const KERNEL: Kernel = Kernel { write: kernel, owner, give };

/// Who has what was not given away.
const ROOT: Owner = (0, 0);

/// A user that every system has, and that is not root.
fn somebody() -> User {
    User::from_name("nobody").expect("looked up").expect("known")
}

/// Where the owner of a file is kept once it was given away.
fn owner_file(path: &str) -> String {
    format!("owners/{path}")
}

fn owner(root: &Path, path: &str) -> io::Result<Owner> {
    fs::metadata(root.join(path))?;
    let Ok(text) = fs::read_to_string(root.join(owner_file(path))) else { return Ok(ROOT) };
    let (user, group) = text.split_once(' ').expect("written by `give`");
    Ok((user.parse().expect("a number"), group.parse().expect("a number")))
}

fn give(root: &Path, path: &str, (user, group): Owner) -> io::Result<()> {
    fs::metadata(root.join(path))?;
    put(root, &owner_file(path), &format!("{user} {group}"));
    Ok(())
}

/// What the kernel does when something is written: drivers leave and take devices, nodes come and go.
fn kernel(root: &Path, path: &str, text: &str) -> io::Result<()> {
    let device = |address: &str| root.join("sys/bus/pci/devices").join(address);
    if path.ends_with("/driver/unbind") {
        for node in ["dev/vfio/7", "dev/vfio/devices/vfio0"] {
            let _absent = fs::remove_file(root.join(node));
            let _not_given = fs::remove_file(root.join(owner_file(node)));
        }
        return fs::remove_file(device(text).join("driver"));
    }
    if path != "sys/bus/pci/drivers_probe" {
        return fs::write(root.join(path), text);
    }
    let wanted = fs::read_to_string(device(text).join("driver_override"))?;
    let driver = Some(wanted.trim()).filter(|name| !name.is_empty() && *name != "(null)").unwrap_or("nvme");
    let home = root.join("sys/bus/pci/drivers").join(driver);
    // As the kernel does, and a driver that is broken.
    if !home.is_dir() || home.join("broken").exists() {
        return Ok(());
    }
    match driver {
        "vfio-pci" => {
            put(root, "dev/vfio/7", "");
            put(root, &format!("sys/bus/pci/devices/{text}/vfio-dev/vfio0/power/control"), "");
            // Of a kernel with IOMMUFD, a node of its own.
            if root.join("dev/iommu").exists() {
                put(root, "dev/vfio/devices/vfio0", "");
            }
        }
        "uio_pci_generic" => {
            put(root, &format!("sys/bus/pci/devices/{text}/uio/uio0/name"), "");
            put(root, "dev/uio0", "");
        }
        _ => {}
    }
    symlink(home, device(text).join("driver"))
}

fn args(name: &str) -> BindArgs {
    BindArgs {
        name: name.to_owned(),
        driver: UserDriver::Vfio,
        user: None,
        lose_access_to: Vec::new(),
        controller: None,
    }
}

#[test]
fn controllers_are_listed_with_their_groups_and_namespaces() {
    let fake = Fake::new();
    fake.device("0000:03:00.0", "0x020000", "e1000e", 7);
    fake.device("0000:00:1c.0", "0x060400", "pcieport", 7);
    let found = fake.find(DISK);
    assert_eq!((found.serial.as_str(), found.model.as_str(), found.identity), ("S1", "Model One", Identity::Kernel));
    let group = found.iommu_group.expect("a group");
    let others: Vec<(&str, bool)> = group.others.iter().map(|other| (other.address.as_str(), other.blocks)).collect();
    assert_eq!((group.number, others), (7, vec![("0000:00:1c.0", false), ("0000:03:00.0", true)]));
    assert_eq!((found.namespaces[0].name.as_str(), found.namespaces[0].size_bytes), ("nvme0n1", DISK_BYTES));
    assert!(found.namespaces[0].uses.is_empty(), "{:?}", found.namespaces);
    assert_eq!(controller::all(&fake.machine).len(), 2);
}

#[test]
fn a_controller_goes_to_vfio_and_back() {
    let fake = Fake::new();
    let user = somebody();
    let wanted = BindArgs { user: Some(user.name), ..args("S1") };
    for _ in 0..2 {
        let bound = fake.bind(&wanted).expect("bound, and the second time bound already");
        assert_eq!((bound.driver.as_str(), bound.node.as_str()), ("vfio-pci", "/dev/vfio/7"));
        assert_eq!(fake.owner("dev/vfio/7"), (user.uid.as_raw(), user.gid.as_raw()));
    }
    let found = fake.find(DISK);
    assert_eq!((found.serial.as_str(), found.identity), ("S1", Identity::Remembered));
    assert!(found.namespaces.is_empty(), "nobody can know them now");
    assert_eq!(fake.find(OTHER).driver.as_deref(), Some("nvme"), "the other one was left alone");
    for _ in 0..2 {
        assert_eq!(fake.unbind("S1").expect("unbound").driver, "nvme");
        assert_eq!(fake.find(DISK).identity, Identity::Kernel);
        assert!(fake.machine.names("run/twinlog/devices").is_empty());
        assert_eq!(fake.machine.text(&format!("sys/bus/pci/devices/{DISK}/driver_override")), None);
    }
    fake.bind(&args("S1")).expect("bound");
    assert_eq!(fake.owner("dev/vfio/7"), ROOT, "it is given to nobody unasked");
}

#[test]
fn what_is_in_use_is_never_bound() {
    type Setup = fn(&Fake);
    let cases: [(&str, Setup); 7] = [
        ("mounted at /data", |fake| fake.put("proc/self/mountinfo", "36 25 259:0 / /data rw - ext4 /dev/other rw\n")),
        ("mounted at /data", |fake| fake.put("proc/self/mountinfo", "36 25 0:99 / /data rw - btrfs /dev/nvme0n1 rw\n")),
        ("nvme0n1p2 is mounted", |fake| {
            fake.put("sys/class/block/nvme0n1/nvme0n1p2/partition", "2\n");
            fake.put("sys/class/block/nvme0n1p2/dev", "259:9\n");
            fake.put("proc/self/mountinfo", "36 25 259:9 / / rw - xfs /dev/root rw\n");
        }),
        ("swap space", |fake| {
            fake.put("proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1 partition 8 0 -2\n")
        }),
        ("part of dm-0", |fake| fake.put("sys/class/block/nvme0n1/holders/dm-0", "")),
        ("part of md127", |fake| {
            fake.put("sys/class/block/nvme0n1/nvme0n1p1/partition", "1\n");
            fake.put("sys/class/block/nvme0n1p1/holders/md127", "");
        }),
        // A path of a controller with several.
        ("mounted at /data", |fake| {
            fake.remove(&format!("sys/bus/pci/devices/{DISK}/nvme/nvme0/nvme0n1"));
            fake.put(&format!("sys/bus/pci/devices/{DISK}/nvme/nvme0/nvme0c0n1/nsid"), "1\n");
            fake.put("proc/self/mountinfo", "36 25 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n");
        }),
    ];
    for (reason, setup) in cases {
        let fake = Fake::new();
        setup(&fake);
        let named = BindArgs { lose_access_to: vec!["nvme0n1".to_owned()], ..args("S1") };
        let hint = fake.refuses(&named, reason);
        assert!(hint.contains("no option overrides this"), "{hint}");
    }
}

#[test]
fn somebodys_data_must_be_named() {
    type Setup = fn(&Fake);
    let cases: [(&str, Setup); 5] = [
        ("an ext2, ext3 or ext4 file system", |fake| fake.write_disk(1080, b"\x53\xef")),
        ("a GPT partition table", |fake| fake.write_disk(512, b"EFI PART")),
        ("data", |fake| fake.write_disk(DISK_BYTES - 1, b"x")),
        ("partitions nvme0n1p1", |fake| fake.put("sys/class/block/nvme0n1/nvme0n1p1/partition", "1\n")),
        ("cannot be read", |fake| fake.remove("dev/nvme0n1")),
    ];
    for (what, setup) in cases {
        let fake = Fake::new();
        setup(&fake);
        let hint = fake.refuses(&args("S1"), what);
        assert!(hint.contains("--lose-access-to nvme0n1"), "{hint}");
        fake.refuses(&BindArgs { lose_access_to: vec!["nvme1n1".to_owned()], ..args("S1") }, what);
        fake.bind(&BindArgs { lose_access_to: vec!["nvme0n1".to_owned()], ..args("S1") }).expect(what);
    }
}

#[test]
fn what_twinlog_wrote_needs_no_word() {
    let fake = Fake::new();
    fake.write_disk(0, b"TWLLANE1");
    assert_eq!(fake.find(DISK).namespaces[0].uses[0].kind, UseKind::Twinlog);
    fake.bind(&args("S1")).expect("bound");
}

#[test]
fn vfio_needs_an_iommu_and_the_whole_group() {
    let fake = Fake::new();
    fake.device("0000:03:00.0", "0x020000", "e1000e", 7);
    fake.refuses(&args("S1"), "0000:03:00.0 (e1000e)");
    fake.remove("sys/bus/pci/devices/0000:03:00.0/driver");
    fake.bind(&args("S1")).expect("the other device has no driver now");

    let fake = Fake::new();
    fake.remove(&format!("sys/bus/pci/devices/{DISK}/iommu_group"));
    assert!(fake.refuses(&args("S1"), "no IOMMU").contains("intel_iommu=on"));
    fake.put("proc/cpuinfo", "processor\t: 0\nvendor_id\t: AuthenticAMD\n");
    assert!(fake.refuses(&args("S1"), "no IOMMU").contains("AMD-Vi"));
}

#[test]
fn uio_is_for_machines_without_an_iommu() {
    let fake = Fake::new();
    fake.put("sys/bus/pci/drivers/uio_pci_generic/bind", "");
    let uio = BindArgs { driver: UserDriver::Uio, ..args("S1") };
    assert!(fake.refuses(&uio, "cannot work").contains("vfio-pci"));
    fake.remove(&format!("sys/bus/pci/devices/{DISK}/iommu_group"));
    let with_user = BindArgs { user: Some("anybody".to_owned()), ..uio };
    assert_eq!(fake.bind(&with_user).expect_err("only root").exit, Exit::Usage);
    let bound = fake.bind(&BindArgs { user: None, ..with_user }).expect("bound");
    assert_eq!(bound.node, "/dev/uio0");
    let vfio = fake.bind(&args("S1")).expect_err("bound otherwise");
    assert_eq!((vfio.exit, vfio.hint.contains("device unbind S1")), (Exit::Refused, true), "{vfio:?}");
    fake.unbind("S1").expect("unbound");
}

#[test]
fn controllers_are_named_by_serial() {
    let fake = Fake::new();
    for name in [DISK, "/dev/nvme0n1", "nvme0n1", "/dev/nvme0n1p1", &format!("/sys/bus/pci/devices/{DISK}")] {
        let hint = fake.refuses(&args(name), "name the controller by its serial");
        assert!(hint.contains("S1"), "{name}: {hint}");
        assert!(fake.unbind(name).is_err());
    }
    fake.refuses(&args("/dev/sda"), "name the controller by its serial");
    for unknown in ["S3", "", "s1", "S1 ", "../S1"] {
        assert_eq!(fake.bind(&args(unknown)).expect_err("unknown").exit, Exit::Error, "{unknown}");
    }
    fake.link("dev/disk/by-id/nvme-Model_One_S1", "../../nvme0n1");
    assert_eq!(fake.bind(&args("/dev/disk/by-id/nvme-Model_One_S1")).expect("bound").serial, "S1");
}

#[test]
fn a_serial_that_two_controllers_bear_is_not_enough() {
    let fake = Fake::new();
    fake.put(&format!("sys/bus/pci/devices/{OTHER}/nvme/nvme1/serial"), "S1\n");
    assert!(fake.refuses(&args("S1"), "several").contains("--controller"));
    let address: PciAddress = DISK.parse().expect("an address");
    fake.bind(&BindArgs { controller: Some(address), ..args("S1") }).expect("bound");
    let nowhere: PciAddress = "0000:09:00.0".parse().expect("an address");
    fake.bind(&BindArgs { controller: Some(nowhere), ..args("S1") }).expect_err("not there");
}

#[test]
fn a_probe_that_fails_is_taken_back() {
    let fake = Fake::new();
    fake.put("sys/bus/pci/drivers/vfio-pci/broken", "");
    let failure = fake.bind(&args("S1")).expect_err("not taken");
    assert!(failure.message.contains("vfio-pci did not take it"), "{failure:?}");
    assert_eq!((fake.driver().as_deref(), fake.find(DISK).identity), (Some("nvme"), Identity::Kernel));
    fake.remove("sys/bus/pci/drivers/vfio-pci");
    let failure = fake.bind(&args("S1")).expect_err("not loaded");
    assert!(failure.hint.contains("modprobe vfio-pci"), "{failure:?}");
}

#[test]
fn an_interrupted_bind_goes_on_or_back() {
    for goes_on in [true, false] {
        let fake = Fake::new();
        fake.bind(&args("S1")).expect("bound");
        // As after step 3: nobody has the device.
        kernel(fake.directory.path(), &format!("sys/bus/pci/devices/{DISK}/driver/unbind"), DISK).expect("unbound");
        assert_eq!(fake.driver(), None);
        let (done, driver) = if goes_on { (fake.bind(&args("S1")), "vfio-pci") } else { (fake.unbind("S1"), "nvme") };
        assert_eq!(done.expect("done").driver, driver);
        assert_eq!(fake.driver().as_deref(), Some(driver));
    }
}

#[test]
fn a_controller_that_the_kernel_starts_has_no_serial_yet() {
    let fake = Fake::new();
    fake.put(&format!("sys/bus/pci/devices/{DISK}/nvme/nvme0/serial"), "(efault)\n");
    assert_eq!(fake.find(DISK).identity, Identity::Unknown);
    assert_eq!(fake.bind(&args("(efault)")).expect_err("nobody bears it").exit, Exit::Error);
}

#[test]
fn what_a_program_drives_is_not_unbound() {
    let fake = Fake::new();
    fake.bind(&args("S1")).expect("bound");
    fake.put("proc/4711/comm", "twinlog\n");
    fake.link("proc/4711/fd/9", "/dev/vfio/7");
    let failure = fake.unbind("S1").expect_err("in use");
    assert_eq!(failure.exit, Exit::Refused);
    assert!(failure.message.contains("process 4711 (twinlog)"), "{failure:?}");
    assert_eq!(fake.driver().as_deref(), Some("vfio-pci"));
}

#[test]
fn where_the_kernel_has_iommufd_its_node_is_named_given_and_watched() {
    let fake = Fake::new();
    fake.put("dev/iommu", "");
    let user = somebody();
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let bound = fake.bind(&BindArgs { user: Some(user.name), ..args("S1") }).expect("bound");
    assert_eq!(bound.node, "/dev/vfio/devices/vfio0");
    assert_eq!(fake.find(DISK).iommufd_node.as_deref(), Some("/dev/vfio/devices/vfio0"));
    for node in ["dev/vfio/devices/vfio0", "dev/vfio/7"] {
        assert_eq!(fake.owner(node), (uid, gid), "a node may take either: {node}");
    }
    assert_eq!(fake.owner("dev/iommu"), (ROOT.0, gid), "it is everybody's, by the group");
    fake.put("proc/4711/comm", "twinlog\n");
    fake.link("proc/4711/fd/9", "/dev/vfio/devices/vfio0");
    assert!(fake.unbind("S1").expect_err("in use").message.contains("process 4711 (twinlog)"));
    fake.remove("proc/4711");
    fake.unbind("S1").expect("given back");
    assert_eq!(fake.find(DISK).iommufd_node, None);
}

#[test]
fn a_group_that_somebody_has_given_iommufd_keeps_it() {
    let fake = Fake::new();
    fake.put("dev/iommu", "");
    give(fake.directory.path(), "dev/iommu", (0, 77)).expect("given");
    fake.bind(&BindArgs { user: Some(somebody().name), ..args("S1") }).expect("bound");
    assert_eq!(fake.owner("dev/iommu"), (0, 77));
}

#[test]
fn a_user_who_gets_nothing_is_not_said_to_have_it() {
    let fake = Fake::with(Kernel { give: |_, _, _| Err(io::ErrorKind::PermissionDenied.into()), ..KERNEL });
    let failure = fake.bind(&BindArgs { user: Some(somebody().name), ..args("S1") }).expect_err("refused");
    assert!(failure.message.contains("give to the user /dev/vfio/7"), "{failure:?}");
}

#[test]
fn a_record_of_another_device_is_not_believed() {
    let fake = Fake::new();
    fake.bind(&args("S1")).expect("bound");
    fake.put(&format!("sys/bus/pci/devices/{DISK}/device"), "0x0011\n");
    assert_eq!(fake.find(DISK).identity, Identity::Unknown);
    fake.unbind("S1").expect_err("nobody bears that serial");
    assert_eq!(fake.unbind(DISK).expect("by its address, as nothing else names it").driver, "nvme");
    for garbage in ["", "{", "{\"ids\":1}", "[[[[[[[["] {
        fake.put(&format!("run/twinlog/devices/{DISK}.json"), garbage);
        assert_eq!(fake.find(DISK).serial, "S1", "the kernel knows better");
    }
}

#[test]
fn a_node_finds_what_is_bound_by_its_serial_and_is_told_what_to_do_otherwise() {
    let fake = Fake::new();
    let place = |serial| place(&fake.machine, serial);
    let unbound = place("S1").expect_err("the kernel has it");
    assert!(unbound.message.contains("is bound to nvme, not to vfio-pci"), "{unbound:?}");
    assert!(unbound.hint.contains("twinlog device bind S1"), "{unbound:?}");
    assert_eq!(place("S3").expect_err("unknown").hint, "twinlog device list");
    fake.bind(&args("S1")).expect("bound");
    let found = place("S1").expect("bound");
    let paths = |names: &[&str]| names.iter().map(|name| fake.directory.path().join(name)).collect::<Vec<_>>();
    assert_eq!((found.address.as_str(), found.nodes), (DISK, vec![paths(&["dev/vfio/7"])]));
    fake.put("dev/iommu", "");
    fake.put("dev/vfio/devices/vfio0", "");
    let nodes = place("S1").expect("bound").nodes;
    assert_eq!(nodes, [paths(&["dev/iommu", "dev/vfio/devices/vfio0"]), paths(&["dev/vfio/7"])]);
    place("S2").expect_err("only the other one was bound");
    fake.remove(&format!("sys/bus/pci/devices/{DISK}/iommu_group"));
    assert!(place("S1").expect_err("unconfined").message.contains("no IOMMU"));
}
