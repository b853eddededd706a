//! Commands that ask a running node: `pool` and `volume`.

use super::{
    args::{CheckArgs, NodeArgs, PoolCommand, VolumeCommand},
    compose, foreign,
    layout::{self, Layout, write_durably},
    offline,
    output::{Exit, Failure, Output, unexpected},
    provision, superblocks,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::{fs, path::Path};
use twinlog::{
    base::{BlockSize, limits::BLOCK_BYTES},
    control::{
        client::AdminClient,
        config::{self, NvmeName},
        render,
        size::{ByteSize, show_bytes},
    },
    format::object::{is_valid_name, is_valid_size},
    node::admin::{AdminReply, AdminRequest, CheckReport, DamagedRange, NodeStatus, OfflineVolume, VolumeStatus},
};

#[derive(Serialize)]
struct Volumes<'a> {
    volumes: &'a [VolumeStatus],
}

#[derive(Serialize)]
struct Pools<'a, T: Serialize> {
    pools: [&'a T; 1],
}

/// `twinlog pool ...`
pub(crate) fn pool(command: PoolCommand, output: &Output) -> Result<Exit, Failure> {
    match command {
        PoolCommand::Create { config, overwrite } => provision::create(&config, &overwrite, output),
        PoolCommand::List(node) => show_pool(&node, output, render::pools),
        PoolCommand::Show(node) => show_pool(&node, output, render::pool),
        PoolCommand::Check(CheckArgs { config: Some(config), .. }) => offline::check(&config, output),
        PoolCommand::Check(CheckArgs { node, config: None }) => examine(&node, &AdminRequest::PoolCheck, output),
        PoolCommand::Scrub(node) => examine(&node, &AdminRequest::PoolScrub, output),
        PoolCommand::Grow { device, overwrite, node } => grow(&device, overwrite, &node, output),
    }
}

fn show_pool(node: &NodeArgs, output: &Output, text: fn(&NodeStatus) -> String) -> Result<Exit, Failure> {
    let status = open_status(node)?;
    output.show(&Pools { pools: [&status.pool] }, || text(&status))?;
    Ok(Exit::Done)
}

/// `twinlog volume ...`
pub(crate) fn volume(command: VolumeCommand, output: &Output) -> Result<Exit, Failure> {
    match command {
        VolumeCommand::Create { name, size, block_size, node } => {
            if !is_valid_name(&name) {
                let message = format!("'{name}' is no name for a volume");
                let hint = "1 to 64 letters, digits, `-`, `_` or `.`, beginning with a letter or digit";
                return Err(Failure::new(Exit::Usage, message, hint));
            }
            check_size(size)?;
            let (size_bytes, block_bytes) = (size.bytes(), block_size.bytes());
            if BlockSize::from_bytes(block_bytes).is_none() {
                let message = format!("{block_size} is no size of blocks");
                return Err(Failure::new(Exit::Usage, message, "`--block-size 4096` or `--block-size 512`"));
            }
            let request = AdminRequest::VolumeCreate { name: name.clone(), size_bytes, block_bytes };
            show_changed(&name, &request, &node, output)
        }
        VolumeCommand::List(node) => show_volumes(&open_volumes(&node)?.volumes, output),
        VolumeCommand::Show { name, node } => {
            let mut status = open_volumes(&node)?;
            status.volumes.retain(|volume| volume.name == name);
            known(&status.volumes, &name)?;
            output.show(&Volumes { volumes: &status.volumes }, || render::volume_figures(&status))?;
            Ok(Exit::Done)
        }
        VolumeCommand::Resize { name, size, discard, node } => resize(&name, size, discard, &node, output),
        VolumeCommand::Online { name, accept_loss, yes, node } => online(&name, (accept_loss, yes), &node, output),
        VolumeCommand::Delete { name, yes, node } => {
            if !yes {
                let message = format!("volume {name} is not deleted: its content would be lost");
                return Err(Failure::new(Exit::Refused, message, format!("twinlog volume delete {name} --yes")));
            }
            done(
                &node,
                &AdminRequest::VolumeDelete { name: name.clone() },
                output,
                &format!("volume {name} is deleted"),
            )
        }
    }
}

