#!/usr/bin/env python3
"""Measures Twinlog beside its peers, in one run, and prints the tables of docs/performance.md.

    tools/bench/peers.py                        every figure, to standard output
    tools/bench/peers.py durable-d1 idle        some of them
    tools/bench/peers.py --list                 what there is

Method: a figure's contenders take turns, `--rounds` times (5); each turn starts its server anew on core 0 and its client on core 1. A
cell is the median with minimum and maximum. Peers that are not installed are left out, and the table says so. All files lie in one
directory (--dir, default: below target/), so every contender uses the same disk.

It needs Python 3.9 and programs built with `cargo build --release --workspace`; peers: fio, nbdkit, qemu-utils, and SPDK's
programs `nvmf_tgt` and `spdk_nvme_perf`, for which huge pages are to be set aside.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 1 << 20
PROGRAM = ROOT / "target/release/twinlog"
LOAD = ROOT / "target/release/twinlog-load"
SERVER_CORE, CLIENT_CORE = "0", "1"
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def say(text):
    print(text, file=sys.stderr, flush=True)


def pinned(core, command):
    return ["taskset", "-c", core] + [str(word) for word in command]


def output_of(command, limit_s=600):
    """What a command prints; its failure ends the run with its own words."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def first_read(path, export):
    """Whether an NBD server lets a client read the first block of `export` now."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(60)
        try:
            client.connect(str(path))
            name = export.encode()
            answers = client.makefile("rb")
            answers.read(18)
            client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)
            if len(answers.read(10)) < 10:
                return False
            client.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4096))
            return len(answers.read(16 + 4096)) == 16 + 4096
        except OSError:
            return False


def silent_host(port, subsystem):
    """The sockets of a host of NVMe/TCP that has connected, with an admin queue and one for I/O, and has nothing to ask."""
    host = b"nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001"

    def capsule(entry, data=b""):
        return struct.pack("<BBBBI", 4, 0, 72, 72 if data else 0, 72 + len(data)) + entry + data

    def ask(stream, what, bytes_before):
        stream.sendall(what)
        answer = stream.makefile("rb").read(bytes_before + 24)
        if len(answer) < bytes_before + 24:
            raise RuntimeError("the target hung up on a host")
        result, status = struct.unpack_from("<I10xH", answer, bytes_before + 8)
        if status >> 1:
            raise RuntimeError(f"the target refuses a host with status {status >> 1:#x}")
        return result

    def connect(queue, controller):
        stream = socket.create_connection(("127.0.0.1", port), 60)
        initialize = struct.pack("<BBBBI120x", 0, 0, 128, 0, 128)
        entry = struct.pack("<BB2xB27xI3xBHHHB17x", 0x7F, 0x40, 1, 1024, 1, 0, queue, 31, 0)
        data = struct.pack("<16sH238x256s256s256x", bytes(15) + b"\1", controller, subsystem.encode(), host)
        return stream, ask(stream, initialize + capsule(entry, data), 128) & 0xFFFF

    admin, controller = connect(0, 0xFFFF)
    # CC: 64-byte entries, 16-byte completions, enabled.
    ask(admin, capsule(struct.pack("<BB42xIQ8x", 0x7F, 0x40, 0x14, 0x460001)), 0)
    return [admin, connect(1, controller)[0]]


def wait_for(path, export, process, limit_s=120):
    """Seconds until a client can read."""
    start = time.monotonic()
    while not first_read(path, export):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        if time.monotonic() - start > limit_s:
            raise RuntimeError("the server does not serve")
        time.sleep(0.0005)
    return time.monotonic() - start


class Server:
    """A block server on core 0, one per turn. `uri` is how clients name its volume."""

    def __init__(self, name, program, command, export=""):
        self.name, self.program, self.make_command, self.export = name, program, command, export

    def available(self):
        return shutil.which(self.program) is not None

    def prepare(self, folder, size):
        """Makes a file that has been written once, so that no contender pays for first writes."""
        self.folder, self.socket = folder, folder / "s"
        disk = written_file(folder / "disk", size)
        self.command = self.make_command(self.socket, disk, size)

    def start(self):
        """Seconds from the start of the program until a client can read."""
        self.launch()
        return wait_for(self.socket, self.export, self.process)

    def launch(self):
        log = open(self.folder / "log", "ab")
        self.process = subprocess.Popen(
            pinned(SERVER_CORE, self.command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def node(self):
        return self.process.pid

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @property
    def uri(self):
        return f"nbd+unix:///{self.export}?socket={self.socket}"


class Twinlog(Server):
    """Ours: `twinlog serve` with everything at its default but the log."""

    def __init__(self, name, log="file", volume_size=None, more=""):
        super().__init__(name, "taskset", None, "vol-a")
        self.log, self.volume_size, self.more = log, volume_size, more

    def available(self):
        return PROGRAM.exists()

    def prepare(self, folder, size):
        self.folder, self.socket, self.admin = folder, folder / "nbd.sock", folder / "admin.sock"
        # Twice the volume: what a consistency point replaces is free only after the next one.
        written_file(folder / "disk", 2 * size)
        config = folder / "node.toml"
        log = {"file": 'backend = "file"\npath = "log"', "memory": 'backend = "memory"\nallow_volatile = true'}[self.log]
        config.write_text(f'name = "a"\n[log]\n{log}\nsize = "256MiB"\n[pool]\nname = "a"\ndevices = ["disk"]\n{self.more}')
        output_of([PROGRAM, "pool", "create", "--config", config, "--overwrite", folder / "disk"])
        self.command = [PROGRAM, "serve", "--config", config]
        self.launch()
        give_up = time.monotonic() + 60
        while subprocess.run([PROGRAM, "status", "--admin", self.admin], capture_output=True).returncode not in (0, 3):
            if time.monotonic() > give_up:
                raise RuntimeError("the node does not serve: " + (folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)
        output_of([PROGRAM, "volume", "create", "vol-a", self.volume_size or f"{size // MIB}MiB", "--admin", self.admin])
        self.stop()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def status(self):
        """What the node says of itself."""
        done = subprocess.run([PROGRAM, "status", "-o", "json", "--admin", self.admin], capture_output=True, text=True)
        return json.loads(done.stdout)["status"]


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TwinlogTcp(Twinlog):
    """The same over TCP on loopback, by NVMe or NBD; log in memory, and blocks pinned from the start, as SPDK's memory is."""

    def __init__(self, name, scheme):
        self.port = free_port()
        listen = f'listen = "127.0.0.1:{self.port}"' if scheme == "nvme-tcp" else f'tcp = ["127.0.0.1:{self.port}"]'
        super().__init__(name, "memory", more=f"[memory]\npinned = true\n[{scheme.replace('-', '_')}]\n{listen}\n")
        self.scheme = scheme
        if scheme == "nbd":
            self.more += 'unix = ["nbd.sock"]\n'

    @property
    def uri(self):
        return f"{self.scheme}://127.0.0.1:{self.port}/" + ("vol-a" if self.scheme == "nbd" else "")

    @property
    def subsystem(self):
        return re.findall(r'subsystem="([^"]*)"', (self.folder / "log").read_text())[-1]


