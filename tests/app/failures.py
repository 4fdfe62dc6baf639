"""What goes wrong while a run is under way: signals, dead and stopped ranks, full disks, numbers that overflow."""
import os
import shutil
import signal
import time

from launch import HARD_LIMIT, LIMIT, Failed, Run, find_mpiexec

STORAGE, DIVERGED, HANG, INTERRUPTED = 4, 5, 6, 75


def endless(place, **training):
    config = place.gpt(steps=1_000_000, **training)
    config["checkpoint"]["every_steps"] = 10
    return config


def under_way(place, run):
    run.until(lambda: place.steps_done() > 12 and place.checkpoints(), "the first checkpoint")


def resumes(place, config):
    """The directory's newest checkpoint is whole, and a run goes on from it."""
    place.whole()
    last = int(place.checkpoints()[-1].name.removeprefix("step-"))
    config["training"].update(steps=last + 3, time_limit=0, hang_timeout=0)
    with place.start(config, "--resume") as run:
        run.expect(0, (f"resuming after step {last}",), messages=0, limit=HARD_LIMIT)
    place.nothing_half_written()
    place.whole()


def asked_to_stop(number, of_launcher):
    def case(place):
        config = endless(place)
        with place.start(config) as run:
            under_way(place, run)
            target = run.process.pid if of_launcher else run.rank_pids()[-1]
            run.fault()
            os.kill(target, number)
            run.expect(INTERRUPTED, ("stopped on request after step", "--resume"))
        done = place.steps_done()
        if place.checkpoints()[-1].name != f"step-{done:08d}":
            raise Failed(f"stopped after step {done}, but the newest checkpoint is {place.checkpoints()[-1].name}")
        place.nothing_half_written()
        resumes(place, config)
    return case


def stop_in_evaluation(place):
    """An evaluation that would take for ever is given up, not waited for."""
    config = endless(place)
    config["training"]["eval_every"] = 11
    config["data"]["samples"] = 10**9
    with place.start(config) as run:
        run.until(lambda: place.steps_done() >= 11, "the evaluation")
        time.sleep(0.2)
        run.fault()
        os.kill(run.process.pid, signal.SIGTERM)
        run.expect(INTERRUPTED, ("stopped on request after step 11", "--resume"))
        if "the evaluation was given up" not in run.err:
            raise Failed(f"it does not say that the evaluation was given up\n{run.err}")
    place.nothing_half_written()
    place.whole()


def time_limit(place):
    config = endless(place, time_limit=0.5)
    with place.start(config) as run:
        run.expect(INTERRUPTED, ("training.time_limit of 0.5 s reached: stopped after step", "--resume"))
    resumes(place, config)


def killed(of_launcher):
    def case(place):
        config = endless(place)
        with place.start(config) as run:
            under_way(place, run)
            target = run.process.pid if of_launcher else run.rank_pids()[-1]
            run.fault()
            os.kill(target, signal.SIGKILL)
            # A neighbour may be reading the dead rank's memory (UCX, a large message): then its library aborts it (6),
            # and mpiexec gives that, or both signals in one number (15).
            run.expect((-signal.SIGKILL, 9, 137, int(signal.SIGABRT), 9 | int(signal.SIGABRT)), messages=0, aborts=True)
        resumes(place, config)
    return case


def stopped_rank(place):
    if place.ranks == 1:
        return None  # nobody waits for it
    config = endless(place, hang_timeout=2)
    with place.start(config) as run:
        under_way(place, run)
        run.fault()
        os.kill(run.rank_pids()[-1], signal.SIGSTOP)
        run.expect(HANG, ("waited 2.", "for "), limit=2 + LIMIT, aborts=True)
    resumes(place, config)
    return None


def diverges(place):
    config = endless(place)
    config["checkpoint"]["every_steps"] = 2
    config["optimizer"] = {"type": "sgd", "learning_rate": 1e30}
    config["optimizer"]["schedule"] = {"type": "linear", "warmup_steps": 1000}
    config["training"]["gradient_clip"] = 0
    with place.start(config) as run:
        run.expect(DIVERGED, ("step ", "diverged", "stage ", "learning_rate"), limit=HARD_LIMIT)
    place.nothing_half_written()
    if place.checkpoints():
        place.whole()


def diverges_at_once(place):
    """A table with numbers near the largest: the first step already overflows, and nothing is kept of it."""
    (place.folder / "table.csv").write_text("a,b,c,d,label\n" + "3e38,3e38,3e38,3e38,1\n" * 40)
    config = place.mlp(type="csv", path="table.csv", target="label")
    config["model"]["hidden_sizes"] = [64, 64]
    with place.start(config) as run:
        run.expect(DIVERGED, ("step 1", "stage 0", "not finite"))
    if place.checkpoints():
        raise Failed("a checkpoint of a run that diverged in its first step")