/// One call to the node, which is waited for while it starts.
pub(crate) fn ask(node: &NodeArgs, request: &AdminRequest) -> Result<AdminReply, Failure> {
    Ok(layout::connect_patiently(node)?.call(request)?)
}

/// The node's status as it is: `opening`, too.
pub(crate) fn status_of(node: &NodeArgs) -> Result<NodeStatus, Failure> {
    status(&mut layout::connect(node)?)
}

/// The status of a node whose pool is open, which is waited for.
fn open_status(node: &NodeArgs) -> Result<NodeStatus, Failure> {
    let mut client = layout::connect_patiently(node)?;
    // Answered when the pool is open, or will never be.
    match client.call(&AdminRequest::VolumeList)? {
        AdminReply::Volumes { .. } | AdminReply::Refused { .. } => status(&mut client),
        other => Err(unexpected(other)),
    }
}

/// The same, with the volumes of a pool that it has taken over beside its own.
fn open_volumes(node: &NodeArgs) -> Result<NodeStatus, Failure> {
    let mut status = open_status(node)?;
    let taken_over = status.pair.as_ref().and_then(|pair| pair.taken_over.as_ref());
    let volumes = taken_over.map(|status| status.volumes.clone()).unwrap_or_default();
    status.volumes.extend(volumes);
    Ok(status)
}

fn status(client: &mut AdminClient) -> Result<NodeStatus, Failure> {
    match client.call(&AdminRequest::Status)? {
        AdminReply::Status(status) => Ok(*status),
        other => Err(unexpected(other)),
    }
}

/// Orders a change of the volume `name`, and shows it.
fn show_changed(name: &str, request: &AdminRequest, node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    match ask(node, request)? {
        AdminReply::Volumes { .. } | AdminReply::Done => {}
        other => return Err(unexpected(other)),
    }
    let mut volumes = open_volumes(node)?.volumes;
    volumes.retain(|volume| volume.name == name);
    show_volumes(&volumes, output)
}

fn show_volumes(volumes: &[VolumeStatus], output: &Output) -> Result<Exit, Failure> {
    output.show(&Volumes { volumes }, || render::volumes(volumes))?;
    Ok(Exit::Done)
}

fn check_size(size: ByteSize) -> Result<(), Failure> {
    if is_valid_size(size.bytes()) {
        return Ok(());
    }
    let message = format!("{} bytes is no size for a volume", size.bytes());
    Err(Failure::new(Exit::Usage, message, "a multiple of 4096 bytes, at most 1 PiB, such as 10GiB"))
}

fn known(volumes: &[VolumeStatus], name: &str) -> Result<(), Failure> {
    if volumes.is_empty() {
        return Err(Failure::new(Exit::Error, format!("there is no volume {name}"), "twinlog volume list"));
    }
    Ok(())
}

/// Brings a volume back. What is to be lost is said first.
fn online(name: &str, (accept_loss, yes): (bool, bool), node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    if accept_loss && !yes {
        let mut now = open_volumes(node)?.volumes;
        now.retain(|volume| volume.name == name);
        known(&now, name)?;
        let held = now.iter().find_map(|volume| volume.offline.as_ref());
        let held =
            held.ok_or_else(|| Failure::new(Exit::Error, format!("volume {name} is online"), "twinlog volume list"))?;
        let message = format!(
            "nothing was dropped: {} record(s) in {} of volume {name} would be lost, that of log lane {} at position {} and every later one; each \
             is a change that may have been answered",
            held.held_records,
            show_bytes(held.held_bytes),
            held.lane,
            held.lsn
        );
        return Err(Failure::new(Exit::Refused, message, format!("twinlog volume online {name} --accept-loss --yes")));
    }
    let request = AdminRequest::VolumeOnline { name: name.to_owned(), accept_loss };
    show_changed(name, &request, node, output)
}

