#!/usr/bin/env python3
"""`trainer profile`, `trainer plan` and training in the layout that it puts first: from end to end on two ranks, the same
plan every time, and the profile's cut in use. usage: plan_test.py --trainer build/trainer
"""
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs


def plan(trainer, config, profile, *more):
    command = [str(trainer), "plan", "--config", str(config), "--ranks", "2", "--profile", str(profile), *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise runs.Failed(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr}")
    return done.stdout


def work(arguments, folder):
    config, profile, best = folder / "config.json", folder / "profile.json", folder / "best.json"
    description = runs.gpt_config(32, 2, 2, 64, 16, 8, 2, 4)
    description["logging"] = {"directory": str(folder / "run"), "every_steps": 1}
    config.write_text(json.dumps(description))
    runs.train(arguments.trainer, 2, ["profile", "--config", config, "--output", profile, "--seconds", 2], folder / "log", 60)
    measured = json.loads(profile.read_text())
    assert measured["machine"]["ranks"] == 2, measured["machine"]
    assert {piece["tensor"] for piece in measured["pieces"]} == {1, 2}
    assert all(piece["forward"] > 0 for piece in measured["pieces"])
    assert not list(folder.glob("*.partial"))

    text = plan(arguments.trainer, config, profile, "--top", 0, "--json", "--best", best)
    assert text == plan(arguments.trainer, config, profile, "--top", 0, "--json"), "two plans differ"
    layouts = json.loads(text)["layouts"]
    assert len(layouts) > 20 and layouts == sorted(layouts, key=lambda row: row["step_seconds"])
    chosen = json.loads(best.read_text())["parallel"]
    assert {key: chosen[key] for key in ("data", "pipeline", "tensor")} == {
        key: layouts[0][key] for key in ("data", "pipeline", "tensor")}
    runs.train(arguments.trainer, 2, ["--config", best], folder / "best.log", 60)
    # Whatever its layout, the run is held against what the plan has promised.
    summary = json.loads((folder / "run/summary.json").read_text())
    promised = [p for p in summary["predictions"] if p["what"] == "step seconds"]
    assert [p["source"] for p in promised] == [str(profile)], summary["predictions"]
    assert abs(promised[0]["predicted"] / layouts[0]["step_seconds"] - 1) < 1e-6, (promised, layouts[0])

    # A profile of another model says so, and one that cannot be written is not measured first.
    other = subprocess.run([str(arguments.trainer), "plan", "--config", str(config), "--ranks", "2", "--profile", str(profile),
                            "--set", "training.sequence_length=8"], capture_output=True, text=True, timeout=60)
    assert other.returncode == 0 and "warning" in other.stderr and "has no times of 4 of the model's 4" in other.stderr, other.stderr
    with runs.Run(arguments.trainer, 2, ["profile", "--config", config, "--output", folder, "--seconds", 1000],
                  folder / "refused.log") as run:
        assert run.wait(30) == 4 and run.tail().count("is a directory") == 1, run.tail()

    # A pipeline in the profile's cut, and with a schedule made for its times.
    for schedule in ("1f1b", "auto"):
        runs.train(arguments.trainer, 2,
                   ["--config", config, "--set", "parallel.pipeline=2", "--set", "parallel.partition=profile",
                    "--set", f"parallel.profile={profile}", "--set", f"parallel.schedule={schedule}"],
                   folder / "cut.log", 60)

    # Every rank ends alike where the file is missing.
    with runs.Run(arguments.trainer, 2, ["--config", config, "--set", "parallel.partition=profile", "--set",
                                         f"parallel.profile={folder}/nowhere"], folder / "missing.log") as run:
        assert run.wait(60) == 2, run.tail()
        assert run.tail().count("cannot be read") == 1, run.tail()
    print("plan: profile, plan and training in the planned layouts")
    return 0


if __name__ == "__main__":
    sys.exit(runs.main("plan_test", work, runs.parser(__doc__).parse_args()))
