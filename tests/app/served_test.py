#!/usr/bin/env python3
"""Runs with parameter servers that are killed at random moments and resumed: every sample counted once, the logs' replay
is the run's state, bulk-synchronous runs have the bits of an uninterrupted one. Stopped replicas, status, bad logs.

usage: served_test.py --trainer build/trainer [--trials N] [--seed S]
"""
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs
from launch import HARD_LIMIT, Failed, Place, Run

USAGE, STORAGE, HANG, INTERRUPTED = 2, 4, 6, 75
SAMPLES, BATCH, STEPS = 100, 24, 40
# Mesh (data, pipeline, tensor), servers and keys of parallel.
FORMS = [
    ((3, 1, 1), 1, {"consistency": "async"}),
    ((2, 1, 1), 2, {"consistency": "bsp"}),
    ((3, 1, 1), 2, {"consistency": "async", "tasks": True, "task_batches": 3}),
    ((2, 2, 1), 1, {"consistency": "async", "notify": True}),
    ((3, 1, 1), 1, {"consistency": "bsp", "notify": True}),
    ((2, 1, 1), 2, {"consistency": "ssp", "staleness": 1}),
    ((2, 1, 2), 1, {"consistency": "async", "tasks": True}),
    ((2, 1, 1), 1, {"consistency": "ssp", "staleness": 2, "tasks": True}),
]


def place_of(arguments, folder, form):
    (data, pipeline, tensor), servers, keys = form
    folder.mkdir()
    place = Place(arguments.trainer, data * pipeline * tensor + servers, folder)
    place.replica_ranks = pipeline * tensor
    config = place.gpt(steps=STEPS, batch_size=BATCH, gradient_clip=0.5)
    config["training"]["micro_batches"] = 2
    config["data"]["samples"] = SAMPLES
    # One replica is slower, and all are slow enough to be hit.
    config["parallel"] = {"data": data, "pipeline": pipeline, "tensor": tensor, "exchange": "server", "servers": servers,
                          "injected_delay": [3] + [1] * (data - 1), **keys}
    config["checkpoint"].update(every_steps=5, keep=2)
    return place, config


def replay(place, *arguments):
    command = [runs.mpiexec(), "-n", place.replica_ranks, place.trainer, "replay", place.directory, "--threads", 1, *arguments]
    return Run(command, place.folder)


def pushes(path):
    """(first, count) of every batch that a server's log says was counted."""
    found = []
    for line in path.read_text().splitlines()[2:]:
        words = line.split()
        if words[1] == "push":
            found.append((int(words[9]), int(words[10])))
    return found


def counted_once(place, servers, until):
    for server in range(servers):
        times = [0] * until
        for first, count in pushes(place.directory / f"exchange-{server}.log"):
            for sample in range(first, first + count):
                times[sample] += 1
        if wrong := [sample for sample, n in enumerate(times) if n != 1]:
            raise Failed(f"server {server}: {len(wrong)} positions of the stream do not count once; the first is "
                         f"{wrong[0]}, which counts {times[wrong[0]]} times")


def same_as_replay(place):
    with replay(place, "--overwrite") as run:
        run.expect(0, messages=0, limit=HARD_LIMIT)
        if "the same bits as" not in run.out:
            raise Failed(f"the replay does not say what it found\n{run.out}")


def exported(place, name):
    out = place.folder / name
    with place.alone("export", "--checkpoint", place.directory, "--format", "safetensors", "--out", out) as run:
        run.expect(0, messages=0)
    return (out / "model.safetensors").read_bytes()


def uninterrupted(place, config, kept):
    """The bytes that a run of this form exports; bulk-synchronous ones have always the same."""
    key = str(sorted(config["parallel"].items()))
    if key not in kept:
        place.train(config)
        kept[key] = exported(place, "whole")
        shutil.rmtree(place.directory)
    return kept[key]


def kill_and_resume(arguments, folder, form, random, kept):
    place, config = place_of(arguments, folder, form)
    together = form[2]["consistency"] == "bsp"
    expected = uninterrupted(place, config, kept) if together else None
    kills = 0
    while True:
        before = place.steps_done()
        with place.start(config, *(["--resume"] if kills else [])) as run:
            if kills < 3:
                wait_until = min(before, STEPS - 6) + random.randrange(0, 16)
                while run.process.poll() is None and place.steps_done() < wait_until:
                    time.sleep(0.005)
                time.sleep(random.random() * 0.05)
                victims = run.rank_pids()
                if run.process.poll() is None and victims:
                    kills += 1
                    os.kill(random.choice(victims), signal.SIGKILL)
                    run.wait()
                    if run.code != 0:
                        continue
            run.expect(0, messages=None, limit=HARD_LIMIT, aborts=True)
            break
    place.whole()
    counted_once(place, form[1], STEPS * BATCH)
    same_as_replay(place)
    if together and exported(place, "killed") != expected:
        raise Failed("the weights are not those of the uninterrupted run")
    return kills


