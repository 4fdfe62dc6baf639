#!/usr/bin/env python3
"""What the program prints is what tests/golden/cli/ holds: help, plans, the whole configuration, inspect, usage errors.

usage: golden_test.py --trainer build/trainer [--update]     --update rewrites the files; read the difference then
A file is a transcript: the command, stdout, stderr (its lines marked "! "), the exit code. Replaced are versions, the
instruction set, this folder's and the scratch folder's paths.
"""
import difflib
import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs

GOLDEN = runs.ROOT / "tests/golden/cli"
TEXT = "tests/app/data/pattern.txt"
GPT = ["--config", "configs/gpt_small.json", "--threads", "1", "--set", f"data.path={TEXT}",
       "--set", "data.validation_fraction=0.25"]
MESH = ["--set", "parallel.pipeline=2", "--set", "parallel.tensor=2"]
BUILD = re.compile(r"trainer \d+\.\d+\.\d+ \((native (avx512|avx2|portable)|oneDNN \d+\.\d+\.\d+), [^()\n]*\d[^()\n]*\)")


def cases(folder):
    """{file: arguments}."""
    tiny = ["--checkpoint", str(folder / "run")]
    return {
        "help": ["--help"], "version": ["--version"], "help_keys": ["--help-keys"],
        **{f"help_{name}": [name, "--help"] for name in ("export", "generate", "eval", "inspect", "schedule", "report", "status", "replay", "profile",
                                                           "sweep", "plan")},
        "dry_run_1": [*GPT, "--dry-run", "--ranks", "1"],
        "dry_run_4": [*GPT, "--dry-run", "--ranks", "4", *MESH],
        "dry_run_8": [*GPT, "--dry-run", "--ranks", "8", *MESH],
        "dry_run_cut": [*GPT, "--dry-run", "--ranks", "3", "--set", "parallel.pipeline=3",
                        "--set", "parallel.partition=[1,4,3]", "--set", "parallel.schedule=gpipe",
                        "--set", "training.micro_batches=2"],
        "dry_run_recompute": [*GPT, "--dry-run", "--ranks", "2", "--set", "parallel.pipeline=2", "--set", "parallel.schedule=gpipe",
                              "--set", "training.recompute=auto", "--set", "parallel.memory_per_rank=300MiB"],
        "wrong_layer": [*GPT, "--dry-run", "--set", 'training.recompute=["h.0","h.6"]'],
        "wrong_memory": [*GPT, "--dry-run", "--set", "parallel.memory_per_rank=128MiB", "--set", "training.recompute=auto"],
        "print_config_gpt": [*GPT, "--print-config"],
        "print_config_4": [*GPT, "--print-config", "--ranks", "4", "--set", "parallel.pipeline=2"],
        "print_config_mlp": ["--config", "configs/mlp_mnist.json", "--print-config"],
        "inspect": ["inspect", *tiny], "inspect_verify": ["inspect", *tiny, "--verify"],
        "inspect_json": ["inspect", *tiny, "--json"],
        "export": ["export", *tiny, "--format", "safetensors", "--out", str(folder / "out")],
        "dry_run_chunks": [*GPT, "--dry-run", "--ranks", "2", "--set", "parallel.pipeline=2",
                           "--set", "parallel.schedule=interleaved"],
        "dry_run_auto": [*GPT, "--dry-run", "--ranks", "3", "--set", "parallel.pipeline=3",
                         "--set", "parallel.schedule=auto"],
        "dry_run_file": [*GPT, "--dry-run", "--ranks", "2", "--set", "parallel.pipeline=2",
                         "--set", "parallel.schedule=file", "--set", "training.micro_batches=2",
                         "--set", f"parallel.schedule_file={folder / 'valid.csv'}"],
        "train_file_micro_batches": [*GPT, "--dry-run", "--ranks", "2", "--set", "parallel.pipeline=2",
                                     "--set", "parallel.schedule=file", "--set", "training.micro_batches=4",
                                     "--set", f"parallel.schedule_file={folder / 'valid.csv'}"],
        "train_file_rows": [*GPT, "--dry-run", "--ranks", "4", "--set", "parallel.pipeline=4",
                            "--set", "parallel.schedule=file", "--set", "training.micro_batches=2",
                            "--set", f"parallel.schedule_file={folder / 'valid.csv'}"],
        "train_file_order": [*GPT, "--dry-run", "--ranks", "2", "--set", "parallel.pipeline=2",
                             "--set", "parallel.schedule=file", "--set", "training.micro_batches=2",
                             "--set", f"parallel.schedule_file={folder / 'order.csv'}"],
        "train_no_schedule_file": [*GPT, "--dry-run", "--ranks", "2", "--set", "parallel.schedule=file",
                                   "--set", "parallel.schedule_file=nowhere.csv"],
        "dry_run_held": [*GPT, "--dry-run", "--ranks", "4", "--set", "parallel.pipeline=4",
                         "--set", "parallel.schedule=auto", "--set", "parallel.most_held=3"],
        "over_held": [*GPT, "--dry-run", "--ranks", "4", "--set", "parallel.pipeline=4",
                      "--set", "parallel.schedule=gpipe", "--set", "parallel.most_held=3"],
        "small_group": [*GPT, "--dry-run", "--ranks", "4", "--set", "parallel.pipeline=4",
                        "--set", "parallel.schedule=interleaved", "--set", "parallel.chunks=1",
                        "--set", "parallel.micro_batch_group=2"],
        "wrong_option": ["--config", "configs/gpt_small.json", "--dry-rum"],
        "wrong_sign": [*GPT, "--set", "parallel.compression.type=sign", "--set", "parallel.data=2", "--ranks", "2", "--dry-run"],
        "wrong_key": [*GPT, "--set", "training.step=3", "--dry-run"],
        "wrong_mesh": [*GPT, "--dry-run", "--ranks", "6", "--set", "parallel.pipeline=4"],
        "wrong_heads": [*GPT, "--dry-run", "--ranks", "7", "--set", "parallel.tensor=7"],
        **sweeps(),
        **schedules(folder), **plans(folder),
        "report": ["report", str(folder / "run")], "report_nowhere": ["report", str(folder / "nowhere")],
        "report_empty": ["report", "configs"], "report_nothing": ["report"],
        "status_nothing": ["status"], "status_nowhere": ["status", str(folder / "nowhere")],
        "status_empty": ["status", "configs"], "status_stepped": ["status", str(folder / "run")],
        "replay_nothing": ["replay"], "replay_nowhere": ["replay", str(folder / "nowhere")],
        "replay_stepped": ["replay", str(folder / "run")],
        "wrong_trace_steps": [*GPT, "--trace", "t.json", "--trace-steps", "5:2"],
        "late_trace_steps": [*GPT, "--trace", "t.json", "--trace-steps", "5000:", "--dry-run"],
        "no_config": [], "no_file": ["--config", "nowhere.json"],
        "no_data": [*GPT, "--set", "data.path=nowhere.txt", "--dry-run"],
        "no_checkpoint": ["inspect", "--checkpoint", str(folder / "nowhere")],
        "no_format": ["export", *tiny, "--out", "x"],
    }


