#!/usr/bin/env python3
"""Measures what a pair costs and how long its clients wait when a node dies, and prints tables of docs/performance.md.

    tools/bench/pair.py                         every figure, to standard output
    tools/bench/pair.py mirror-d1 takeover      some of them
    tools/bench/pair.py --list                  what there is

Method: as tools/bench/peers.py, whose tools it uses. Two nodes as `twinlog up` makes them, connected by a Unix socket, node a on core 0; node b
shares core 1 with the client, so a pair has no more processors than the single node that it is compared with. Where the logs are said to be in
memory they are files on a tmpfs.

It needs Python 3.9, programs built with `cargo build --release --workspace`, and cargo for the bare round trip, which is a bench.
"""

import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from peers import (CLIENT_CORE, LOAD, MIB, PROGRAM, ROOT, SERVER_CORE, Bench, cell, first_iops, log_fill, output_of, pinned, run, say,
                   table)

CORES = {"a": SERVER_CORE, "b": CLIENT_CORE}
VOLUME = "vol-a"
MEMORY = pathlib.Path("/dev/shm")
PATIENCE_S = 60


class Pair:
    """Two nodes below one directory; a node runs until it is stopped or killed. Client and load are for node a's volume."""

    def __init__(self, folder, log_in_memory, size, interconnect="auto"):
        self.folder = pathlib.Path(folder)
        self.dir = self.folder / "pair"
        self.nodes = {}
        self.make(size)
        for node in CORES:
            config = self.dir / node / "node.toml"
            config.write_text(config.read_text().replace('interconnect = "auto"', f'interconnect = "{interconnect}"'))
        if log_in_memory:
            self.memory = tempfile.TemporaryDirectory(dir=MEMORY, prefix="twinlog-bench-")
            for node in CORES:
                for name in ["log", "mirror"]:
                    there = pathlib.Path(self.memory.name) / f"{node}-{name}"
                    output_of(["mv", self.dir / node / name, there])
                    (self.dir / node / name).symlink_to(there)
        else:
            self.memory = contextlib.nullcontext()

    def make(self, size):
        """`up` makes both nodes and their volumes; it is stopped when they serve."""
        log = open(self.folder / "up.log", "wb")
        up = subprocess.Popen([PROGRAM, "up", "--size", str(size), self.dir], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until("the pair is made", lambda: b"serving" in (self.folder / "up.log").read_bytes())
            until("it is in step", self.is_in_step)
        finally:
            up.terminate()
            up.wait(PATIENCE_S)

    def start(self, *nodes):
        for node in nodes:
            log = open(self.folder / f"{node}.log", "ab")
            command = pinned(CORES[node], [PROGRAM, "serve", "--config", self.dir / node / "node.toml"])
            self.nodes[node] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, *nodes):
        for node in nodes or list(self.nodes):
            process = self.nodes.pop(node)
            process.terminate()
            process.wait(PATIENCE_S)

    def kill(self, node):
        process = self.nodes.pop(node)
        process.kill()
        process.wait()

    def place(self, node):
        return ["--dir", self.dir, "--node", node]

    def status(self, node):
        """What the node says of itself; empty while it does not answer."""
        done = subprocess.run([PROGRAM, "status", "-o", "json", *self.place(node)], capture_output=True, text=True)
        try:
            return json.loads(done.stdout)["status"] or {}
        except (ValueError, KeyError):
            return {}

    def is_in_step(self):
        """Whether both nodes serve their pools and nothing is left to be done."""
        seen = [self.status(node) for node in CORES]
        return all(status and self.serves(status) and all(pool["is_final"] for pool in status["pair"]["pools"]) for status in seen)

    @staticmethod
    def serves(status):
        return status.get("state") == "serving"

    def uri(self, node):
        return f"nbd+unix:///{VOLUME}?socket={self.dir / node / 'nbd.sock'}"


def until(what, look, limit_s=PATIENCE_S):
    give_up = time.monotonic() + limit_s
    while not (found := look()):
        if time.monotonic() > give_up:
            raise RuntimeError(f"waited in vain until {what}")
        time.sleep(0.05)
    return found


