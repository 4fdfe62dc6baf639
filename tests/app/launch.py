"""Starts the trainer under mpiexec for the tests that make it fail, and holds every end to the same rules.

An end: DESIGN.md's exit code, one error message from one rank that states what it should, within LIMIT seconds of the
fault, no process left, nothing half-written. All processes of a test are known by a variable in their environment, since
mpiexec gives each rank a session of its own.
"""
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

LIMIT = 5.0  # seconds from the fault to the end
HARD_LIMIT = 30.0  # seconds until a test ends what it started
MARK = "TRAINER_BAD_INPUT_TEST"
# What no person should have to read; the launcher's own lines about an abort or a killed rank are its business.
NOISE = ("terminate called", "what():", "bad_alloc", "std::", "Assertion", "Segmentation", "Sanitizer", "Fatal error in",
         "internal error", "Backtrace")
LAUNCHER_NOISE = ("application called MPI_Abort", "BAD TERMINATION", "Abort(")


class Failed(Exception):
    """The trainer did not do what the test expects."""


def find_mpiexec():
    return shutil.which("mpiexec.mpich") or shutil.which("mpiexec")


def pids_with(mark):
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue  # ended meanwhile
        if f"{MARK}={mark}".encode() in environment.split(b"\0") and state != "Z":
            found.append(int(entry))
    return found


def end_all(mark):
    for pid in pids_with(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Run:
    """A started command. Leaving the `with` block ends whatever still runs."""

    def __init__(self, command, folder, environment=None, **streams):
        self.mark = uuid.uuid4().hex
        self.folder = folder
        # MPI as it comes, whatever started the test.
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "MPI", "HYD", "OMPI_", "SLURM_"))}
        self.files = {name: open(folder / f"{name}-{self.mark}", "w+b") for name in ("stdout", "stderr")}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=folder, env={**clean, **(environment or {}), MARK: self.mark},
            start_new_session=True, stdin=streams.get("stdin", subprocess.DEVNULL),
            stdout=streams.get("stdout") or self.files["stdout"], stderr=self.files["stderr"],
            preexec_fn=streams.get("before_start"))
        self.code = None
        self.seconds = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end_all(self.mark)
        self.process.wait()
        for file in self.files.values():
            file.close()
            os.unlink(file.name)

    def text(self, name):
        return Path(self.files[name].name).read_text(errors="replace")

    @property
    def err(self):
        return self.text("stderr")

    @property
    def out(self):
        return self.text("stdout")

    def rank_pids(self):
        """Ranks in the order in which they were started."""
        ranks = []
        for pid in pids_with(self.mark):
            try:
                if Path(os.readlink(f"/proc/{pid}/exe")).name == "trainer":
                    ranks.append(pid)
            except OSError:
                continue
        return sorted(ranks)

    def until(self, happened, what, seconds=HARD_LIMIT):
        end = time.monotonic() + seconds
        while not happened():
            if self.process.poll() is not None:
                raise Failed(f"it ended with {self.process.returncode} before {what}\n{self.err}")
            if time.monotonic() > end:
                raise Failed(f"waited {seconds} s for {what}\n{self.err}")
            time.sleep(0.01)

    def fault(self):
        """The moment from which LIMIT counts; without it, the start."""
        self.began = time.monotonic()

    def wait(self, seconds=HARD_LIMIT):
        try:
            self.code = self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            raise Failed(f"still running after {seconds} s\n{self.err}") from None
        self.seconds = time.monotonic() - self.began
        return self

    def expect(self, code, facts=(), messages=1, limit=LIMIT, aborts=False):
        """Waits for the end and checks it. `code` may be a tuple of codes; `facts` are parts of the message."""
        self.wait()
        end = time.monotonic() + max(0.0, limit - self.seconds)
        while pids_with(self.mark) and time.monotonic() < end:
            time.sleep(0.02)
        if left := pids_with(self.mark):
            raise Failed(f"processes {left} are left {limit} s after the fault")
        if self.seconds > limit:
            raise Failed(f"took {self.seconds:.1f} s to end, at most {limit} are allowed\n{self.err}")
        codes = code if isinstance(code, tuple) else (code,)
        if self.code not in codes:
            raise Failed(f"exit code {self.code}, expected {code}\n{self.err}")
        lines = self.err.splitlines()
        said = [line for line in lines if line.startswith("trainer: ")]
        if messages is not None and len(said) != messages:
            raise Failed(f"{len(said)} messages, expected {messages}\n{self.err}")
        for noise in NOISE if aborts else NOISE + LAUNCHER_NOISE:
            if noise in self.err:
                raise Failed(f"'{noise}' in what it says\n{self.err}")
        for fact in facts:
            if not any(fact in line for line in (said or lines)):
                raise Failed(f"the message lacks '{fact}'\n{self.err}")
        if said and max(map(len, said)) > 1500:
            raise Failed(f"a message of {max(map(len, said))} characters\n{said[0][:300]}")
        return self