fn resize(name: &str, size: ByteSize, discard: bool, node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    check_size(size)?;
    let mut now = open_volumes(node)?.volumes;
    now.retain(|volume| volume.name == name);
    known(&now, name)?;
    if !discard && now.iter().any(|volume| size.bytes() < volume.size_bytes) {
        let beyond = now.iter().map(|volume| volume.size_bytes - size.bytes()).sum();
        let message = format!("volume {name} is not made smaller: its last {} would be lost", show_bytes(beyond));
        return Err(Failure::new(Exit::Refused, message, format!("twinlog volume resize {name} {size} --discard")));
    }
    let request = AdminRequest::VolumeResize { name: name.to_owned(), size_bytes: size.bytes() };
    show_changed(name, &request, node, output)
}

/// Adds a device: first to `node.toml`, where that is known, so that a node that dies right after the device joined finds it again. Only
/// a refusal takes it out again: without an answer it may have joined. A configured device that did not join is ignored at the next
/// start, with a warning.
fn grow(device: &Path, overwrite: bool, node: &NodeArgs, output: &Output) -> Result<Exit, Failure> {
    let device = config::device(device).map_err(|error| Failure::system("find", device.display(), &error))?;
    if NvmeName::of(&device).is_some() {
        // The node looks for data itself: nobody else can while it drives the controller.
        if overwrite {
            let message = "an NVMe namespace that the node drives is not wiped from here";
            return Err(Failure::new(Exit::Usage, message, "`blkdiscard` or `wipefs` it before `twinlog device bind`"));
        }
    } else if overwrite {
        compose::wipe(&device, foreign::LOOK_BYTES)?;
    } else {
        let (file, block_count) = superblocks::open(&device)?;
        provision::refuse_data(&file, &device, block_count * BLOCK_BYTES)?;
    }
    let request = AdminRequest::PoolGrow { device: device.display().to_string() };
    let shown = device.display();
    if node.admin.is_some() {
        let said = format!(
            "{shown} is part of the pool; now add it to `devices` in the node's configuration, as the last one"
        );
        return done(node, &request, output, &said);
    }
    let file = Layout::new(&node.dir, &node.node).config();
    let failed = |what, error: &std::io::Error| Failure::system(what, file.display(), error);
    let before = fs::read_to_string(&file).map_err(|error| failed("read", &error))?;
    let Some(after) = config::with_device(&before, &device) else {
        return Err(Failure::new(
            Exit::Error,
            format!("{} has no list of devices", file.display()),
            "mend `devices` in [pool]",
        ));
    };
    if config::load(&file)?.pool.devices.contains(&device) {
        // Added by an earlier attempt.
        return done(node, &request, output, &format!("{shown} is part of the pool"));
    }
    let mut client = layout::connect_patiently(node)?;
    write_durably(&file, &after)?;
    let reply = client.call(&request)?;
    if reply != AdminReply::Done {
        write_durably(&file, &before)?;
    }
    show_done(reply, output, &format!("{shown} is part of the pool, and of {}", file.display()))
}

fn done(node: &NodeArgs, request: &AdminRequest, output: &Output, said: &str) -> Result<Exit, Failure> {
    show_done(ask(node, request)?, output, said)
}

pub(crate) fn show_done(reply: AdminReply, output: &Output, said: &str) -> Result<Exit, Failure> {
    #[derive(Serialize)]
    struct Said<'a> {
        done: &'a str,
    }
    match reply {
        AdminReply::Done => {
            output.show(&Said { done: said }, || format!("{said}\n"))?;
            Ok(Exit::Done)
        }
        other => Err(unexpected(other)),
    }
}

