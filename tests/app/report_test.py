#!/usr/bin/env python3
"""What a run leaves for people: a trace that viewers can read, and `trainer report`'s page, of whole runs and killed ones.

usage: report_test.py --trainer build/trainer
"""
import json
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs

STEPS, MICRO_BATCHES = 12, 4
VOID = {"meta", "br", "img", "hr", "input", "link"}
KNOWN_PHASES = {"X", "C", "M", "i", "s", "f"}


class Page(HTMLParser):
    """Holds a page to: every tag closed, nothing that is fetched or run."""

    def __init__(self, text):
        super().__init__()
        self.open, self.titles, self.heading = [], [], False
        self.feed(text)
        self.close()
        if self.open:
            raise runs.Failed(f"not closed: {self.open}")

    def handle_starttag(self, tag, attributes):
        if tag in {"script", "link", "img", "iframe", "object"}:
            raise runs.Failed(f"<{tag}> in the page")
        for name, value in attributes:
            if name in {"src", "href"} or name.startswith("on") or "://" in (value or ""):
                raise runs.Failed(f"<{tag} {name}={value!r}> in the page")
        self.heading = tag == "h2"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise runs.Failed(f"</{tag}> closes nothing")
        self.heading = False

    def handle_data(self, data):
        if self.heading:
            self.titles.append(data)


def check_nesting(slices, rank):
    """Slices of a thread enclose each other or are apart, to the nanosecond."""
    order = sorted((round(s["ts"] * 1000), -round(s["dur"] * 1000), s["name"]) for s in slices)
    enclosing = []
    for begin, minus, name in order:
        end = begin - minus
        while enclosing and enclosing[-1][0] <= begin:
            enclosing.pop()
        if enclosing and end > enclosing[-1][0]:
            raise runs.Failed(f"rank {rank}: {name} ends behind {enclosing[-1][1]}, in which it begins")
        enclosing.append((end, name))


def check_trace(path, ranks, steps):
    trace = json.loads(path.read_text())
    slices, arrows, named = defaultdict(list), defaultdict(dict), set()
    for event in trace["traceEvents"]:
        if event["ph"] not in KNOWN_PHASES:
            raise runs.Failed(f"an event of phase {event['ph']}")
        if event["ph"] == "X":
            slices[event["pid"]].append(event)
        elif event["ph"] in "sf":
            if event["ph"] in arrows[event["id"]]:
                raise runs.Failed(f"two ends {event['ph']} of arrow {event['id']}")
            arrows[event["id"]][event["ph"]] = event
        elif event["ph"] == "M" and event["name"] == "process_name":
            named.add(event["pid"])
    if set(slices) != set(range(ranks)) or named != set(slices):
        raise runs.Failed(f"processes {sorted(slices)}, named {sorted(named)}; {ranks} ranks expected")
    for rank, of in slices.items():
        check_nesting(of, rank)
        found = sorted(s["name"] for s in of if s["name"].startswith("step "))
        if found != sorted(f"step {step}" for step in steps):
            raise runs.Failed(f"rank {rank}: {found}, expected {list(steps)}")
    for name, ends in arrows.items():
        if set(ends) != {"s", "f"} or ends["s"]["pid"] == ends["f"]["pid"] or ends["s"]["ts"] > ends["f"]["ts"]:
            raise runs.Failed(f"arrow {name}: {ends}")
    return slices, arrows


def check_split(folder, ranks):
    """The parts of each logged step sum to it."""
    logged = 0
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "time" not in row:
            continue
        logged += 1
        step = sum(part[0] for part in row["time"].values())
        if any(len(part) != ranks for part in row["time"].values()) or abs(step - row["step_seconds"]) > 1e-7:
            raise runs.Failed(f"step {row['step']} took {row['step_seconds']} s, its parts {step}: {row['time']}")
    if logged != STEPS:
        raise runs.Failed(f"{logged} steps have a split, {STEPS} expected")