class PairBench(Bench):
    @contextlib.contextmanager
    def pair(self, nodes, log_in_memory=False, size=512 * MIB, interconnect="auto"):
        with tempfile.TemporaryDirectory(dir=self.place, prefix="q") as folder:
            pair = Pair(folder, log_in_memory, size, interconnect)
            with pair.memory:
                try:
                    pair.start(*nodes)
                    if len(nodes) == 2:
                        until("both nodes are in step", pair.is_in_step)
                    else:
                        until("the node serves alone", lambda: pair.serves(pair.status(nodes[0])))
                    yield pair
                finally:
                    pair.stop()

    def load_pair(self, pair, *arguments, node="a"):
        words = [pair.uri(node), "--time", self.seconds, "--warmup", 1, "--no-flush", "-o", "json", *arguments]
        return json.loads(output_of(pinned(CLIENT_CORE, [LOAD, *words])))


def latency_us(report):
    return next(entry["latency_ns"] for entry in report["classes"] if entry["kind"] == "write")["p50"] / 1e3


def round_trip_program():
    """The bare round trip, which is a bench: cargo knows where it lies."""
    done = output_of(["cargo", "bench", "--no-run", "--bench", "round_trip", "--message-format=json", "--manifest-path", ROOT / "Cargo.toml"])
    for line in done.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "round_trip" and message.get("executable"):
            return message["executable"]
    raise RuntimeError("cargo names no program for the round trip")


def round_trip_us(bench, program, *options):
    with tempfile.TemporaryDirectory(dir=bench.place, prefix="t") as folder:
        address = pathlib.Path(folder) / "s"
        server = subprocess.Popen(pinned(CORES["b"], [program, "serve", address, *options]))
        until("the other end listens", address.exists)
        printed = output_of(pinned(CORES["a"], [program, "measure", address, bench.seconds, *options]))
        server.wait(PATIENCE_S)
        return float(printed.split()[0])


def figure_mirror_d1(bench):
    """What a mirrored write takes longer than one of the same node alone, beside the bare round trip."""
    program = round_trip_program()
    for log_in_memory, where in [(True, "logs in memory"), (False, "logs in files on the disk")]:
        def by_load(nodes):
            with bench.pair(nodes, log_in_memory) as pair:
                return latency_us(bench.load_pair(pair, "--rw", "randwrite", "--bs", "4k", "--qd", 1))
        found = bench.compare([
            ("mirrored", lambda: by_load("ab")),
            ("the same node alone", lambda: by_load("a")),
            ("bare round trip, both ends sleep", lambda: round_trip_us(bench, program)),
            ("bare round trip, both ends spin", lambda: round_trip_us(bench, program, "--spin")),
        ])
        added = [with_mirror - alone for with_mirror, alone in zip(found["mirrored"], found["the same node alone"])]
        print_rows(f"4 KiB random write, depth 1, {where}: median latency of a run in us", found | {"added by mirroring": added})
        for name in ["bare round trip, both ends sleep", "bare round trip, both ends spin"]:
            print(f"| added / {name} | {statistics.median(added) / statistics.median(found[name]):.2f} |")


def figure_mirror_d32(bench):
    for log_in_memory, where in [(True, "logs in memory"), (False, "logs in files on the disk")]:
        def by_load(nodes):
            with bench.pair(nodes, log_in_memory) as pair:
                return first_iops(bench.load_pair(pair, "--rw", "randwrite", "--bs", "4k", "--qd", 32))
        found = bench.compare([("mirrored", lambda: by_load("ab")), ("the same node alone", lambda: by_load("a"))])
        table(f"4 KiB random write, depth 32, {where}: a pair and its client on two cores", found, "IOPS", digits=0, ours="mirrored")


def figure_interconnect(bench):
    """The interconnect on a thread of its own beside that on the reactor, of nodes that have one core each."""
    for depth in [1, 32]:
        def by_load(place):
            with bench.pair("ab", True, interconnect=place) as pair:
                return first_iops(bench.load_pair(pair, "--rw", "randwrite", "--bs", "4k", "--qd", depth))
        found = bench.compare([(place, lambda place=place: by_load(place)) for place in ["thread", "reactor"]])
        table(f"4 KiB random write, depth {depth}, logs in memory: where the interconnect runs", found, "IOPS", digits=0, ours="thread")


