"""Starting the trainer under mpiexec from the measuring scripts: always with a time limit, and nothing left running."""
import argparse
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Failed(Exception):
    """A run did not do what the script needs it to do."""


def parser(description):
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--trainer", type=Path, default=ROOT / "build/trainer", help="the binary (build/trainer)")
    made.add_argument("--keep", action="store_true", help="leave the scratch folder, and name it")
    return made


def main(name, work, arguments):
    """Calls work(arguments, folder) with a scratch folder; returns the exit code."""
    if not os.access(arguments.trainer, os.X_OK):
        print(f"{name}: {arguments.trainer} is no program; build it: meson setup build && ninja -C build trainer", file=sys.stderr)
        return 2
    arguments.trainer = arguments.trainer.resolve()
    # A terminated script, too, ends its ranks and removes its folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix=f"trainer-{name}-"))
    try:
        return work(arguments, folder)
    except Failed as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    finally:
        if arguments.keep:
            print(f"{name}: kept {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def mpiexec():
    found = shutil.which("mpiexec.mpich") or shutil.which("mpiexec")
    if not found:
        raise Failed("no mpiexec; tools/setup installs mpich")
    return found


def gpt_config(hidden, layers, heads, vocab, positions, batch, micro_batches, steps):
    """A configuration on random tokens that writes nothing; a script adds what it needs."""
    return {
        "model": {"type": "gpt", "vocab_size": vocab, "context_length": positions, "hidden_size": hidden,
                  "num_layers": layers, "num_heads": heads},
        "data": {"type": "synthetic"},
        "training": {"steps": steps, "batch_size": batch, "micro_batches": micro_batches, "sequence_length": positions,
                     "loss": "cross_entropy", "gradient_clip": 1.0, "seed": 1, "hang_timeout": 60},
        "optimizer": {"type": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
    }


def layout(data=1, pipeline=1, tensor=1, schedule="1f1b"):
    return {"data": data, "pipeline": pipeline, "tensor": tensor, "schedule": schedule}


def ranks_of(parallel):
    return parallel["data"] * parallel["pipeline"] * parallel["tensor"]


def show_layout(parallel):
    return f"d{parallel['data']} p{parallel['pipeline']} t{parallel['tensor']} {parallel['schedule']}"


def write_config(path, config, parallel):
    path.write_text(json.dumps({**config, "parallel": parallel}, indent=1))
    return path


def descendants(pid):
    """Process ids below pid. The launcher gives each rank a session of its own, so a process group does not reach them."""
    children = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # ended meanwhile
        children.setdefault(parent, []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def runs_program(pid, program):
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")) == program
    except OSError:
        return False


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Run:
    """One mpiexec with the trainer below it. Leaving the `with` block ends whatever still runs.

    `launcher`: the words that start the trainer, itself the last of them, where that is not just mpiexec.
    """

    def __init__(self, trainer, ranks, arguments, log, cores=None, launcher=None):
        self.program = trainer
        self.log = log
        self.below = set()
        self.code = None
        self.cpu_seconds = 0.0
        affinity = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                list(map(str, [*(launcher or [mpiexec(), "-n", ranks, trainer]), *arguments])), stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True, preexec_fn=affinity)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.below.update(descendants(self.process.pid) if self.code is None else [])
        if self.code is None:
            self.process.kill()
            self.process.wait()
        for pid in self.below:
            if runs_program(pid, self.program):
                kill(pid, signal.SIGKILL)

    def rank_pids(self):
        found = descendants(self.process.pid)
        self.below.update(found)
        return [pid for pid in found if runs_program(pid, self.program)]

    def ended(self):
        """Whether mpiexec is gone; then code and cpu_seconds (of all ranks: mpiexec waits for them) are known."""
        if self.code is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                self.process.returncode = self.code
                self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return self.code is not None

    def wait(self, seconds):
        """The exit code. Throws Failed when the run takes longer."""
        end = time.monotonic() + seconds
        while not self.ended():
            if time.monotonic() > end:
                raise Failed(f"still running after {seconds} s: {self.tail()}")
            time.sleep(0.02)
        return self.code

    def ranks_gone(self, seconds):
        """Whether all ranks seen by rank_pids() end within `seconds`."""
        end = time.monotonic() + seconds
        while any(runs_program(pid, self.program) for pid in self.below):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def tail(self, lines=12):
        return "\n    ".join(["", *self.log.read_text(errors="replace").splitlines()[-lines:]])


def train(trainer, ranks, arguments, log, seconds, cores=None):
    """Runs to the end; returns the Run. Throws Failed when it exits with another code than 0 or takes too long."""
    with Run(trainer, ranks, arguments, log, cores) as run:
        if run.wait(seconds) != 0:
            raise Failed(f"exit code {run.code}: {run.tail()}")
        return run


def export(trainer, checkpoint, out, seconds=60):
    """The bytes of the exported model.safetensors."""
    command = [str(trainer), "export", "--checkpoint", str(checkpoint), "--format", "safetensors", "--out", str(out), "--overwrite"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise Failed(f"still running after {seconds} s: {' '.join(command)}") from None
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr}")
    return (out / "model.safetensors").read_bytes()


def read_safetensors(data):
    """{name: array of floats}; float32 only."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            raise Failed(f"{name} is {entry['dtype']}, expected F32")
        begin, end = entry["data_offsets"]
        tensors[name] = array("f", data[8 + size + begin : 8 + size + end])
    return tensors


def largest_difference(a, b):
    """The largest |x - y| over two exported models, and where; not-a-number anywhere counts as infinite."""
    one, other = read_safetensors(a), read_safetensors(b)
    if sorted(one) != sorted(other):
        raise Failed(f"exported names differ: {sorted(set(one) ^ set(other))}")
    worst = (0.0, "")
    for name in one:
        if len(one[name]) != len(other[name]):
            raise Failed(f"{name} has {len(one[name])} elements in one export and {len(other[name])} in the other")
        for x, y in zip(one[name], other[name]):
            difference = abs(x - y)
            if not difference <= worst[0]:
                worst = (difference if difference == difference else float("inf"), name)
    return worst


def write_words(path, size, seed):
    """A text with something to learn: random words of a small vocabulary."""
    chooser = random.Random(seed)
    letters = "etaoinshrdlu"
    words = ["".join(chooser.choice(letters) for _ in range(chooser.randint(2, 7))) for _ in range(200)]
    text, length = [], 0
    while length < size:
        text.append(chooser.choice(words))
        length += len(text[-1]) + 1
    path.write_text(" ".join(text) + "\n")