def config_of(folder, name):
    config = runs.gpt_config(32, 4, 2, 97, 16, 8, MICRO_BATCHES, STEPS)
    config["data"]["validation_fraction"] = 0.1
    config["checkpoint"] = {"directory": str(folder / name)}
    config["logging"] = {"every_steps": 1}
    return config


def report(arguments, folder, *more):
    done = subprocess.run([arguments.trainer, "report", folder, *more], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise runs.Failed(f"trainer report: exit code {done.returncode}: {done.stderr}")
    return done


def traced_run(arguments, folder):
    path = runs.write_config(folder / "whole.json", config_of(folder, "whole"), runs.layout(pipeline=2, schedule="zb-h1"))
    trace = folder / "trace.json"
    runs.train(arguments.trainer, 2, ["--config", path, "--threads", 1, "--trace", trace, "--trace-steps", "3:4"],
               folder / "whole.log", 60)
    slices, arrows = check_trace(trace, 2, [3, 4])
    if len(arrows) != 2 * 2 * MICRO_BATCHES:
        raise runs.Failed(f"{len(arrows)} arrows; two steps have {2 * 2 * MICRO_BATCHES} messages")
    for rank in range(2):
        forwards = [s["name"] for s in slices[rank] if s["cat"] == "compute" and "F" in s["name"]]
        if sorted(forwards) != sorted(2 * [f"{rank}F{m}" for m in range(MICRO_BATCHES)]):
            raise runs.Failed(f"rank {rank} has the forwards {forwards}")
    check_split(folder / "whole", 2)
    report(arguments, folder / "whole")
    page = Page((folder / "whole/report.html").read_text())
    wanted = {"Training", "A step", "Where the time of a step went", "Predicted and measured", "Configuration"}
    if not wanted <= set(page.titles):
        raise runs.Failed(f"the page has {page.titles}")
    if list((folder / "whole").glob("*.partial")) + list(folder.glob("*.partial")):
        raise runs.Failed("a partial file was left")


def last_steps(arguments, folder):
    """Without --trace-steps: the last five, of one rank too; and what cannot be written ends the run before it begins."""
    path = runs.write_config(folder / "one.json", config_of(folder, "one"), runs.layout())
    trace = folder / "one-trace.json"
    runs.train(arguments.trainer, 1, ["--config", path, "--threads", 1, "--trace", trace], folder / "one.log", 60)
    check_trace(trace, 1, range(STEPS - 4, STEPS + 1))
    check_split(folder / "one", 1)
    nowhere = [arguments.trainer, "--config", path, "--overwrite", "--trace", folder / "nowhere/trace.json"]
    done = subprocess.run(nowhere, capture_output=True, text=True, timeout=60)
    if done.returncode != 4 or "nowhere/trace.json" not in done.stderr or "step" in done.stderr:
        raise runs.Failed(f"a trace into a folder that is not there: {done.returncode}, {done.stderr}")


def broken_run(arguments, folder):
    """What a kill leaves: no summary, half a line."""
    whole = folder / "whole"
    broken = folder / "broken"
    broken.mkdir()
    (broken / "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text()[:-20])
    (broken / "run.json").write_text("{")
    done = report(arguments, broken, "--output", "-")
    page = Page(done.stdout)
    for part in ("1 of", "run.json is no JSON object", "There is no summary.json"):
        if part not in done.stderr or part not in done.stdout:
            raise runs.Failed(f"'{part}' is not said: {done.stderr}")
    if "Training" not in page.titles or "Where the time of a step went" not in page.titles:
        raise runs.Failed(f"the page of a killed run has {page.titles}")


def work(arguments, folder):
    traced_run(arguments, folder)
    last_steps(arguments, folder)
    broken_run(arguments, folder)
    print("traces and pages are whole")
    return 0


if __name__ == "__main__":
    sys.exit(runs.main("report", work, runs.parser(__doc__.splitlines()[0]).parse_args()))