def huge_pages():
    """Options of SPDK's programs: huge pages if the machine has set some aside."""
    info = pathlib.Path("/proc/meminfo").read_text()
    free = int(next(line for line in info.splitlines() if line.startswith("HugePages_Free")).split()[1])
    return [] if free >= 640 else ["--no-huge"]


class SpdkTarget(Server):
    """SPDK's NVMe/TCP target with a block device in memory."""

    NQN = subsystem = "nqn.2016-06.io.spdk:peer"

    def __init__(self):
        super().__init__("SPDK, memory bdev", "nvmf_tgt", None)
        self.port = free_port()

    def prepare(self, folder, size):
        self.folder = folder
        subsystem = {"nqn": self.NQN}
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(self.port)}
        calls = {
            "bdev": [("bdev_malloc_create", {"name": "m", "num_blocks": size // 4096, "block_size": 4096})],
            "nvmf": [
                ("nvmf_create_transport", {"trtype": "TCP", "in_capsule_data_size": 16384}),
                ("nvmf_create_subsystem", subsystem | {"allow_any_host": True, "serial_number": "1", "model_number": "peer"}),
                ("nvmf_subsystem_add_ns", subsystem | {"namespace": {"nsid": 1, "bdev_name": "m"}}),
                ("nvmf_subsystem_add_listener", subsystem | {"listen_address": address}),
            ],
        }
        config = folder / "spdk.json"
        config.write_text(json.dumps({"subsystems": [
            {"subsystem": name, "config": [{"method": method, "params": params} for method, params in config]}
            for name, config in calls.items()]}))
        self.command = ["nvmf_tgt", "-m", "0x1", "-s", "512", "-r", folder / "rpc.sock", *huge_pages(), "-c", config]

    def start(self):
        start = time.monotonic()
        self.launch()
        while True:
            with contextlib.closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return time.monotonic() - start
            if self.process.poll() is not None or time.monotonic() - start > 60:
                raise RuntimeError("SPDK's target does not serve: " + (self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    @property
    def uri(self):
        return f"nvme-tcp://127.0.0.1:{self.port}/{self.NQN}"


def written_file(path, size):
    """A file of random bytes on the disk. Zeroes would do as well, but for file systems that compress."""
    chunk = os.urandom(MIB)
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            file.write(chunk)
        os.fsync(file.fileno())
    return path


def nbdkit_memory():
    return Server("nbdkit memory", "nbdkit", lambda path, _, size: ["nbdkit", "-f", "-U", path, "memory", str(size)])


def nbdkit_file(name="nbdkit file", options=(), parameters=()):
    return Server(name, "nbdkit", lambda path, disk, _: ["nbdkit", "-f", "-U", path, *options, "file", disk, *parameters])


def qemu_nbd(name, *options):
    command = lambda path, disk, _: ["qemu-nbd", "-t", "-e", "64", "-f", "raw", "-k", path, *options, disk]
    return Server(name, "qemu-nbd", command)


def cpu_seconds(process):
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def memory_bytes(process, key="VmHWM"):
    for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} of process {process}")


class Bench:
    def __init__(self, options):
        self.rounds, self.seconds = options.rounds, options.time
        self.place = pathlib.Path(options.dir)
        self.place.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def serving(self, server, size=512 * MIB, start=True):
        with tempfile.TemporaryDirectory(dir=self.place, prefix="p") as folder:
            server.prepare(pathlib.Path(folder), size)
            if start:
                server.start()
            try:
                yield server
            finally:
                if server.process.poll() is None:
                    server.stop()

    def load(self, server, *arguments, seconds=None, warmup=1):
        """One run of twinlog-load: its report."""
        words = [server.uri, "--time", seconds or self.seconds, "--warmup", warmup, "--no-flush", "-o", "json", *arguments]
        return json.loads(output_of(pinned(CLIENT_CORE, [LOAD, *words])))

    def fill(self, server, size):
        """Writes the first `size` bytes of a volume."""
        self.load(server, "--rw", "write", "--bs", "128k", "--qd", 8, "--ops", size // (MIB // 8), "--size", size, seconds=300, warmup=0)

    def fio(self, *arguments, engine="nbd", seconds=None, core=CLIENT_CORE):
        """One fio job: its JSON."""
        words = ["fio", "--name=job", f"--ioengine={engine}", "--time_based", f"--runtime={seconds or self.seconds}",
                 "--ramp_time=1", "--output-format=json", *arguments]
        printed = output_of(pinned(core, words))
        return json.loads(printed[printed.index("{"):])["jobs"][0]

    def spdk_perf(self, server, kind, size, depth):
        """IOPS of SPDK's own initiator at an NVMe/TCP server."""
        # Without a name of its own it connects with an empty one, which a target of NVMe may refuse.
        host = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001"
        where = f"trtype:TCP adrfam:IPv4 traddr:127.0.0.1 trsvcid:{server.port} hostnqn:{host}"
        words = ["spdk_nvme_perf", "-r", where, "-c", "0x2", "-s", 512, *huge_pages(),
                 "-w", f"rand{kind}", "-o", size, "-q", depth, "-t", self.seconds, "-a", 1]
        total = next(line for line in output_of(words).splitlines() if line.startswith("Total"))
        return float(total.split(":")[1].split()[0])

    def raw(self, *arguments, engine="io_uring"):
        """fio on a written file of the same disk: the machine's own floor."""
        with tempfile.TemporaryDirectory(dir=self.place, prefix="r") as folder:
            path = written_file(pathlib.Path(folder) / "raw", 512 * MIB)
            return self.fio(f"--filename={path}", "--direct=1", "--size=512M", *arguments, engine=engine)

    def compare(self, contenders):
        """Runs every contender once per round, in turn. {name: [measurement]}"""
        found = {name: [] for name, _ in contenders}
        for number in range(self.rounds):
            for name, measure in contenders:
                value = measure()
                found[name].append(value)
                say(f"  round {number + 1}: {name}: {value:,.1f}")
        return found


def cell(values, unit="", scale=1.0, digits=1):
    middle, low, high = (f"{number * scale:,.{digits}f}" for number in
                         (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high}){unit}"


def table(title, found, unit, scale=1.0, digits=1, ours="Twinlog", notes=()):
    """A figure as Markdown. The last column is ours over the contender's, medians."""
    print(f"\n### {title}\n\n| contender | {unit}: median (min–max) | Twinlog / it |\n|---|---|---|")
    base = statistics.median(found[ours])
    for name, values in found.items():
        ratio = "" if name == ours else f"{base / statistics.median(values):.2f}"
        print(f"| {name} | {cell(values, '', scale, digits)} | {ratio} |")
    for note in notes:
        print(f"\n{note}")
    sys.stdout.flush()


def first_iops(report, kind="write"):
    return next(entry["iops"] for entry in report["classes"] if entry["kind"] == kind)


def by_server(bench, servers, measure, size=512 * MIB):
    """Contenders for `compare`: each server that is installed, measured while it runs."""
    def turn(server):
        with bench.serving(server, size):
            return measure(server)
    missing = [server.name for server in servers if not server.available()]
    if missing:
        say(f"  not installed: {', '.join(missing)}")
    return [(server.name, lambda server=server: turn(server)) for server in servers if server.available()]


def durable_servers():
    """NBD servers that make each write durable before they answer it, or can be asked to."""
    return [
        qemu_nbd("qemu-nbd, directsync, native AIO", "--cache=directsync", "--aio=native"),
        qemu_nbd("qemu-nbd, directsync, io_uring", "--cache=directsync", "--aio=io_uring"),
        qemu_nbd("qemu-nbd, writethrough, threads", "--cache=writethrough", "--aio=threads"),
        nbdkit_file("nbdkit file, FUA forced", ["--filter=fua"], ["fuamode=force"]),
    ]


def durable(bench, depth, title):
    servers = [Twinlog("Twinlog"), *durable_servers()]
    measure = lambda server: first_iops(bench.load(server, "--rw", "randwrite", "--bs", "4k", "--qd", depth))
    contenders = by_server(bench, servers, measure)
    if depth == 1:
        append = lambda: bench.raw("--rw=write", "--bs=4k", "--sync=dsync", engine="psync")["write"]["iops"]
        contenders.append(("fio on the disk: append with O_DSYNC", append))
    random = lambda: bench.raw("--rw=randwrite", "--bs=4k", "--sync=dsync", f"--iodepth={depth}")["write"]["iops"]
    contenders.append((f"fio on the disk: random writes with O_DSYNC, depth {depth}", random))
    table(title, bench.compare(contenders), "IOPS", digits=0,
          notes=["Every answer means a durable write: Twinlog's log is a file on the same disk, written durably; the client is twinlog-load."])


def figure_durable_d1(bench):
    durable(bench, 1, "Durable 4 KiB random write, depth 1")


def figure_durable_d32(bench):
    durable(bench, 32, "Durable 4 KiB random write, depth 32")


def memory_servers():
    return [
        Twinlog("Twinlog", log="memory"),
        nbdkit_memory(),
        qemu_nbd("qemu-nbd, writeback, threads", "--cache=writeback", "--aio=threads"),
        qemu_nbd("qemu-nbd, writeback, io_uring", "--cache=writeback", "--aio=io_uring"),
        qemu_nbd("qemu-nbd, none, io_uring", "--cache=none", "--aio=io_uring"),
    ]


def small(bench, kind):
    costs = {}

    def by_load(server):
        bench.fill(server, 256 * MIB)
        before = cpu_seconds(server.node())
        report = bench.load(server, "--rw", f"rand{kind}", "--bs", "4k", "--qd", 32, "--size", "256m", warmup=0)
        ops = report["acknowledged"]["ops"]
        cost = ((cpu_seconds(server.node()) - before) * 1e6 / ops, report["cpu"]["microseconds_per_op"])
        costs.setdefault(server.name, []).append(cost)
        return first_iops(report, kind)

    def by_fio(server):
        bench.fill(server, 256 * MIB)
        return bench.fio(f"--uri={server.uri}", f"--rw=rand{kind}", "--bs=4k", "--iodepth=32", "--size=256M")[kind]["iops"]

    about = "256 MiB of the volume, written before; Twinlog's log is in memory; a Unix socket."
    for client, measure in [("twinlog-load", by_load), ("fio", by_fio)]:
        found = bench.compare(by_server(bench, memory_servers(), measure))
        notes = [about]
        if client == "twinlog-load":
            notes.append("Processor time per operation, server + client, medians: " + "; ".join(
                f"{name} {statistics.median(one for one, _ in cost):.1f} + {statistics.median(two for _, two in cost):.1f} us"
                for name, cost in costs.items()) + ".")
        table(f"4 KiB random {kind}, not durable, depth 32, client {client}", found, "IOPS", digits=0, notes=notes)


def figure_read_d32(bench):
    small(bench, "read")


def figure_write_d32(bench):
    small(bench, "write")


def figure_nvme_tcp(bench):
    """NVMe/TCP on loopback, server and client on a core each: the blocks are in the cache, the log is in memory."""
    shapes = [(f"4 KiB random {kind}, depth {depth}", kind, 4096, depth) for kind in ["read", "write"] for depth in [1, 32, 127]]
    shapes += [(f"128 KiB random {kind}, depth 8", kind, 131072, 8) for kind in ["read", "write"]]
    volume = 128 * MIB
    # {(shape, client): {server: [IOPS]}}, and the server's processor time per operation under twinlog-load.
    found, costs = {}, {}

    def by_load(server, shape):
        _, kind, size, depth = shape
        before = cpu_seconds(server.node())
        report = bench.load(server, "--rw", f"rand{kind}", "--bs", size, "--qd", depth, "--size", volume, "--busy", warmup=0)
        cost = (cpu_seconds(server.node()) - before) * 1e6 / report["acknowledged"]["ops"]
        costs.setdefault(shape, {}).setdefault(server.name, []).append(cost)
        return first_iops(report, kind)

    def turn(server):
        """Every shape at one start of a server: a value for each shape and client."""
        with bench.serving(server, volume):
            bench.fill(server, volume)
            for shape in shapes:
                clients = {"twinlog-load": lambda: by_load(server, shape)}
                if server.uri.startswith("nvme-tcp") and shutil.which("spdk_nvme_perf"):
                    clients["spdk_nvme_perf"] = lambda: bench.spdk_perf(server, *shape[1:])
                for client, measure in clients.items():
                    found.setdefault((shape, client), {}).setdefault(server.name, []).append(measure())

    servers = [TwinlogTcp("Twinlog", "nvme-tcp"), SpdkTarget(), TwinlogTcp("Twinlog, NBD over TCP", "nbd")]
    for number in range(bench.rounds):
        for server in [server for server in servers if server.available()]:
            say(f"  round {number + 1}: {server.name}")
            turn(server)
    for (shape, client), values in found.items():
        spent = "; ".join(f"{name} {statistics.median(cost):.1f} us" for name, cost in costs[shape].items())
        notes = [f"Processor time of the server per operation, medians: {spent}."] if client == "twinlog-load" else ()
        table(f"{shape[0]}, over TCP on loopback, client {client}", values, "IOPS", digits=0, notes=notes)


def sequential(bench, kind):
    # Larger than Twinlog's cache, so that reads come from the disk as the raw device's do.
    size = 2048 * MIB

    def measure(server):
        bench.fill(server, size)
        report = bench.load(server, "--rw", kind, "--bs", "128k", "--qd", 8)
        return next(entry["bytes_per_second"] for entry in report["classes"] if entry["kind"] == kind)

    contenders = by_server(bench, [Twinlog("Twinlog")], measure, size)
    raw = lambda: bench.raw(f"--rw={kind}", "--bs=128k", "--iodepth=8")[kind]["bw_bytes"]
    contenders.append(("fio on the disk, O_DIRECT, io_uring", raw))
    peers = [qemu_nbd("qemu-nbd, none, io_uring", "--cache=none", "--aio=io_uring"), nbdkit_file()]
    contenders += by_server(bench, peers, measure, size)
    table(f"128 KiB sequential {kind}, depth 8", bench.compare(contenders), "MB/s", 1e-6, 0,
          notes=["Twinlog writes each byte twice, to log and disk, and its writes are durable; nbdkit's stay in the page cache."])


def figure_sequential_write(bench):
    sequential(bench, "write")


def figure_sequential_read(bench):
    sequential(bench, "read")


def figure_tail(bench):
    """Latency of writes under saturating load, long enough for many consistency points."""
    keys = [("p50", "p50"), ("p99", "p99"), ("p99.9", "p99_9"), ("max", "max")]
    rows = {log: {name: [] for name, _ in keys} | {"p99.9 / p50": [], "consistency points": []} for log in ["file", "memory"]}
    for number in range(bench.rounds):
        for log, row in rows.items():
            with bench.serving(Twinlog("Twinlog", log), 1024 * MIB) as server:
                before = server.status()
                report = bench.load(server, "--rw", "randwrite", "--bs", "4k", "--qd", 32, seconds=max(20, bench.seconds))
                after = server.status()
            latency = next(entry["latency_ns"] for entry in report["classes"] if entry["kind"] == "write")
            for name, key in keys:
                row[name].append(latency[key] / 1e3)
            row["p99.9 / p50"].append(latency["p99_9"] / latency["p50"])
            row["consistency points"].append(after["pool"]["cp"] - before["pool"]["cp"])
            say(f"  round {number + 1}, log {log}: p50 {row['p50'][-1]:.0f} us, p99.9 {row['p99.9'][-1]:.0f} us")
    print("\n### Write latency in us while consistency points run: 4 KiB random write, depth 32, saturating\n")
    print("| what | log in a file on the disk: median (min–max) | log in memory: median (min–max) |\n|---|---|---|")
    for name in rows["file"]:
        print(f"| {name} | {cell(rows['file'][name])} | {cell(rows['memory'][name])} |")


def figure_idle(bench):
    """Processor time of a node without work, and its memory before and after load."""
    rows = {"alone": [], "connected": [], "start": [], "loaded": []}
    for _ in range(bench.rounds):
        with bench.serving(Twinlog("Twinlog")) as server:
            time.sleep(2)
            rows["start"].append(memory_bytes(server.node()) / MIB)
            rows["alone"].append(share_of_core(server.node(), bench.seconds))
            # Clients that are connected and silent.
            clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
            for client in clients:
                client.connect(str(server.socket))
            rows["connected"].append(share_of_core(server.node(), bench.seconds))
            for client in clients:
                client.close()
            bench.load(server, "--rw", "randrw", "--bs", "4k-256k", "--qd", 64)
            rows["loaded"].append(memory_bytes(server.node()) / MIB)
    hosts = {}
    for server in [TwinlogTcp("Twinlog", "nvme-tcp"), SpdkTarget()]:
        for _ in range(bench.rounds if server.available() else 0):
            with bench.serving(server, 128 * MIB):
                streams = silent_host(server.port, server.subsystem)
                time.sleep(2)
                hosts.setdefault(server.name, []).append(share_of_core(server.node(), bench.seconds))
                for stream in streams:
                    stream.close()
    print("\n### Idle\n\n| what | median (min–max) |\n|---|---|")
    print(f"| processor, no client | {cell(rows['alone'], ' % of a core', 100, 2)} |")
    print(f"| processor, four silent connections | {cell(rows['connected'], ' % of a core', 100, 2)} |")
    for name, row in hosts.items():
        print(f"| processor, one NVMe/TCP host, silent: {name} | {cell(row, ' % of a core', 100, 2)} |")
    print(f"| largest resident memory, before any request | {cell(rows['start'], ' MiB', 1, 0)} |")
    print(f"| largest resident memory, after mixed load at depth 64 | {cell(rows['loaded'], ' MiB', 1, 0)} |")


def share_of_core(process, seconds):
    before, start = cpu_seconds(process), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(process) - before) / (time.monotonic() - start)


def figure_open_after_kill(bench):
    """Time from exec to the first block read after SIGKILL under load, with a log of 256 MiB."""
    times, filled, replayed = [], [], []
    for number in range(bench.rounds):
        with bench.serving(Twinlog("Twinlog"), 1024 * MIB) as server:
            command = [LOAD, server.uri, "--rw", "randwrite", "--bs", "64k", "--qd", 64, "--time", 60]
            load = subprocess.Popen(pinned(CLIENT_CORE, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            # The log is fullest while a consistency point runs: wait for the best of many looks.
            best, end = 0.0, time.monotonic() + 15
            while time.monotonic() < end:
                share = log_fill(server.status())
                if share >= 0.9 or (best > 0.5 and share >= best and time.monotonic() > end - 7):
                    break
                best = max(best, share)
            filled.append(log_fill(server.status()))
            server.kill()
            load.wait()
            times.append(server.start())
            replayed.append(server.status()["replayed_records"])
            say(f"  round {number + 1}: log {filled[-1]:.0%} full, open in {times[-1]:.3f} s, {replayed[-1]} records replayed")
    print("\n### Open after SIGKILL under load, log of 256 MiB\n\n| what | median (min–max) |\n|---|---|")
    print(f"| from exec to the first block read | {cell(times, ' s', 1, 3)} |\n| log in use at the kill | {cell(filled, ' %', 100, 0)} |")
    print(f"| records replayed | {cell(replayed, '', 1, 0)} |")


def log_fill(status):
    return sum(lane["used_bytes"] for lane in status["lanes"]) / sum(lane["size_bytes"] for lane in status["lanes"])


def figure_open_thin(bench):
    """Time to open a pool whose volume is 1 GiB or 16 TiB, each with the same gigabyte of data written to it."""
    found = {"1 GiB": [], "16 TiB": []}
    for number in range(bench.rounds):
        for size, key in [("1GiB", "1 GiB"), ("16TiB", "16 TiB")]:
            with bench.serving(Twinlog("Twinlog", volume_size=size)) as server:
                bench.load(server, "--rw", "randwrite", "--bs", "64k", "--qd", 16, "--ops", 4096)
                server.stop()
                found[key].append(server.start())
                say(f"  round {number + 1}: {key}: {found[key][-1]:.3f} s")
    table("Open of a pool by the size of its thin volume", found, "ms from exec to the first block read", 1e3, 1, ours="16 TiB")


FIGURES = {
    "durable-d1": figure_durable_d1,
    "durable-d32": figure_durable_d32,
    "read-d32": figure_read_d32,
    "write-d32": figure_write_d32,
    "nvme-tcp": figure_nvme_tcp,
    "sequential-write": figure_sequential_write,
    "sequential-read": figure_sequential_read,
    "tail": figure_tail,
    "idle": figure_idle,
    "open-after-kill": figure_open_after_kill,
    "open-thin": figure_open_thin,
}


def machine():
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    lines = [f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}"]
    for program, words in [("fio", ["--version"]), ("nbdkit", ["--version"]), ("qemu-nbd", ["--version"]),
                           (str(PROGRAM), ["--version"])]:
        if shutil.which(program):
            lines.append(output_of([program, *words]).splitlines()[0])
        else:
            lines.append(f"{program}: not installed")
    return lines


def run(about, figures, make_bench):
    """What the command line asks for of `figures`: the exit code."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="which; all by default")
    parser.add_argument("--list", action="store_true", help="name the figures and end")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument("--time", type=int, default=5, help="seconds of one measurement (5)")
    parser.add_argument("--dir", default=str(ROOT / "target/bench"), help="where files are made: names the disk")
    options = parser.parse_args()
    unknown = [name for name in options.figures if name not in figures]
    if options.list or unknown:
        print("\n".join(figures))
        return 2 if unknown else 0
    if (os.cpu_count() or 1) < 2:
        say("two cores are needed: one for the server, one for the client")
        return 1
    for program in [PROGRAM, LOAD]:
        if not program.exists():
            say(f"{program.name} is not built: cargo build --release --workspace")
            return 1
    print("\n".join(f"- {line}" for line in machine()))
    print(f"- {options.rounds} rounds of {options.time} s; server on core {SERVER_CORE}, client on core {CLIENT_CORE}")
    bench = make_bench(options)
    failed = []
    for name in options.figures or figures:
        say(f"{name}:")
        try:
            figures[name](bench)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            say(f"{name} failed: {error}")
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run(__doc__, FIGURES, Bench))
