#!/usr/bin/env python3
"""--kernels onednn trains: the native kernels' losses within 1e-5, and the same bits with one thread and with two.

usage: onednn_test.py --trainer build/trainer [--version 3.]    --version: what the loaded oneDNN's must begin with
"""
import json
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs

BOUND = 1e-5  # relative, on each of the first losses
STEPS = 10


def train(arguments, folder, kernels, threads, parallel):
    """Losses, exported bytes, and the build that the checkpoint says it was written by."""
    name = f"{kernels}-{threads}-{runs.ranks_of(parallel)}"
    # Sums over 640 and 512 rows are longer than a block of the native kernels; 512 rows are two tiles of oneDNN's provider.
    config = runs.gpt_config(160, 2, 4, 259, 64, 8, 1, STEPS)
    config["data"] = {"type": "text", "path": str(folder / "words.txt"), "tokenizer": "byte"}
    config["checkpoint"] = {"directory": str(folder / name)}
    config["logging"] = {"every_steps": 1}
    path = runs.write_config(folder / f"{name}.json", config, parallel)
    runs.train(arguments.trainer, runs.ranks_of(parallel),
               ["--config", path, "--threads", threads, "--kernels", kernels], folder / f"{name}.log", 100)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    if len(losses) != STEPS:
        raise runs.Failed(f"{folder / name}/metrics.jsonl has {len(losses)} losses, {STEPS} expected")
    said = subprocess.run([arguments.trainer, "inspect", "--checkpoint", folder / name], capture_output=True, text=True,
                          timeout=60, check=True).stdout
    weights = runs.export(arguments.trainer, folder / name, folder / f"{name}-out")
    return losses, weights, re.search(r"written by (.*)", said)[1]


def work(arguments, folder):
    runs.write_words(folder / "words.txt", 40_000, 1)
    alone, tensor = runs.layout(), runs.layout(tensor=2)
    native, _, native_build = train(arguments, folder, "native", 1, alone)
    losses, weights, build = train(arguments, folder, "onednn", 1, alone)
    print(f"native: {native_build}\nonednn: {build}")
    if "oneDNN" in native_build or f"oneDNN {arguments.version}" not in build:
        raise runs.Failed(f"the builds should be a native one and one with 'oneDNN {arguments.version}'")
    threaded, threaded_weights, _ = train(arguments, folder, "onednn", 2, alone)
    if threaded != losses or threaded_weights != weights:
        raise runs.Failed("two threads give other bits than one")
    sharded, _, _ = train(arguments, folder, "onednn", 1, tensor)
    for name, found in (("one rank", losses), ("two tensor ranks", sharded)):
        worst = max(abs(a - b) / abs(a) for a, b in zip(native, found))
        print(f"{name}: losses differ by at most {worst:.1e} (relative) from the native kernels', allowed are {BOUND:.0e}")
        if not worst <= BOUND:
            return 1
    if not native[-1] < native[0] - 0.5:
        raise runs.Failed(f"the loss only went from {native[0]} to {native[-1]}, so agreement says little")
    return 0


def main():
    parser = runs.parser(__doc__.splitlines()[0])
    parser.add_argument("--version", default="", help="what the loaded oneDNN's version must begin with")
    sys.exit(runs.main("onednn", work, parser.parse_args()))


if __name__ == "__main__":
    main()