class Place:
    """A scratch folder of one test, with the trainer, a number of ranks and a tiny configuration."""

    # data, pipeline, tensor
    LAYOUTS = {1: (1, 1, 1), 2: (1, 2, 1), 4: (1, 2, 2), 8: (2, 2, 2)}

    def __init__(self, trainer, ranks, folder):
        self.trainer = trainer
        self.ranks = ranks
        self.folder = folder
        self.directory = folder / "run"

    def gpt(self, **training):
        data, pipeline, tensor = self.LAYOUTS.get(self.ranks, (self.ranks, 1, 1))
        return {
            "model": {"type": "gpt", "vocab_size": 256, "context_length": 8, "hidden_size": 16, "num_layers": 2,
                      "num_heads": 4},
            "data": {"type": "synthetic", "samples": 100, "validation_fraction": 0.1},
            "training": {"steps": 5, "batch_size": 16, "micro_batches": 2, "loss": "cross_entropy", **training},
            "optimizer": {"type": "adamw", "learning_rate": 1e-3},
            "parallel": {"data": data, "pipeline": pipeline, "tensor": tensor},
            "checkpoint": {"directory": str(self.directory)},
            "logging": {"every_steps": 1},
        }

    def mlp(self, **data):
        config = self.gpt()
        config["model"] = {"type": "mlp", "input_size": 4, "hidden_sizes": [8, 8], "output_size": 3, "activation": "relu"}
        config["data"] = {**data, "validation_fraction": 0.1}
        return config

    def write(self, config, name="model.json"):
        text = config if isinstance(config, (str, bytes)) else json.dumps(config, indent=1)
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def start(self, config, *arguments, **options):
        return self.start_command("--config", self.write(config), "--threads", 1, *arguments, **options)

    def start_command(self, *arguments, **options):
        command = [find_mpiexec(), "-n", self.ranks, self.trainer, *arguments]
        return Run(command, self.folder, **options)

    def alone(self, *arguments, **options):
        return Run([self.trainer, *arguments], self.folder, **options)

    def train(self, config=None, *arguments):
        """A run that must succeed."""
        with self.start(config or self.gpt(), *arguments) as run:
            run.expect(0, messages=0, limit=HARD_LIMIT)

    def refused(self, config, code, facts, *arguments, **options):
        """Training that must not begin: nothing may be left of it."""
        existed = self.directory.exists()
        with self.start(config, *arguments, **options) as run:
            run.expect(code, facts)
        if not existed and self.directory.exists():
            raise Failed(f"{self.directory} was made by a run that never began")

    def steps_done(self):
        try:
            return (self.directory / "metrics.jsonl").read_bytes().count(b'"loss"')
        except OSError:
            return 0

    def checkpoints(self):
        return sorted(path for path in self.directory.glob("step-*") if path.suffix != ".damaged")

    def nothing_half_written(self):
        left = [str(p) for p in self.folder.rglob(".*") if p.name != ".lock"]
        left += [str(p) for p in self.checkpoints() if not (p / "manifest.json").exists()]
        if left:
            raise Failed(f"left behind: {', '.join(left)}")

    def whole(self):
        """Every checkpoint that has its final name is whole, and there is one."""
        found = self.checkpoints()
        if not found:
            raise Failed("no checkpoint is left")
        for path in found:
            with self.alone("inspect", "--checkpoint", path, "--verify", "--json") as run:
                run.expect(0, messages=0)
