"""What tools/bench measures: one short run of the trainer or of PyTorch at a time, each giving the seconds of its steps."""
import json
import os
import re
import signal
import statistics
import struct
import subprocess
import time
from random import Random

import runs

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 384, 6, 4096, 256
BATCH, MICRO_BATCHES = 8, 4
TOKENS = BATCH * POSITIONS
MLP_BATCH = 64


def gpt_flops():
    """Of a step, counted as the trainer counts (model::cost): products of matrices, attention's causal half."""
    linear = 6 * TOKENS * (12 * WIDTH**2 * LAYERS + WIDTH * VOCABULARY)
    attention = 12 * BATCH * POSITIONS * (POSITIONS + 1) / 2 * WIDTH * LAYERS
    return linear + attention


def gpt_config(steps, precision="float32", micro_batches=MICRO_BATCHES):
    config = runs.gpt_config(WIDTH, LAYERS, HEADS, VOCABULARY, POSITIONS, BATCH, micro_batches, steps)
    config["model"]["tie_embeddings"] = False
    config["optimizer"] = {"type": "adamw", "learning_rate": 3e-4, "betas": [0.9, 0.999], "weight_decay": 0.01}
    if precision != "float32":
        config["training"]["precision"] = precision
    return config


def write_images(folder, samples=1024):
    """IDX files of random pixels and labels: a data set that costs as little to read as PyTorch's tensor in memory."""
    chooser = Random(1)
    images, labels = folder / "images.idx", folder / "labels.idx"
    images.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, samples, 28, 28) + chooser.randbytes(samples * 784))
    labels.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, samples) + bytes(chooser.randrange(10) for _ in range(samples)))
    return {"type": "idx", "images": str(images), "labels": str(labels)}


def mlp_config(steps, data):
    return {
        "model": {"type": "mlp", "input_size": 784, "hidden_sizes": [512, 512], "output_size": 10, "activation": "relu"},
        "data": data,
        "training": {"steps": steps, "batch_size": MLP_BATCH, "loss": "cross_entropy", "seed": 1, "hang_timeout": 60},
        "optimizer": {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    }


def tiny_gpt_config(steps):
    return runs.gpt_config(64, 2, 4, 256, 64, 8, 2, steps)


class Job:
    """One cell of the table. run() measures once more; `seconds` are those of all steps but each run's first one."""

    def __init__(self, bench, name):
        self.bench, self.name = bench, name
        self.seconds, self.error = [], None
        self.facts = {}

    def run(self):
        if self.error is None:
            try:
                self.seconds += self.measure()
            except (runs.Failed, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                self.error = " ".join(str(error).split())[-300:] or repr(error)

    def best(self):
        return min(self.seconds) if self.seconds and self.error is None else None

    def as_json(self):
        if self.error is not None:
            return {"error": self.error}
        return {"best_seconds": min(self.seconds), "median_seconds": statistics.median(self.seconds),
                "seconds": [round(s, 6) for s in self.seconds], **self.facts}


class Trainer(Job):
    """`ranks` in this parallel layout, this many threads each."""

    def __init__(self, bench, name, config, threads=1, parallel=None):
        super().__init__(bench, name)
        self.threads, self.parallel = threads, parallel or runs.layout()
        self.folder = bench.folder / name
        self.folder.mkdir()
        config["logging"] = {"every_steps": 1, "directory": str(self.folder)}
        self.path = runs.write_config(self.folder / "config.json", config, self.parallel)

    def start(self):
        (self.folder / "metrics.jsonl").unlink(missing_ok=True)
        return runs.Run(self.bench.trainer, runs.ranks_of(self.parallel), ["--config", self.path, "--threads", self.threads],
                        self.folder / "run.log", self.bench.cores)

    def measure(self):
        with self.start() as run:
            if run.wait(self.bench.timeout) != 0:
                raise runs.Failed(f"exit code {run.code}: {run.tail()}")
        return self.read()

    def read(self):
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if "step_seconds" in row][1:]
        shares = [row["flops_share"] * row["step_seconds"] for row in steps if "flops_share" in row]
        if shares:  # seconds the step would take at the measured peak
            self.facts["seconds_at_peak"] = min(shares + [self.facts.get("seconds_at_peak", float("inf"))])
        self.facts["memory"] = json.loads((self.folder / "summary.json").read_text())["peak_memory"]
        bubble = re.search(r"predicted bubble ([\d.]+)%", (self.folder / "run.log").read_text())
        if bubble:
            self.facts["predicted_bubble"] = float(bubble[1]) / 100
        return [row["step_seconds"] for row in steps]


class Twice(Job):
    """Two independent runs at once; a step's seconds are those of one run that is as fast as both are together."""

    def __init__(self, bench, name, jobs):
        super().__init__(bench, name)
        self.jobs = jobs

    def measure(self):
        started = [job.start() for job in self.jobs]
        try:
            for run in started:
                if run.wait(self.bench.timeout) != 0:
                    raise runs.Failed(f"exit code {run.code}: {run.tail()}")
        finally:
            for run in started:
                run.__exit__()
        # The last step of one may have had the machine for itself.
        steps = [job.read()[:-1] for job in self.jobs]
        self.facts = {**self.jobs[0].facts, "processes": 2}
        return [1 / sum(1 / s for s in pair) for pair in zip(*steps)]


class TorchRun:
    """A process of bench_torch.py, with runs.Run's manners."""

    def __init__(self, bench, arguments, log, threads):
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": str(bench.folder / "inductor"),
                       "PYTHONDONTWRITEBYTECODE": "1"}
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                [bench.python, runs.ROOT / "tools/bench_torch.py", *map(str, arguments)], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, bench.cores))

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds):
        try:
            self.out = self.process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            raise runs.Failed(f"still running after {seconds} s") from None
        self.code = self.process.returncode
        return self.code

    def tail(self):
        return " ".join(self.log.read_text(errors="replace").split("\n")[-6:])


class Torch(Job):
    def __init__(self, bench, name, arguments, threads=1):
        super().__init__(bench, name)
        self.arguments, self.threads = [*arguments, "--threads", threads], threads

    def start(self):
        self.running = TorchRun(self.bench, self.arguments, self.bench.folder / f"{self.name}.log", self.threads)
        return self.running

    def measure(self):
        run = self.start()
        try:
            if run.wait(self.bench.timeout) != 0:
                raise runs.Failed(f"exit code {run.code}: {run.tail()}")
        finally:
            run.__exit__()
        return self.read()

    def read(self):
        facts = json.loads(self.running.out.decode().splitlines()[-1])
        seconds = facts.pop("seconds", [])
        self.facts.update(facts)
        return seconds[1:]


class Startup(Job):
    """Seconds from starting `command` to the first line of its output that holds `text`."""

    def __init__(self, bench, name, command, text="", times=1):
        super().__init__(bench, name)
        self.command, self.text, self.times = [str(part) for part in command], text.encode(), times

    def measure(self):
        return [self.once() for _ in range(self.times)]

    def once(self):
        begin = time.perf_counter()
        with subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              cwd=self.bench.folder, preexec_fn=lambda: os.sched_setaffinity(0, self.bench.cores)) as process:
            found, seen = None, []
            for line in process.stdout:
                seen.append(line)
                if found is None and self.text in line:
                    found = time.perf_counter() - begin
            if process.wait() != 0 or found is None:
                raise runs.Failed(f"exit code {process.returncode}: {b' '.join(seen[-3:]).decode(errors='replace')}")
        return found