def stopped_worker(arguments, folder):
    place, config = place_of(arguments, folder, FORMS[2])
    config["training"]["steps"] = 10_000
    config["parallel"]["timeout"] = 2
    config["checkpoint"]["every_steps"] = 50
    with place.start(config) as run:
        # Between two checkpoints: where all save together, training.hang_timeout holds.
        run.until(lambda: place.steps_done() % 50 in range(5, 35) and place.checkpoints(), "the first checkpoint")
        run.fault()
        os.kill(run.rank_pids()[1], signal.SIGSTOP)
        run.expect(HANG, ("replica 1 (rank 1) has been silent for 2.", " samples ", "clock ", "task ", "--resume"),
                   limit=8, aborts=True)
    with place.alone("status", place.directory) as run:
        run.expect(0, messages=0)
        if "failed" not in run.out or "with code 6" not in run.out or "replica 1 (rank 1)" not in run.out:
            raise Failed(f"the status does not say how it ended\n{run.out}")
    done = int(place.checkpoints()[-1].name.removeprefix("step-"))
    config["training"]["steps"] = 10_000
    config["training"]["time_limit"] = 1
    with place.start(config, "--resume") as run:
        run.expect(INTERRUPTED, ("stopped after step", "--resume"), limit=HARD_LIMIT)
        if f"resuming after step {done}" not in run.err:
            raise Failed(f"it does not resume\n{run.err}")
    # Stopped in the middle of its tasks: the next part fills the holes.
    last = int(place.checkpoints()[-1].name.removeprefix("step-"))
    del config["training"]["time_limit"]
    config["training"]["steps"] = last + 8
    with place.start(config, "--resume") as run:
        run.expect(0, messages=0, limit=HARD_LIMIT)


def stopped_and_resumed(arguments, folder):
    """A request to stop, again and again: the pieces make the whole."""
    place, config = place_of(arguments, folder, FORMS[2])
    for part in range(12):
        with place.start(config, *(["--resume"] if part else [])) as run:
            before = place.steps_done()
            while run.process.poll() is None and place.steps_done() < before + 3:
                time.sleep(0.005)
            run.process.send_signal(signal.SIGTERM)
            run.wait()
            if run.code == 0:
                break
            if run.code != INTERRUPTED:
                raise Failed(f"exit code {run.code}\n{run.err}")
    else:
        place.train(config, "--resume")
    counted_once(place, 2, STEPS * BATCH)
    same_as_replay(place)


def status_of_a_run(arguments, folder):
    place, config = place_of(arguments, folder, FORMS[2])
    config["training"]["steps"] = 10_000
    with place.start(config) as run:
        run.until(lambda: (place.directory / "status.json").exists() and place.steps_done() > 12, "a status")
        time.sleep(1.2)
        with place.alone("status", place.directory) as status:
            status.expect(0, messages=0)
            for fact in ("running for", "of 10000", "consistency async", "replica", "samples/s", "task", "stale by", "computing"):
                if fact not in status.out:
                    raise Failed(f"the status lacks '{fact}'\n{status.out}")
        with place.alone("status", place.directory, "--watch") as watch:
            time.sleep(1.5)
            run.process.send_signal(signal.SIGTERM)
            run.expect(INTERRUPTED, ("stopped on request",))
            watch.expect(0, messages=0, limit=HARD_LIMIT)
            if "interrupted" not in watch.out.split("\n\n")[-3] + watch.out:
                raise Failed(f"--watch does not tell the end\n{watch.out}")


def bad_logs(arguments, folder):
    place, config = place_of(arguments, folder, FORMS[0])
    config["training"]["steps"] = 10
    place.train(config)
    log = place.directory / "exchange-0.log"
    text = log.read_text()

    def refused(code, *facts):
        with replay(place, "--overwrite") as run:
            run.expect(code, facts)

    lines = text.splitlines(keepends=True)
    push = next(i for i, line in enumerate(lines) if " push " in line)
    log.write_text("".join(lines[:push] + lines[push + 1:]))
    refused(STORAGE, f"exchange-0.log:{push + 1}: has sequence number")
    log.write_text("".join(lines[:push] + [lines[push].replace("version 1", "version 7")] + lines[push + 1:]))
    refused(STORAGE, f"exchange-0.log:{push + 1}: has version 7", "contradicts itself")
    log.write_text("".join(lines[:-9]))
    refused(STORAGE, "exchange-0.log", "the checkpoint counts on")
    log.write_text(text.replace("samples 0 8", "samples 8 8", 1))
    refused(STORAGE, "exchange-0.log")
    log.unlink()
    refused(STORAGE, "exchange-0.log: is missing")
    log.write_text(text[:-7])  # torn behind the last checkpoint is no harm, but this one is needed
    refused(STORAGE, "exchange-0.log")
    log.write_text(text + "9")
    same_as_replay(place)
    with replay(place) as run:
        run.expect(USAGE, ("--output", "--overwrite"))
    # Other weights than the log gives are found.
    shard = next((place.directory / "step-00000010").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    with replay(place, "--overwrite") as run:
        run.expect(0, messages=None, limit=HARD_LIMIT)  # damaged: the older one is replayed
        if "step-00000005" not in run.out:
            raise Failed(f"the damaged checkpoint was not passed over\n{run.out}{run.err}")


def work(arguments, folder):
    choice = random.Random(arguments.seed)
    kept, kills, trial = {}, 0, 0
    while kills < arguments.trials:
        form = FORMS[trial % len(FORMS)]
        try:
            kills += kill_and_resume(arguments, folder / f"trial-{trial}", form, choice, kept)
        except Failed as error:
            raise runs.Failed(f"seed {arguments.seed}, trial {trial}, {form}: {error}") from None
        shutil.rmtree(folder / f"trial-{trial}")
        trial += 1
    print(f"{kills} kills in {trial} runs: every sample counted once, replays have the bits")
    for case in (stopped_worker, stopped_and_resumed, status_of_a_run, bad_logs):
        try:
            case(arguments, folder / case.__name__)
        except Failed as error:
            raise runs.Failed(f"{case.__name__}: {error}") from None
        print(f"{case.__name__}: as it should be")
    return 0


def main():
    parser = runs.parser(__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, help="kills at least (20)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and victims (1)")
    sys.exit(runs.main("served", work, parser.parse_args()))


if __name__ == "__main__":
    main()