def full_disk(place):
    """A disk with room for one checkpoint and not for two: the first stays, every later save fails."""
    disk = place.folder / "disk"
    disk.mkdir()
    config = place.gpt(steps=9)
    config["checkpoint"].update(every_steps=3, keep=1)
    config["logging"]["directory"] = str(place.folder / "logs")
    place.train(config)
    size = sum(path.stat().st_size for path in place.checkpoints()[-1].iterdir())
    shutil.rmtree(place.directory)
    shutil.rmtree(place.folder / "logs")
    config["checkpoint"]["directory"] = str(disk / "run")
    script = (f'mount -t tmpfs -o size={size * 3 // 2 // 1024}k none disk || exit 99\n'
              f'"$@"; code=$?; {place.trainer} inspect --checkpoint disk/run --verify --json && ls -A disk/run; exit $code')
    private = ["unshare", "--mount"] + ([] if os.getuid() == 0 else ["--map-root-user"])
    command = [find_mpiexec(), "-n", place.ranks, place.trainer, "--config", place.write(config), "--threads", 1]
    if shutil.which("unshare") is None:
        return "there is no unshare"
    with Run([*private, "sh", "-c", script, "sh", *command], place.folder) as run:
        run.wait()
        if run.code in (1, 99) and "trainer:" not in run.err:
            return "no file system may be mounted here"
        run.expect(STORAGE, ("a checkpoint could not be saved", "No space left on device"), limit=HARD_LIMIT)
        for step in (6, 9):
            if run.err.count(f"step {step}: the checkpoint was not saved") != 1:
                raise Failed(f"the save of step {step} is not told once\n{run.err}")
        if run.err.count("loss ") < 9:
            raise Failed(f"the training did not go on\n{run.err}")
        if '"step":3' not in run.out.replace(" ", ""):
            raise Failed(f"the first checkpoint is not the one that loads\n{run.out}")
        if ".partial" in run.out:
            raise Failed(f"half a checkpoint is left\n{run.out}")
    return None


def full_log(place):
    """metrics.jsonl that cannot be written is told once and ends nothing."""
    logs = place.folder / "logs"
    logs.mkdir()
    (logs / "metrics.jsonl").symlink_to("/dev/full")
    config = place.gpt()
    config["logging"]["directory"] = str(logs)
    with place.start(config) as run:
        run.expect(0, ("metrics.jsonl", "goes on"), messages=0, limit=HARD_LIMIT)
        if run.err.count("metrics.jsonl") != 1:
            raise Failed(f"not told once\n{run.err}")


def closed_stdin(place):
    with place.start(place.gpt(), before_start=lambda: os.close(0)) as run:
        run.expect(0, messages=0, limit=HARD_LIMIT)


def full_stdout(place):
    """What cannot be told on stdout is an error, once everything else is done."""
    config = place.write(place.gpt())
    with open("/dev/full", "wb") as full:
        if place.ranks == 1:
            with place.alone("--config", config, "--threads", 1, stdout=full) as run:
                run.expect(STORAGE, ("stdout", "No space left"), limit=HARD_LIMIT)
            place.whole()
            for arguments in (("--config", config, "--print-config"), ("--help",), ("inspect", "--checkpoint", place.directory)):
                with place.alone(*arguments, stdout=full) as run:
                    run.expect(STORAGE, ("stdout", "No space left"))
        else:
            with place.start(place.gpt(), stdout=full) as run:
                run.wait()
            place.whole()


def closed_stdout(place):
    """A reader that has gone does not take the run with it."""
    if place.ranks > 1:
        return "the launcher reads what ranks write"
    read, write = os.pipe()
    os.close(read)
    try:
        with place.alone("--config", place.write(place.gpt()), "--threads", 1, stdout=write) as run:
            run.expect(STORAGE, ("stdout", "Broken pipe"), limit=HARD_LIMIT)
    finally:
        os.close(write)
    place.whole()
    return None


def cases():
    return [
        ("SIGTERM to mpiexec", asked_to_stop(signal.SIGTERM, True)),
        ("SIGINT to mpiexec", asked_to_stop(signal.SIGINT, True)),
        ("SIGTERM to a rank", asked_to_stop(signal.SIGTERM, False)),
        ("SIGINT to a rank", asked_to_stop(signal.SIGINT, False)),
        ("SIGTERM in an evaluation", stop_in_evaluation),
        ("time limit", time_limit),
        ("kill -9 of a rank", killed(False)),
        ("kill -9 of mpiexec", killed(True)),
        ("a stopped rank", stopped_rank),
        ("a loss that is not finite", diverges),
        ("a first step that is not finite", diverges_at_once),
        ("full disk", full_disk),
        ("full log", full_log),
        ("closed stdin", closed_stdin),
        ("full stdout", full_stdout),
        ("closed stdout", closed_stdout),
    ]
