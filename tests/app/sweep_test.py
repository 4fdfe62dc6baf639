#!/usr/bin/env python3
"""`trainer sweep` on four ranks: combinations that run, those that cannot, and being stopped in the middle.

What is measured must be what training measures: the loss of each combination is, digit for digit, that of a training of
its own with so many steps. usage: sweep_test.py --trainer build/trainer
"""
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs

STEPS = 4


def expect(condition, what):
    if not condition:
        raise runs.Failed(what)


def config(folder):
    """A model of 4 units whose second and third take 4 ms each, so that the pipeline of 2 is faster than one rank."""
    delay = {"type": "delay", "forward_ms": 1, "backward_input_ms": 2, "backward_weight_ms": 1}
    made = {"model": {"type": "sequential", "input_size": 6,
                      "layers": [{"type": "linear", "output_size": 8}, delay, delay, {"type": "linear", "output_size": 3}]},
            "data": {"type": "synthetic", "samples": 256, "validation_fraction": 0.25},
            "training": {"epochs": 2, "batch_size": 16, "micro_batches": 4, "eval_every": 1, "hang_timeout": 30},
            "optimizer": {"type": "sgd", "learning_rate": 0.1},
            "checkpoint": {"directory": str(folder / "must-not-appear")}}
    return runs.write_config(folder / "model.json", made, {"data": 1, "tensor": 1})