def sweeps():
    """{file: arguments} of sweeps that cannot begin; those that run are in sweep_test.py."""
    of = lambda *words: ["sweep", "--config", "configs/gpt_small.json", *words]
    return {
        "sweep_no_over": of(), "sweep_no_config": ["sweep", "--over", "parallel.data=1"],
        "sweep_no_value": of("--over", "parallel.data"), "sweep_empty_value": of("--over", "parallel.data=1,,2"),
        "sweep_twice": of("--over", "parallel.data=1,2,1"), "sweep_bracket": of("--over", "parallel.partition=[1,2"),
        "sweep_key_twice": of("--over", "parallel.data=1", "--over", "parallel.data=2"),
        "sweep_set_too": of("--over", "parallel.data=1", "--set", "parallel.data=2"),
        "sweep_steps": of("--over", "training.steps=1,2"), "sweep_checkpoint": of("--over", "checkpoint.keep=1,2"),
        "sweep_wrong_key": of("--over", "parallel.pipelin=1,2"),
        "sweep_wrong_value": of("--over", "parallel.schedule=1f1b,zbh1"),
        "sweep_one_step": of("--over", "parallel.data=1", "--steps", "1"),
    }


# Files of schedules, each with the mistake that its name says.
SCHEDULE_FILES = {
    "valid": "0F0,0F1,,0B0,,0B1\r\n,1F0,1B0,1F1,1B1\r\n",
    "overlap": "0F0,,,(0F1;3B0)OVERLAP_F_B,3F1,0B0,3B1,,,0B1\n".replace("0F1;3B0", "3F0;3B0").replace(
        "3F1,0B0", "0F1,0B0").replace("3B1", "3F1,3B1") + "1F0,2F0,,,2B0,1B0,1F1,2F1,,2B1,1B1\n",
    "typo": "0F0,0F1,,0B0,,0B1\n,1F0,1X0,1F1,1B1\n",
    "twice": "0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1,1F1\n",
    "missing": "0F0,0F1,,0B0,,0B1\n,1F0,,1F1,1B1\n",
    "two_rows": "0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1,0F0\n",
    "order": "0F0,0F1,,0B1,,0B0\n,1F0,1B0,1F1,1B1\n",
    "no_stage": "0F0,0B0\n2F0,2B0\n",
    "empty": "\n\n",
    "deadlock": "0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n",
}


