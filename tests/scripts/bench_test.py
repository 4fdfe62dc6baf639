#!/usr/bin/env python3
"""tools/bench from end to end on a few rows, with a stand-in for PyTorch: the numbers it compares, and how it says that a
peer failed."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[2]
trainer = sys.argv[1]

# Answers like tools/bench_torch.py: steps of 9, 0.5 and 0.25 seconds. Compiling fails; `-c` is bench asking for versions.
STAND_IN = """#!/bin/sh
case "$*" in
  -c*) echo 1.0 ;;
  *--compile*) echo 'no compiler | here' >&2; exit 3 ;;
  *) echo '{"seconds": [9, 0.5, 0.25], "peak_memory": 1000000000, "parameters": 1}' ;;
esac
"""


def expect(holds, what):
    if not holds:
        sys.exit(f"bench_test: {what}")


def bench(folder, *arguments):
    return subprocess.run([root / "tools/bench", "--trainer", trainer, "--quick", "--out", folder / "out", *arguments],
                          capture_output=True, text=True, timeout=170)


def check_speed(row, text):
    ours = row["trainer"]
    variant = ours["variants"]["float32"]
    expect(row["unit"] == "samples/s" and 0 < variant["best_seconds"] <= variant["median_seconds"], f"no times in {row}")
    expect(len(variant["seconds"]) == 39, f"{len(variant['seconds'])} steps counted of 40, expected all but the first")
    expect(ours["rate"] == 64 / variant["best_seconds"], "the rate is not the fastest step's")
    expect(0 < ours["share_of_peak"] < 1.05, f"share of peak {ours['share_of_peak']}")
    theirs = row["pytorch"]
    expect(theirs["best"] == "eager" and theirs["seconds"] == 0.25, f"PyTorch's fastest step is not found: {theirs}")
    expect(row["ratio"] == 0.25 / ours["seconds"], "the ratio is not that of the fastest steps")
    expect(row["goals"]["ratio"] == {"least": 1.3, "met": row["ratio"] >= 1.3}, f"goals {row['goals']}")
    expect("error" in theirs["variants"]["compiled"], "a failed peer is not said to have failed")
    expect("compiled: failed (exit code 3: no compiler / here" in text, f"the table hides a failed peer:\n{text}")


def main():
    with tempfile.TemporaryDirectory(prefix="trainer-bench-test-") as name:
        folder = Path(name)
        stand_in = folder / "python"
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        done = bench(folder, "--python", stand_in, "--only", "mlp-1", "memory", "startup", "cnn")
        expect(done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        result = json.loads((folder / "out/bench.json").read_text())
        text = (folder / "out/bench.md").read_text()
        expect(text in done.stdout, "what is printed is not what is written")
        rows = {row["key"]: row for row in result["rows"]}
        expect(list(rows) == ["one-2", "mlp-1", "cnn"], f"rows {list(rows)}")
        check_speed(rows["mlp-1"], text)
        expect(rows["cnn"]["missing"] == "no such layer yet" and "no such layer yet" in text, "a layer that is not there")
        expect(0.5 < result["memory"]["over_live_set"] < 1.5, f"memory {result['memory']}")
        expect(result["memory"]["pytorch"] == {"eager": 1e9}, f"memory {result['memory']}")
        for what, entry in result["startup"].items():
            expect("error" not in entry or "PyTorch" in what, f"{what}: {entry}")
        refused = bench(folder, "--python", folder / "nothing")
        expect(refused.returncode == 1 and "lacks PyTorch" in refused.stderr, f"a Python that is not there: {refused.stderr}")
        print(f"{len(rows)} rows, {len(result['startup'])} start-ups")


main()