def loss_of(arguments, folder, path, ranks, sets):
    log = folder / "alone.log"
    words = [word for one in sets for word in ("--set", one)]
    runs.train(arguments.trainer, ranks, ["--config", path, "--overwrite", "--set", f"training.steps={STEPS}",
                                          "--set", "training.epochs=null", "--set", "training.eval_every=0",
                                          "--set", "checkpoint.directory=", "--set", f"logging.directory={folder / 'alone'}",
                                          "--set", "logging.every_steps=1", *words], log, 60)
    lines = (folder / "alone/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)][-1]


def check_rows(arguments, folder, path):
    out = folder / "sweep"
    over = ["--over", "parallel.pipeline=1,2,8", "--over", "parallel.partition=flops,[2,2]", "--over",
            "optimizer.learning_rate=0.1,1e38"]
    runs.train(arguments.trainer, 4, ["sweep", "--config", path, *over, "--steps", STEPS, "--output", out],
               folder / "sweep.log", 120)
    log = (folder / "sweep.log").read_text()
    result = json.loads((out / "sweep.json").read_text())
    rows = {tuple(row["set"].values()): row for row in result["combinations"]}
    expect(len(rows) == 12, f"{len(rows)} combinations, expected 12")
    reasons = {("1", "[2,2]", "0.1"): "lists the units of 2 stages", ("8", "flops", "0.1"): "needs 8 ranks, but 4 were started",
               ("2", "flops", "1e38"): "diverged", ("1", "flops", "1e38"): "diverged", ("2", "[2,2]", "1e38"): "diverged"}
    codes = {("1", "[2,2]", "0.1"): 2, ("8", "flops", "0.1"): 2, ("2", "flops", "1e38"): 5}
    for key, reason in reasons.items():
        expect(rows[key]["state"] == "failed" and reason in rows[key]["reason"], f"{key}: {rows[key]}, expected {reason}")
        expect(reason in log, f"the table does not say: {reason}\n{log}")
    for key, code in codes.items():
        expect(rows[key]["exit_code"] == code, f"{key}: exit code {rows[key]['exit_code']}, expected {code}")
    done = {key: row for key, row in rows.items() if row["state"] == "done"}
    expect(set(done) == {("1", "flops", "0.1"), ("2", "flops", "0.1"), ("2", "[2,2]", "0.1")}, f"done: {sorted(done)}")
    for key, row in done.items():
        expect(row["ranks"] == int(key[0]), f"{key} ran on {row['ranks']} ranks")
        expect(row["steps"] == STEPS - 1, f"{key}: {row['steps']} measured steps")
        alone = loss_of(arguments, folder, path, row["ranks"],
                        [f"{name}={value}" for name, value in row["set"].items()])
        expect(row["loss"] == alone, f"{key}: loss {row['loss']}, {alone} in a training of its own")
        expect(row.get("peak_memory", 1) > 0 and row["predicted_memory"] > 0, f"{key}: memory {row}")
        # One rank does 4 micro-batches of 8 ms; two share the delays and cannot take half of that.
        least = 0.032 if key[0] == "1" else 0.016
        expect(row["step_seconds"] >= least, f"{key}: a step of {row['step_seconds']} s, less than its delays take")
    expect(all("bubble" in row for key, row in done.items() if key[0] == "2"), "no bubble of a pipeline")
    table = list(csv.DictReader((out / "sweep.csv").open(newline="")))
    expect([row["state"] for row in table] == [row["state"] for row in result["combinations"]], "CSV and JSON differ")
    expect(not (folder / "must-not-appear").exists(), "a sweep wrote a checkpoint")
    best = result["combinations"][result["fastest"]]
    expect(best["ranks"] == 2, f"the fastest is {best}")
    return result["best_command"], log


def check_winner(folder, command, log):
    """The printed command trains."""
    expect(command in log, f"the log does not show {command}\n{log}")
    words = shlex.split(command) + ["--set", "training.epochs=null", "--set", "training.steps=2", "--set", "checkpoint.directory="]
    expect(words[:3] == ["mpiexec", "-n", "2"], command)
    words[0] = runs.mpiexec()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    expect(done.returncode == 0 and "trained 2 steps" in done.stdout, f"{command}\n{done.stdout}{done.stderr}")


def check_refused_output(arguments, folder, path):
    command = [str(arguments.trainer), "sweep", "--config", str(path), "--over", "training.seed=1", "--output", str(folder / "sweep")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    expect(done.returncode == 2 and "is there already" in done.stderr, f"{done.returncode}: {done.stderr}")


def check_relations(arguments, folder, path):
    """A value that does not go with others is a row; the reason stands once. Where nothing can run, one message."""
    def sweep(*over):
        command = [str(arguments.trainer), "sweep", "--config", str(path), "--steps", "2"]
        for one in over:
            command += ["--over", one]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    done = sweep("training.micro_batches=3,4", "training.seed=1,2")
    expect(done.returncode == 0 and done.stdout.count("failed") == 2, f"{done.returncode}: {done.stdout}{done.stderr}")
    expect(done.stdout.count("not a multiple of micro_batches 3") == 1 and " and 1 more: " in done.stdout, done.stdout)
    done = sweep("training.micro_batches=3")
    expect(done.returncode == 2 and done.stderr.startswith("trainer: --over training.micro_batches=3: ") and not done.stdout,
           f"{done.returncode}: {done.stdout}{done.stderr}")


def check_halving(arguments, folder, path):
    out = folder / "halved"
    times = ("1", "11", "21", "31", "41")  # far apart: two measured steps decide the first round
    over = f"model.layers[1].forward_ms={','.join(times)}"
    runs.train(arguments.trainer, 1, ["sweep", "--config", path, "--over", over, "--steps", 12, "--halving", "--output", out],
               folder / "halved.log", 120)
    rows = {row["set"]["model.layers[1].forward_ms"]: row for row in json.loads((out / "sweep.json").read_text())["combinations"]}
    expect([rows[ms]["state"] for ms in times] == ["done", "done", "dropped", "dropped", "dropped"], f"{rows}")
    # Rounds of 3, 6 and 12 steps for 5, 3 and 2 combinations; the first step of each run is not measured.
    expect([rows[ms]["steps"] for ms in times] == [11, 11, 5, 2, 2], f"{rows}")
    expect(json.loads((out / "sweep.json").read_text())["fastest"] == 0, "the fastest is not the one with least delay")


def check_interrupted(arguments, folder, path):
    out = folder / "stopped"
    with runs.Run(arguments.trainer, 4, ["sweep", "--config", path, "--over", "training.seed=1,2,3", "--set",
                                         "parallel.pipeline=2", "--steps", 150, "--output", out], folder / "stopped.log") as run:
        end = time.monotonic() + 60
        while "[1/3]" not in run.log.read_text(errors="replace"):
            expect(time.monotonic() < end and not run.ended(), f"no combination was done{run.tail()}")
            time.sleep(0.05)
        os.kill(run.process.pid, signal.SIGINT)
        code = run.wait(30)
        expect(code == 75, f"exit code {code}, expected 75{run.tail()}")
        expect(run.ranks_gone(5), "ranks are left")
    states = [row["state"] for row in json.loads((out / "sweep.json").read_text())["combinations"]]
    expect(states == ["done", "interrupted", "not run"], f"{states}{run.tail()}")


def work(arguments, folder):
    path = config(folder)
    command, log = check_rows(arguments, folder, path)
    check_winner(folder, command, log)
    check_refused_output(arguments, folder, path)
    check_relations(arguments, folder, path)
    check_halving(arguments, folder, path)
    check_interrupted(arguments, folder, path)
    print("sweep: rows, reasons, losses, the winner's command, halving and a stop are as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(runs.main("sweep", work, runs.parser(__doc__.splitlines()[0]).parse_args()))
