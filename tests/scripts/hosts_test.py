#!/usr/bin/env python3
"""The trainer over several hosts (tools/hosts): the bits, traces, errors and ends of one host. 77 where hosts cannot be made.

usage: hosts_test.py --trainer build/trainer --comm-test build/tests/mpi/mpi_comm_test
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS / "lib"))
import runs

HOSTS = TOOLS / "hosts"
LIMIT = 90  # seconds for a command
SKIP, USAGE, INTERRUPTED = 77, 2, 75
STEPS, MICRO_BATCHES = 6, 4
# Parallel section, and hosts × ranks a host on which it runs. Blocks of ranks go to hosts: tensor innermost, then data.
LAYOUTS = [
    (runs.layout(data=2), [(2, 1)]),
    (runs.layout(tensor=2), [(2, 1)]),
    (runs.layout(pipeline=2, schedule="zb-v"), [(2, 1)]),
    ({**runs.layout(pipeline=2, schedule="interleaved"), "chunks": 2}, [(2, 1)]),
    (runs.layout(data=2, pipeline=2), [(2, 2), (4, 1)]),
    (runs.layout(data=2, tensor=2), [(2, 2), (4, 1)]),
    (runs.layout(pipeline=4, schedule="zb-h1"), [(2, 2)]),
    (runs.layout(pipeline=2, tensor=2, schedule="zb-h2"), [(2, 2)]),
    (runs.layout(data=4), [(2, 2)]),
    (runs.layout(data=2, pipeline=2, tensor=2), [(4, 2)]),
    # Two servers beside the mesh: bsp, so the bits do not depend on who is first.
    ({**runs.layout(data=2), "exchange": "server", "servers": 2}, [(4, 1), (2, 2)]),
]


def config_of(directory, steps=STEPS, every=0):
    config = runs.gpt_config(32, 4, 2, 97, 16, 16, MICRO_BATCHES, steps)
    config["model"].update(tie_embeddings=True, dropout=0.1)
    config["data"]["validation_fraction"] = 0.1
    config["checkpoint"] = {"directory": str(directory), "every_steps": every, "keep": 2}
    config["logging"] = {"every_steps": 1}
    return config


def ranks_of(parallel):
    return runs.ranks_of(parallel) + parallel.get("servers", 0)


class Job:
    """The trainer on one host (hosts = 0) or several; killed with everything below it when `with` is left."""

    def __init__(self, arguments, log, hosts, ranks, *flags):
        program = [str(arguments.trainer), *map(str, flags), "--threads", "1"]
        command = [runs.mpiexec(), "-n", str(ranks)] if hosts == 0 else \
            [str(HOSTS), "run", "--hosts", str(hosts), "--ranks-per-host", str(ranks // hosts), "--"]
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen(command + program, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                            cwd=log.parent, start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        below = runs.descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        for pid in below:
            runs.kill(pid, signal.SIGKILL)

    def wait(self, code, seconds=LIMIT):
        try:
            found = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise runs.Failed(f"still running after {seconds} s: {self.text()[-2000:]}") from None
        if found not in (code if isinstance(code, set) else (code,)):
            raise runs.Failed(f"exit code {found}, expected {code}: {self.text()[-2000:]}")

    def text(self):
        return self.log.read_text(errors="replace")


def losses(directory):
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


def result(arguments, folder, name):
    """What may not depend on where ranks are: losses, norms and the exported weights."""
    return losses(folder / name), runs.export(arguments.trainer, folder / name, folder / f"{name}-export")


def train(arguments, folder, name, parallel, hosts, *flags, config=None):
    path = runs.write_config(folder / f"{name}.json", config or config_of(folder / name), parallel)
    with Job(arguments, folder / f"{name}.log", hosts, ranks_of(parallel), "--config", path, *flags) as job:
        job.wait(0)
        said = f"on {hosts} nodes" if hosts else None
        if (said and said not in job.text()) or (not said and " nodes" in job.text()):
            raise runs.Failed(f"{hosts} hosts, but the run says: {job.text()[:600]}")


def same_bits(arguments, folder):
    for number, (parallel, places) in enumerate(LAYOUTS):
        train(arguments, folder, f"one-{number}", parallel, 0)
        expected = result(arguments, folder, f"one-{number}")
        if len(expected[0]) != STEPS:
            raise runs.Failed(f"{len(expected[0])} steps in metrics.jsonl, {STEPS} expected")
        for hosts, ranks in places:
            name = f"hosts-{number}-{hosts}x{ranks}"
            train(arguments, folder, name, parallel, hosts)
            if result(arguments, folder, name) != expected:
                raise runs.Failed(f"{runs.show_layout(parallel)} over {hosts} hosts of {ranks}: other bits than on one host")
            print(f"{runs.show_layout(parallel)}: {hosts} hosts of {ranks}, the bits of one host", flush=True)


def check_trace(path):
    """Arrows do not go back in time by more than the clocks' stated error (of each end); clocks are 1000 s apart."""
    trace = json.loads(path.read_text())
    error = trace["otherData"]["clock error ns"] / 1000
    if not 0 < error < 50_000:
        raise runs.Failed(f"the stated error of the clocks is {error} us")
    ends = {}
    for event in trace["traceEvents"]:
        if event["ph"] in "sf":
            ends.setdefault(event["id"], {})[event["ph"]] = event
    across = [pair for pair in ends.values() if len(pair) == 2]
    if len(across) != 2 * 2 * 2 * MICRO_BATCHES:  # forward and backward, replicas, steps
        raise runs.Failed(f"{len(across)} arrows in the trace")
    for pair in across:
        if pair["s"]["ts"] > pair["f"]["ts"] + 2 * error:
            raise runs.Failed(f"an arrow goes back in time by {pair['s']['ts'] - pair['f']['ts']} us, error {error} us: {pair}")
        if pair["f"]["ts"] - pair["s"]["ts"] > 60e6:
            raise runs.Failed(f"an arrow of a minute: {pair}")
    return error