/// A check or scrub of a running node, with its progress.
fn examine(node: &NodeArgs, request: &AdminRequest, output: &Output) -> Result<Exit, Failure> {
    let bar = progress_bar(output, "verifying");
    let reply = layout::connect_patiently(node)?.call_with_progress(request, |done, total| {
        bar.set_length(total.max(done) * BLOCK_BYTES);
        bar.set_position(done * BLOCK_BYTES);
    })?;
    bar.finish_and_clear();
    match reply {
        AdminReply::Report(report) => show_report(&report, output),
        other => Err(unexpected(other)),
    }
}

/// A bar for work in bytes, on standard error when a person looks at it.
pub(crate) fn progress_bar(output: &Output, what: &'static str) -> ProgressBar {
    let target = if output.is_watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}");
    bar.set_style(style.expect("the template is constant and right").progress_chars("##."));
    bar.set_message(what);
    bar
}

/// What a check found: whole, or degraded with every problem.
pub(crate) fn show_report(report: &CheckReport, output: &Output) -> Result<Exit, Failure> {
    output.show(report, || {
        let (verified, reachable, allocated) =
            (report.verified_blocks, report.reachable_blocks, report.allocated_blocks);
        let head = if report.problems.is_empty() { "WHOLE" } else { "DAMAGED" };
        let freed = match report.freed_blocks {
            0 => String::new(),
            freed => format!(" ({freed} of them freed, which come back with the next consistency point)"),
        };
        let mut text =
            format!("{head}  {verified} blocks verified, {reachable} reachable, {allocated} allocated{freed}\n");
        for DamagedRange { volume, offset_bytes, length_bytes } in &report.damaged {
            let end = offset_bytes + length_bytes;
            text.push_str(&format!("  volume {volume}: bytes {offset_bytes}..{end} cannot be read\n"));
        }
        for OfflineVolume { volume, why } in &report.offline {
            text.push_str(&format!("  volume {volume} is offline: {why}\n"));
        }
        for problem in &report.problems {
            text.push_str(&format!("  {problem}\n"));
        }
        text
    })?;
    let is_good = report.problems.is_empty() && report.offline.is_empty();
    Ok(if is_good { Exit::Done } else { Exit::Degraded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::OutputFormat;
    use std::{
        fs::File,
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixListener,
    };
    use twinlog::control::admin::{ReplyLine, SCHEMA_VERSION};

    /// A node that answers the one request that comes, or dies. Returns whether the device is configured then.
    fn configured_after(reply: Option<AdminReply>) -> bool {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let node = NodeArgs { dir: directory.path().to_owned(), node: "a".to_owned(), admin: None };
        let layout = Layout::new(&node.dir, &node.node);
        fs::create_dir_all(layout.admin().parent().expect("a folder")).expect("made");
        let text = "name = \"a\"\n[log]\npath = \"log\"\nsize = \"8MiB\"\n[pool]\nname = \"a\"\ndevices = [\"d0\"]\n";
        fs::write(layout.config(), text).expect("written");
        let device = directory.path().join("d1");
        File::create(&device).and_then(|file| file.set_len(8 << 20)).expect("made");
        let is_done = reply == Some(AdminReply::Done);
        let line = reply.map(|reply| serde_json::to_string(&ReplyLine { schema_version: SCHEMA_VERSION, reply }));
        let line = line.map_or_else(String::new, |line| line.expect("a reply") + "\n");
        let listener = UnixListener::bind(layout.admin()).expect("bound");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().expect("a client");
                let mut lines = BufReader::new(&stream);
                lines.read_line(&mut String::new()).expect("a request");
                (&stream).write_all(line.as_bytes()).expect("written");
            });
            let grown = grow(&device, false, &node, &Output::new(OutputFormat::Json));
            assert_eq!(grown.is_ok(), is_done, "{grown:?}");
        });
        config::load(&layout.config()).expect("good").pool.devices.contains(&device)
    }

    #[test]
    fn a_device_that_may_have_joined_stays_configured() {
        assert!(configured_after(None) && configured_after(Some(AdminReply::Done)));
        assert!(!configured_after(Some(AdminReply::Refused { message: "no".to_owned(), hint: String::new() })));
    }
}
