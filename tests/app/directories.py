"""Run directories that cannot be written or hold something already, and checkpoints that are damaged or gone."""
import fcntl
import shutil

from launch import HARD_LIMIT, Failed

USAGE, STORAGE = 2, 4


def below_a_file(place):
    (place.folder / "file").write_text("x")
    config = place.gpt()
    config["checkpoint"]["directory"] = "file/run"
    with place.start(config) as run:
        run.expect(STORAGE, ("file/run", "choose another path"))


def logs_below_a_file(place):
    (place.folder / "file").write_text("x")
    config = place.gpt()
    config["logging"]["directory"] = "file/logs"
    with place.start(config) as run:
        run.expect(STORAGE, ("file/logs",))


def in_proc(place):
    config = place.gpt()
    config["checkpoint"]["directory"] = "/proc/run"
    with place.start(config) as run:
        run.expect(STORAGE, ("/proc/run",))


def holds_a_run(place):
    place.train()
    before = sorted(place.directory.rglob("*"))
    with place.start(place.gpt()) as run:
        run.expect(USAGE, (str(place.directory), "--resume", "--overwrite"))
    if sorted(place.directory.rglob("*")) != before:
        raise Failed("a refused run changed the directory")
    place.train(place.gpt(steps=3), "--overwrite")
    if [path.name for path in place.checkpoints()] != ["step-00000003"]:
        raise Failed(f"after --overwrite there are {place.checkpoints()}")
    place.nothing_half_written()


def two_runs(place):
    with place.start(place.gpt(steps=1_000_000)) as first:
        first.until(place.steps_done, "the first step")
        for flags in ((), ("--resume",), ("--overwrite",)):
            with place.start(place.gpt(), *flags) as second:
                second.expect(STORAGE, (str(place.directory), "another run"))
        if first.process.poll() is not None:
            raise Failed(f"the second run ended the first\n{first.err}")


