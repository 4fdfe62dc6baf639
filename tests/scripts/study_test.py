#!/usr/bin/env python3
"""tools/study on a few short runs: what it keeps, that it goes on where it was, and that its page and plots are whole.

usage: study_test.py --trainer build/trainer. 77 without the data; the network's part says when hosts cannot be made.
"""
import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS / "lib"))
import runs
import study_page
import study_plan

STEPS = 12
SKIP, USAGE = 77, 2
STRATEGIES, SEED = ["all_reduce", "int8"], 7
NUMBER = re.compile(r"-?\d+(?:\.\d+)?$")


def expect(holds, what):
    if not holds:
        raise runs.Failed(what)


def study(arguments, folder, *words, strategies=STRATEGIES):
    command = [TOOLS / "study", "--trainer", arguments.trainer, "--results", folder / "results", "--page-file",
               folder / "docs/page.md", "--only", ",".join(strategies), "--seeds", SEED, "--steps", STEPS, "--untuned", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)


def check_records(records, settings):
    keys = [(r["model"], r["setting"], r["strategy"]) for r in records]
    wanted = {(m, s, t) for m in study_plan.MODELS for s in settings for t in STRATEGIES}
    expect(len(keys) == len(wanted) and set(keys) == wanted, f"records of {keys}, expected each of {wanted} once")
    for record in records:
        model = study_plan.MODELS[record["model"]]
        expect(record["seed"] == SEED and record["samples"] == STEPS * model.batch, f"{record}")
        expect(record["seconds"] > 0 and record["samples_per_second"] > 0, f"no times in {record}")
        paces = study_plan.SETTINGS[record["setting"]].paces
        if paces:  # a step waits for the slowest replica
            expect(record["seconds"] >= STEPS * model.pace / 1e3 * max(paces), f"faster than its delay: {record}")
        times = [seconds for _, seconds, _ in record["curve"]]
        logged = STEPS if paces else 3  # every tenth step over the network, and the first and last
        expect(len(times) == logged and times == sorted(times), f"times {times}")
        expect(abs(times[-1] - record["seconds"]) < 1e-4, f"the curve ends at {times[-1]} s of {record['seconds']}")
    first = {}
    for record in records:
        first.setdefault(record["model"], []).append(record["first_loss"])
    for model, losses in first.items():
        expect(max(losses) - min(losses) < 1e-6 * losses[0], f"{model}: strategies begin with other losses: {losses}")


def check_bytes(records):
    """Counted at interfaces: at least the payload, and 8 bits less than float32."""
    sent = {(r["model"], r["strategy"]): r["bytes"] for r in records if r["setting"] == "network"}
    for model in study_plan.MODELS:
        whole, small = sent[model, "all_reduce"], sent[model, "int8"]
        expect(whole > 1e6 and 0.2 < small / whole < 0.5, f"{model}: all-reduce sent {whole} bytes, int8 {small}")


def check_plot(path):
    svg = xml.etree.ElementTree.parse(path).getroot()
    expect(svg.tag.endswith("svg"), f"{path} is no SVG")
    expect("prefers-color-scheme: dark" in path.read_text(), f"{path} has no dark colours")
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    expect(not re.search(r"<script|href=|url\(|https?:", text), f"{path} runs or fetches something")
    width, height = (float(svg.get(side)) for side in ("width", "height"))
    lines = [each for each in svg.iter() if each.tag.endswith("polyline")]
    expect(len(lines) >= len(STRATEGIES), f"{path} has {len(lines)} lines")
    for line in lines:
        for point in line.get("points").split():
            x, y = point.split(",")
            expect(NUMBER.match(x) and NUMBER.match(y), f"{path}: {point} is no point")
            expect(0 <= float(x) <= width and 0 <= float(y) <= height, f"{path}: {point} is outside")


def check_page(folder, settings):
    page = (folder / "docs/page.md").read_text()
    plots = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)
    expect(len(plots) == len(settings) * len(study_plan.MODELS), f"plots {plots}")
    for plot in plots:
        check_plot(folder / "docs" / plot)
    for strategy in STRATEGIES:
        rows = [line for line in page.splitlines() if line.startswith(f"| {study_plan.STRATEGIES[strategy].title} |")]
        expect(len(rows) == len(plots), f"{strategy} has {len(rows)} rows in {len(plots)} tables")
    for line in page.splitlines():
        expect("{" not in line and "nan" not in line.lower().split(), f"left in the page: {line}")
    tables = re.findall(r"(?:^\|.*\n)+", page, re.M)
    for table in tables:
        expect(len({line.count("|") for line in table.splitlines()}) == 1, f"a row of another length:\n{table}")