def full_log(pair, node):
    """Starts a load through `node` and returns when node a's log is as full as it gets."""
    command = [LOAD, pair.uri(node), "--rw", "randwrite", "--bs", "64k", "--qd", 64, "--time", 30, "--warmup", 0, "--no-flush",
               "--reconnect", 30, "-o", "json"]
    load = subprocess.Popen(pinned(CLIENT_CORE, command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    best, end = 0.0, time.monotonic() + 12
    while time.monotonic() < end:
        share = log_fill(pair.status("a"))
        if share >= 0.9 or (best > 0.5 and share >= best and time.monotonic() > end - 6):
            break
        best = max(best, share)
    return load


def events_after(pair, node, start):
    """What the node has noted since: (seconds from `start`, event, fields)."""
    printed = output_of([PROGRAM, "events", "-o", "jsonl", *pair.place(node)])
    noted = [json.loads(line) for line in printed.splitlines()]
    return [(event["time_ns"] / 1e9 - start, event["event"], event["fields"]) for event in noted if event["time_ns"] / 1e9 > start]


def phases_ms(noted):
    """How long each part of a takeover took, in the order in which they follow each other."""
    def at(name, **fields):
        return next(time for time, event, found in noted if event == name and fields.items() <= found.items())
    ends = {
        "until the kernel has ended the process and the partner notices": at("the partner is not reached"),
        "fence": at("fence"),
        "register": at("register", swap="TakeOver"),
        "opening of the pool and replay": at("the pool serves"),
    }
    starts = [0.0, *ends.values()]
    return {f"{name}, ms": (end - start) * 1e3 for start, (name, end) in zip(starts, ends.items())}


def figure_takeover(bench):
    """SIGKILL of the owner under load with its log full; the client writes through the partner, which forwards, then takes over."""
    for log_in_memory, where in [(True, "logs in memory"), (False, "logs in files on the disk")]:
        rows = {}
        for number in range(bench.rounds):
            with bench.pair("ab", log_in_memory, 1024 * MIB) as pair:
                load = full_log(pair, "b")
                row = {"log in use before the kill, %": log_fill(pair.status("a")) * 100}
                killed = time.time()
                pair.kill("a")
                taken_over = lambda: pair.status("b").get("pair", {}).get("taken_over") or {}
                until("node b serves", lambda: pair.serves(taken_over()))
                printed, _ = load.communicate(timeout=PATIENCE_S)
                row["records of up to 64 KiB replayed"] = taken_over()["replayed_records"]
                row |= phases_ms(events_after(pair, "b", killed))
                row["longest pause of the client, ms"] = json.loads(printed)["longest_pause_seconds"] * 1e3
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
            say(f"  round {number + 1}: {row}")
        print_rows(f"Takeover after SIGKILL under load, log of 256 MiB, {where}", rows)


def print_rows(title, rows):
    print(f"\n### {title}\n\n| what | median (min–max) |\n|---|---|")
    for key, values in rows.items():
        print(f"| {key} | {cell(values)} |")


def figure_giveback(bench):
    """The pool of node a is handed to node b, under load through node a."""
    rows = {"longest pause of the client, ms": []}
    for number in range(bench.rounds):
        with bench.pair("ab", False, 1024 * MIB) as pair:
            command = [LOAD, pair.uri("a"), "--rw", "randwrite", "--bs", "4k", "--qd", 32, "--time", 8, "--warmup", 0, "--no-flush",
                       "--reconnect", 30, "-o", "json"]
            load = subprocess.Popen(pinned(CLIENT_CORE, command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            time.sleep(3)
            output_of([PROGRAM, "pair", "giveback", "a", *pair.place("a")])
            printed, _ = load.communicate(timeout=PATIENCE_S)
            rows["longest pause of the client, ms"].append(json.loads(printed)["longest_pause_seconds"] * 1e3)
            say(f"  round {number + 1}: {rows['longest pause of the client, ms'][-1]:.0f} ms")
    print_rows("A pool handed to the partner under load", rows)


FIGURES = {
    "mirror-d1": figure_mirror_d1,
    "mirror-d32": figure_mirror_d32,
    "interconnect": figure_interconnect,
    "takeover": figure_takeover,
    "giveback": figure_giveback,
}


if __name__ == "__main__":
    sys.exit(run(__doc__, FIGURES, PairBench))