def foreign_lock(place):
    place.directory.mkdir()
    with open(place.directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with place.start(place.gpt()) as run:
            run.expect(STORAGE, (str(place.directory), "another run"))


def two_checkpoints(place, **training):
    config = place.gpt(**training)
    config["checkpoint"]["every_steps"] = 3
    place.train(config)
    if [path.name for path in place.checkpoints()] != ["step-00000003", "step-00000005"]:
        raise Failed(f"checkpoints are {place.checkpoints()}")
    return config


def flip(path, at=-100):
    content = bytearray(path.read_bytes())
    for i in range(at, at + 20):
        content[i] ^= 0x55
    path.write_bytes(content)


def damage(change, *facts):
    """Damages the newest checkpoint, then all: resuming falls back to the older one, then gives up."""
    def case(place):
        config = two_checkpoints(place)
        change(place.checkpoints()[1])
        with place.start(config, "--resume") as run:
            run.expect(0, ("resuming after step 3", "set aside", *facts), messages=0, limit=HARD_LIMIT)
        place.nothing_half_written()
        for path in place.checkpoints():
            change(path)
        with place.start(config, "--resume") as run:
            run.expect(STORAGE, ("no whole checkpoint", *facts))
        for arguments in (("inspect",), ("generate",), ("eval",), ("export", "--format", "safetensors", "--out", "out")):
            with place.alone(arguments[0], "--checkpoint", place.directory, *arguments[1:]) as run:
                run.expect(STORAGE, ("no whole checkpoint",))
        if (place.folder / "out").exists():
            raise Failed("an export of a damaged checkpoint")
    return case


def shard(change):
    return lambda checkpoint: change(sorted(checkpoint.glob("shard-*"))[-1])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def resume_another_model(place):
    place.train()
    config = place.gpt()
    config["model"]["num_layers"] = 3
    with place.start(config, "--resume") as run:
        run.expect(USAGE, ("--resume", "num_layers", "step-00000005"))


def resume_with_another_optimizer(place):
    config = place.gpt()
    place.train(config)
    config["training"]["steps"] = 7
    config["optimizer"] = {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9}
    with place.start(config, "--resume") as run:
        run.expect(0, ("warning: ", "step-00000005", "another optimizer"), messages=0, limit=HARD_LIMIT)
        if run.err.count("another optimizer") != 1:
            raise Failed(f"not told once\n{run.err}")


def resume_in_another_precision(place):
    config = place.gpt()
    place.train(config)
    for steps, to, was in ((7, "bfloat16", "float32"), (9, "float32", "bfloat16")):
        config["training"].update(steps=steps, precision=to, bfloat16_emulation=True)
        with place.start(config, "--resume") as run:
            run.expect(0, ("warning: ", f"goes on in {to} arithmetic", f"was trained in {was}"), messages=0, limit=HARD_LIMIT)
    with place.start(config, "--resume") as run:
        run.expect(0, messages=0, limit=HARD_LIMIT)
        if "arithmetic" in run.err:
            raise Failed(f"warned of the same precision\n{run.err}")


def eval_another_model(place):
    place.train()
    with place.alone("eval", "--checkpoint", place.directory, "--set", "model.hidden_size=32") as run:
        run.expect(USAGE, ("model", "16", "32"))


def resume_with_nothing(place):
    with place.start(place.gpt(), "--resume") as run:
        run.expect(0, ("holds no checkpoint; starting from the beginning",), messages=0, limit=HARD_LIMIT)


def resume_without_directory(place):
    config = place.gpt()
    config["checkpoint"]["directory"] = ""
    with place.start(config, "--resume") as run:
        run.expect(0, ("--resume", "checkpoint.directory", "from the beginning"), messages=0, limit=HARD_LIMIT)


def no_checkpoint(place):
    for arguments in (("inspect",), ("generate",), ("eval",), ("export", "--format", "hf", "--out", "out")):
        for where, facts in (("nowhere", ("nowhere", "no")), (".", ("no checkpoint",))):
            with place.alone(arguments[0], "--checkpoint", where, *arguments[1:]) as run:
                run.expect(STORAGE, facts)


def prompts(place):
    """A prompt of any bytes is a prompt for bytes; for characters it must be known ones."""
    text = ("to be or not to be " * 50).encode()
    (place.folder / "text.txt").write_bytes(text)
    config = place.gpt()
    config["data"] = {"type": "text", "path": "text.txt", "tokenizer": "byte"}
    place.train(config)
    ask = ["generate", "--checkpoint", place.directory, "--tokens", 3, "--prompt"]
    for prompt in (b"", b"\xff\xfe", b"to be " * 100):
        with place.alone(*ask, prompt.decode(errors="surrogateescape")) as run:
            run.expect(0, messages=0)
    shutil.rmtree(place.directory)
    config["data"]["tokenizer"] = "char"
    place.train(config)
    for prompt, facts in (("\udcff", ("UTF-8", "0")), ("zebra", ("z",)), ("no\u00e9", ("é",))):
        with place.alone(*ask, prompt) as run:
            run.expect(USAGE, facts)


def export_over_something(place):
    place.train()
    (place.folder / "out").mkdir()
    (place.folder / "out" / "thesis.txt").write_text("mine")
    export = ["export", "--checkpoint", place.directory, "--format", "hf", "--out"]
    with place.alone(*export, "out") as run:
        run.expect((USAGE, STORAGE), ("out", "--overwrite"))
    with place.alone(*export, "/proc/out") as run:
        run.expect(STORAGE, ("/proc/out",))
    if (place.folder / "out" / "thesis.txt").read_text() != "mine":
        raise Failed("an export without --overwrite replaced files")


def cases():
    return [
        ("directory below a file", below_a_file),
        ("logs below a file", logs_below_a_file),
        ("directory that cannot be made", in_proc),
        ("directory that holds a run", holds_a_run),
        ("two runs in one directory", two_runs),
        ("a lock that another program holds", foreign_lock),
        ("flipped bytes", damage(shard(flip), "shard-0000", "damaged")),
        ("a cut shard", damage(shard(truncate), "shard-0000", "damaged")),
        ("a lost shard", damage(shard(lambda path: path.unlink(missing_ok=True)), "shard-0000")),
        ("a broken manifest", damage(lambda path: truncate(path / "manifest.json"), "manifest.json")),
        ("resume with another model", resume_another_model),
        ("resume with another optimizer", resume_with_another_optimizer),
        ("resume in another precision", resume_in_another_precision),
        ("eval of another model", eval_another_model),
        ("resume with nothing there", resume_with_nothing),
        ("resume without a directory", resume_without_directory),
        ("no checkpoint", no_checkpoint),
        ("prompts", prompts),
        ("export over something", export_over_something),
    ]