def trace_and_metrics(arguments, folder):
    parallel = runs.layout(data=2, pipeline=2)
    for hosts in (2, 4):
        name = f"trace-{hosts}"
        train(arguments, folder, name, parallel, hosts, "--trace", folder / f"{name}.trace", "--trace-steps", "3:4")
        error = check_trace(folder / f"{name}.trace")
        for line in (folder / name / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            if "time" not in row:
                continue
            parts = row["time"].values()
            if any(len(part) != 4 or min(part) < 0 for part in parts) or \
                    abs(sum(part[0] for part in parts) - row["step_seconds"]) > 1e-7:
                raise runs.Failed(f"the parts of step {row['step']} do not sum to {row['step_seconds']}: {row['time']}")
        print(f"trace over {hosts} hosts: arrows forward in time, clocks within {error:.0f} us", flush=True)


def wrong_configuration(arguments, folder):
    config = config_of(folder / "wrong")
    config["model"]["hiden_size"] = 3
    path = runs.write_config(folder / "wrong.json", config, runs.layout(data=2, pipeline=2))
    with Job(arguments, folder / "wrong.log", 2, 4, "--config", path) as job:
        job.wait(USAGE)
        said = [line for line in job.text().splitlines() if line.strip()]
        if len(said) != 1 or "hiden_size" not in said[0] or "hidden_size" not in said[0]:
            raise runs.Failed(f"not one message: {job.text()}")
    print("a wrong configuration: one message, exit code 2", flush=True)


def interrupted(arguments, folder):
    """SIGTERM to the tool, and kill -9 of a rank on the second host: the run ends, and goes on to the bits of a whole one."""
    parallel, steps = runs.layout(data=2, pipeline=2), 60
    train(arguments, folder, "whole", parallel, 0, config=config_of(folder / "whole", steps, 5))
    expected = result(arguments, folder, "whole")
    for kind in ("SIGTERM", "kill -9"):
        name = kind.replace(" ", "")
        directory = folder / name
        config = config_of(directory, steps, 5)
        path = runs.write_config(folder / f"{name}.json", config, parallel)
        with Job(arguments, folder / f"{name}.log", 2, 4, "--config", path, "--set", "training.steps=1000000") as job:
            end = time.monotonic() + LIMIT
            while not list(directory.glob("step-*/manifest.json")):
                if time.monotonic() > end or job.process.poll() is not None:
                    raise runs.Failed(f"no checkpoint: {job.text()}")
                time.sleep(0.002)
            ranks = sorted(pid for pid in runs.descendants(job.process.pid) if runs.runs_program(pid, arguments.trainer))
            if len(ranks) != 4:
                raise runs.Failed(f"{len(ranks)} processes of the trainer, 4 expected")
            runs.kill(*((job.process.pid, signal.SIGTERM) if kind == "SIGTERM" else (ranks[-1], signal.SIGKILL)))
            # Of a killed rank mpiexec of several hosts gives its own view: mostly 9 or 137, 1 or 255 where a proxy stumbled.
            job.wait(INTERRUPTED if kind == "SIGTERM" else set(range(1, 256)) - {INTERRUPTED}, 20)
            if any(runs.runs_program(pid, arguments.trainer) for pid in ranks):
                raise runs.Failed(f"ranks are left after {kind}")
        step = max(int(found.parent.name.removeprefix("step-")) for found in directory.glob("step-*/manifest.json"))
        if step >= steps:
            raise runs.Failed(f"{kind} came after step {step}; the test needs it before {steps}")
        train(arguments, folder, name, parallel, 2, "--resume", config=config)
        if result(arguments, folder, name) != expected:
            raise runs.Failed(f"{kind} and a resumption over two hosts: other bits than the whole run on one")
        print(f"{kind}, resumed after step {step}: the bits of a whole run on one host", flush=True)


def killed_tool(arguments, folder):
    """kill -9 of the tool takes every process with it, and so namespaces and links."""
    config = config_of(folder / "killed", 1_000_000)
    path = runs.write_config(folder / "killed.json", config, runs.layout(data=2, pipeline=2))
    with Job(arguments, folder / "killed.log", 2, 4, "--config", path) as job:
        end = time.monotonic() + LIMIT
        while len(below := runs.descendants(job.process.pid)) < 8 or "step " not in job.text():
            if time.monotonic() > end:
                raise runs.Failed(f"it does not begin: {job.text()}")
            time.sleep(0.01)
        job.process.kill()
        job.process.wait()
        end = time.monotonic() + 10
        while left := [pid for pid in below if os.path.exists(f"/proc/{pid}/ns/net")]:
            if time.monotonic() > end:
                raise runs.Failed(f"processes {left} are left")
            time.sleep(0.02)
    print("kill -9 of the tool: nothing is left", flush=True)


def comm_tests(arguments, folder):
    """Messages, sums and who shares memory with whom, over hosts; with slow links too."""
    for hosts, ranks, more in ((2, 2, ()), (4, 1, ()), (2, 1, ("--mbit", "500"))):
        command = [HOSTS, "run", "--hosts", hosts, "--ranks-per-host", ranks, *more, "--", arguments.comm_test]
        done = subprocess.run(["timeout", "-k", "5", str(LIMIT), *map(str, command)], capture_output=True, text=True,
                              env={**os.environ, "TEST_RANKS_ON_NODE": str(ranks)}, cwd=folder)
        if done.returncode != 0:
            raise runs.Failed(f"{arguments.comm_test.name} over {hosts} hosts of {ranks}: {done.stdout}{done.stderr}")
        print(f"{arguments.comm_test.name}: {hosts} hosts of {ranks} {' '.join(more)}", flush=True)


def usage():
    for words, fact in (((), "required"), (("run", "--hosts", "0", "--", "true"), "from 1"),
                        (("run", "--mbit", "fast", "--", "true"), "'fast'"), (("run", "--", "no-such-program"), "no-such-program")):
        done = subprocess.run([str(HOSTS), *words], capture_output=True, text=True, timeout=20)
        if done.returncode != USAGE or fact not in done.stderr:
            raise runs.Failed(f"tools/hosts {' '.join(words)}: exit code {done.returncode}, {done.stderr}")
    nobody = subprocess.run([sys.executable, str(HOSTS), "run", "--", "/bin/true"], capture_output=True, text=True, timeout=20,
                            env={**os.environ, "PATH": "/nowhere"})
    if nobody.returncode != SKIP or "tools/setup" not in nobody.stderr:
        raise runs.Failed(f"without its programs: exit code {nobody.returncode}, {nobody.stderr}")


def work(arguments, folder):
    able = subprocess.run([str(HOSTS), "check"], capture_output=True, text=True, timeout=30)
    if able.returncode != 0:
        print(f"skipped: {able.stderr.strip()}")
        return SKIP if able.returncode == SKIP else 1
    usage()
    comm_tests(arguments, folder)
    wrong_configuration(arguments, folder)
    same_bits(arguments, folder)
    trace_and_metrics(arguments, folder)
    interrupted(arguments, folder)
    killed_tool(arguments, folder)
    return 0


def main():
    parser = runs.parser(__doc__.splitlines()[0])
    parser.add_argument("--comm-test", type=Path, required=True, help="the program of tests/mpi/comm_test.cpp")
    arguments = parser.parse_args()
    arguments.comm_test = arguments.comm_test.resolve()
    sys.exit(runs.main("hosts", work, arguments))


if __name__ == "__main__":
    main()