def plans(folder):
    """{file: arguments} of `trainer plan` on estimated costs, which say the same on every machine."""
    (folder / "cluster.json").write_text('{"nodes": [{"count": 2, "cores": 2, "gflops_per_core": 50}], '
                                         '"between_nodes": {"latency_us": 20, "bandwidth_gb_s": 1}}')
    (folder / "wrong.json").write_text('{"nodes": [{"count": 2, "core": 2, "gflops_per_core": 50}]}')
    plan = lambda *more: ["plan", *GPT[:2], *GPT[4:], *more]
    cluster = ["--cluster", str(folder / "cluster.json")]
    return {
        "plan_cluster": plan("--ranks", "4", "--top", "3", *cluster),
        "plan_memory": plan("--ranks", "4", "--top", "3", "--memory-per-rank", "80MiB", *cluster),
        "plan_too_small": plan("--ranks", "4", "--memory-per-rank", "1MiB", *cluster),
        "plan_no_room": plan("--ranks", "5", *cluster),
        "plan_no_ranks": plan(*cluster), "plan_no_size": plan("--ranks", "2", "--memory-per-rank", "much", *cluster),
        "plan_wrong_cluster": plan("--ranks", "2", "--cluster", str(folder / "wrong.json")),
        "plan_no_profile": plan("--ranks", "2", "--profile", "nowhere.json"),
    }