def numbers():
    """Statistics on records whose answers are known."""
    def record(strategy, seed, loss, rate, seconds):
        return {"model": "mlp", "setting": "even", "strategy": strategy, "seed": seed, "final_loss": loss, "samples": 10, "ranks": 4,
                "samples_per_second": rate, "curve": [[2, seconds / 4, 3.0], [6, seconds / 2, 2.0], [10, seconds, 1.0]], "bytes": 500}
    records = [record("all_reduce", 1, 2.0, 100, 8), record("all_reduce", 2, 4.0, 100, 8),
               record("int8", 1, 2.2, 150, 4), record("int8", 2, 4.0, 250, 4), {**record("int8", 3, 1, 1, 1), "diverged": True}]
    row = study_page.row_of(study_page.Results(records), "mlp", "even", "int8")
    expect(row["runs"] == 3 and row["diverged"] == 1, f"{row}")
    expect(abs(row["loss"][0] - 3.1) < 1e-12 and abs(row["change"][0] - 5) < 1e-9, f"{row}")
    expect(abs(row["change"][1] - 50 ** 0.5) < 1e-9 and row["ratio"] == 2, f"{row}")
    expect(row["time"] == 2 and row["reached"] == 2 and row["bytes"] == 500, f"{row}")  # the target is 2
    expect(study_page.time_to(records[0]["curve"], 2.5) == 3 and study_page.time_to(records[0]["curve"], 0.5) is None, "time_to")
    expect(study_page.loss_at(records[0]["curve"], 3) == 2.0, "loss_at")


def wrong_words(arguments, folder):
    for words, fact in ((("--settings", "slow,fast"), "'fast' is no setting"), (("--seeds", "1,x"), "'1,x'")):
        done = study(arguments, folder, *words)
        expect(done.returncode == USAGE and fact in done.stderr, f"{words}: exit code {done.returncode}, {done.stderr}")


def work(arguments, folder):
    numbers()
    wrong_words(arguments, folder)
    done = study(arguments, folder, "--seconds", "0.001")
    if done.returncode == SKIP:
        print(done.stdout.strip())
        return SKIP
    expect(done.returncode == 0 and "runs are left" in done.stdout and not (folder / "docs").exists(), f"{done.stdout}{done.stderr}")
    done = study(arguments, folder)
    expect(done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}")
    settings = [key for key in study_plan.SETTINGS if key != "network" or "left out" not in done.stdout]
    if len(settings) < len(study_plan.SETTINGS):
        print("without hosts: " + next(line for line in done.stdout.splitlines() if "left out" in line))
    file = folder / "results/runs.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    check_records(records, settings)
    if "network" in settings:
        check_bytes(records)
    check_page(folder, settings)
    # Nothing is missing, so nothing runs; a lost record is made again, and only that; the page is made of records alone.
    page = (folder / "docs/page.md").read_text()
    again = study(arguments, folder)
    expect(again.returncode == 0 and "loss" not in again.stdout, f"it ran again what it had: {again.stdout}")
    file.write_text("".join(json.dumps(record) + "\n" for record in records[1:]))
    again = study(arguments, folder, "--page")
    expect(again.returncode == 0 and len(file.read_text().splitlines()) == len(records) - 1, again.stdout + again.stderr)
    again = study(arguments, folder)
    expect(again.returncode == 0 and again.stdout.count(": loss ") == 1, f"one run was missing: {again.stdout}")
    remade = [json.loads(line) for line in file.read_text().splitlines()][-1]
    same = ("model", "setting", "strategy", "digest", "final_loss", "first_loss", "candidate")
    expect(all(remade[key] == records[0][key] for key in same), f"{remade} is another result than {records[0]}")
    expect("Written by `tools/study`" in page, "the page does not say what wrote it")
    print(f"{len(records)} runs, a page and its plots")
    return 0


def main():
    sys.exit(runs.main("study", work, runs.parser(__doc__).parse_args()))


if __name__ == "__main__":
    main()
