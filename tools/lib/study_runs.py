"""Starts one training of tools/study and makes a record (a JSON object) of what it left."""
import datetime
import json
import statistics

import bench_report
import runs
import study_plan

POINTS = 60         # of a kept curve
DIVERGED = 5        # the trainer's exit code
UNCOUNTED = 0.1     # share of the first steps that samples_per_second leaves out


def machine():
    about = bench_report.machine(bench_report.distinct_cores(1024))
    return f"{about['cores_used']} cores of {about['cpu']}, {about['system']}, Linux {about['kernel']}"


def command_of(arguments, ranks, setting, path, bytes_file):
    """The words before the trainer's own, and its own."""
    own = ["--config", path, "--threads", 1]
    if not setting.mbit:
        return [runs.mpiexec(), "-n", ranks, arguments.trainer], own
    tools = runs.ROOT / "tools"
    return [tools / "hosts", "run", "--hosts", ranks, "--mbit", setting.mbit, "--", tools / "lib/count_bytes", bytes_file,
            arguments.trainer], own


def counted_rows(rows, strategy):
    """Without what backup replicas compute for nothing, which metrics.jsonl counts as samples of a step."""
    share = strategy.counted()
    return [{**row, "samples": share * row["samples"]} if "samples" in row else row for row in rows]


def with_times(rows, total):
    """The rows of steps with `end`: seconds in steps until then. Steps between logged ones took what is left of `total`."""
    measured = sum(row["step_seconds"] for row in rows)
    between = (total - measured) / max(1, rows[-1]["step"] - len(rows))
    seconds, step, result = 0.0, 0, []
    for row in rows:
        seconds += row["step_seconds"] + between * (row["step"] - step - 1)
        step = row["step"]
        result.append({**row, "end": seconds})
    return result


def smoothed(rows):
    """[samples, seconds since the start, mean loss of the last tenth of the steps] at up to POINTS steps."""
    window = max(1, len(rows) // 10)
    last = len(rows) - 1
    chosen = sorted({round(i * last / (POINTS - 1)) for i in range(POINTS)})
    return [[rows[i]["samples"], round(rows[i]["end"], 6),
             round(statistics.fmean(row["loss"] for row in rows[max(0, i + 1 - window): i + 1]), 6)] for i in chosen]


def rate_of(rows):
    first = next(i for i, row in enumerate(rows) if row["step"] > UNCOUNTED * rows[-1]["step"] or i == len(rows) - 2)
    return (rows[-1]["samples"] - rows[first]["samples"]) / (rows[-1]["end"] - rows[first]["end"])


def facts_of(folder, bytes_file, strategy):
    rows = counted_rows(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()), strategy)
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "validation_loss" in row]
    if not evaluations or len(steps) < 3:
        raise runs.Failed(f"{folder}/metrics.jsonl has {len(steps)} steps and {len(evaluations)} evaluations")
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    steps = with_times(steps, seconds)
    facts = {"first_loss": steps[0]["loss"], "final_loss": evaluations[-1]["validation_loss"],
             "accuracy": evaluations[-1].get("accuracy"), "samples": steps[-1]["samples"],
             "seconds": seconds, "samples_per_second": rate_of(steps),
             "curve": smoothed(steps)}
    if bytes_file.exists():
        facts["bytes"] = sum(map(int, bytes_file.read_text().split()))
    elif any("exchange_bytes" in row for row in steps):
        facts["bytes"] = sum(row.get("exchange_bytes", 0) for row in steps)
    return facts


def train(arguments, scratch, number, model, strategy, setting, seed, candidate):
    """The record of one training. Throws runs.Failed with the end of its output where it does not end as it should."""
    steps = arguments.steps or model.steps
    config = study_plan.config_of(model, strategy, setting, seed, steps, candidate, arguments.data)
    record = {"model": model.key, "setting": setting.key, "strategy": strategy.key, "seed": seed, "steps": steps,
              "candidate": candidate, "digest": study_plan.digest(config, setting), "ranks": strategy.ranks(),
              "date": f"{datetime.date.today()}", "machine": machine()}
    folder = scratch / f"run-{number}"
    folder.mkdir()
    config["logging"]["directory"] = str(folder)
    path, bytes_file = folder / "config.json", folder / "sent-bytes"
    path.write_text(json.dumps(config, indent=1))
    launcher, own = command_of(arguments, strategy.ranks(), setting, path, bytes_file)
    with runs.Run(arguments.trainer, strategy.ranks(), own, folder / "log", launcher=launcher) as run:
        code = run.wait(arguments.timeout)
        if code == DIVERGED:
            return {**record, "diverged": True}
        if code != 0:
            raise runs.Failed(f"exit code {code}: {run.tail()}")
    return {**record, **facts_of(folder, bytes_file, strategy)}