def schedules(folder):
    """{file: arguments} of `trainer schedule`; writes the files that some of them read."""
    for name, text in SCHEDULE_FILES.items():
        (folder / f"{name}.csv").write_bytes(text.encode())
    by_name = lambda name, stages, micro_batches, *more: [
        "schedule", "--name", name, "--stages", str(stages), "--micro-batches", str(micro_batches), *more]
    return {
        "schedule_interleaved": by_name("interleaved", 8, 8, "--ranks", "4"),
        "schedule_1f1b": by_name("1f1b", 4, 6),
        "schedule_zb_v": by_name("zb-v", 6, 7, "--draw", "--verify"),
        "schedule_times": by_name("zb-h2", 4, 16, "--forward", "2", "--backward-input", "3", "--backward-weight", "1"),
        "schedule_uneven": by_name("1f1b", 2, 4, "--forward", "1,2", "--transfer", "0.5", "--draw"),
        "schedule_auto": by_name("auto", 4, 8, "--forward", "1,2,2,3", "--backward-input", "1,2,2,3",
                                 "--backward-weight", "1,2,2,1", "--draw", "--verify", "--most-held", "6"),
        "schedule_auto_nothing": by_name("auto", 4, 8, "--ranks", "2", "--most-held", "1"),
        "schedule_over_cap": by_name("gpipe", 4, 8, "--most-held", "6", "--verify"),
        "schedule_within_cap": ["schedule", "--file", str(folder / "valid.csv"), "--verify", "--most-held", "2"],
        "schedule_held": by_name("1f1b", 4, 8, "--most-held", "1"),
        **{f"schedule_file_{name}": ["schedule", "--file", str(folder / f"{name}.csv")] for name in SCHEDULE_FILES},
        "schedule_file_verify": ["schedule", "--file", str(folder / "valid.csv"), "--verify", "--forward", "2"],
        "schedule_no_file": ["schedule", "--file", "nowhere.csv"], "schedule_directory": ["schedule", "--file", "configs"],
        "schedule_no_name": ["schedule", "--stages", "4", "--micro-batches", "8"],
        "schedule_wrong_name": by_name("zbv", 4, 8),
        "schedule_wrong_ranks": by_name("interleaved", 8, 8, "--ranks", "3"),
        "schedule_one_a_rank": by_name("gpipe", 8, 8, "--ranks", "4"),
        "schedule_odd": by_name("zb-v", 5, 8),
        "schedule_small_group": by_name("interleaved", 8, 8, "--group", "3"),
        "schedule_no_group": by_name("gpipe", 4, 8, "--group", "4"),
        "schedule_wrong_times": by_name("gpipe", 4, 8, "--forward", "1,2"),
        "schedule_too_large": by_name("gpipe", 1048576, 1048576),
        "schedule_file_and_name": ["schedule", "--file", "x.csv", "--name", "gpipe"],
        "schedule_no_number": by_name("gpipe", 4, 0),
    }


def make_checkpoint(arguments, folder):
    config = runs.gpt_config(8, 1, 2, 11, 4, 2, 1, 1)
    config["checkpoint"] = {"directory": str(folder / "run")}
    path = runs.write_config(folder / "tiny.json", config, runs.layout())
    runs.train(arguments.trainer, 1, ["--config", path, "--threads", 1], folder / "tiny.log", 60)


def transcript(arguments, folder, words):
    done = subprocess.run([arguments.trainer, *words], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL, cwd=runs.ROOT)
    command = " ".join(f"'{word}'" if re.search(r"[][ ]", word) else word for word in ["trainer", *words])
    errors = "".join(f"! {line}\n" for line in done.stderr.splitlines())
    text = f"$ {command}\n{done.stdout}{errors}exit code {done.returncode}\n"
    return BUILD.sub("trainer <build>", text.replace(str(folder), "<scratch>").replace(str(runs.ROOT), "<source>"))


def work(arguments, folder):
    make_checkpoint(arguments, folder)
    found = cases(folder)
    wrong = 0
    for name, words in found.items():
        path, text = GOLDEN / f"{name}.txt", transcript(arguments, folder, words)
        if arguments.update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        expected = path.read_text() if path.is_file() else ""
        if text != expected:
            wrong += 1
            sys.stdout.writelines(difflib.unified_diff(
                expected.splitlines(True), text.splitlines(True), f"tests/golden/cli/{path.name}", "printed now"))
    for stray in sorted({path.stem for path in GOLDEN.glob("*.txt")} - set(found)):
        wrong += 1
        print(f"tests/golden/cli/{stray}.txt belongs to no command of golden_test.py")
    print(f"{len(found)} commands, {wrong} differ" + ("" if not wrong else "; meant? golden_test.py --update"))
    return 1 if wrong else 0


def main():
    parser = runs.parser(__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="rewrite the files")
    sys.exit(runs.main("golden", work, parser.parse_args()))


if __name__ == "__main__":
    main()
