"""Configurations and command lines that cannot be followed."""
from launch import Failed

USAGE = 2


def setting(key, value, *facts):
    """One key changed by --set; the message must name what was given and the facts."""
    return lambda place: place.refused(place.gpt(), USAGE, (key, *facts), "--set", f"{key}={value}")


def text(content, *facts):
    return lambda place: place.refused(content, USAGE, ("model.json", *facts))


def changed(change, *facts):
    """A configuration after change(config, place)."""
    def case(place):
        config = place.gpt()
        change(config, place)
        place.refused(config, USAGE, facts)
    return case


def command(code, facts, *arguments):
    def case(place):
        place.write(place.gpt())
        with place.start_command(*arguments) as run:
            run.expect(code, facts)
    return case


def help_is_said_once(place):
    with place.start_command("--help") as run:
        run.expect(0, messages=0)
        if run.out.count("Usage:") != 1:
            raise Failed(f"--help is printed {run.out.count('Usage:')} times")


def wrong_mesh(place):
    config = place.gpt()
    config["parallel"] = {"data": 3, "pipeline": 1, "tensor": 1}
    place.refused(config, USAGE, ("data 3 × pipeline 1 × tensor 1 = 3 ranks", f"but {place.ranks} were started", "mpiexec -n 3"))


def too_many_stages(place):
    config = place.gpt()
    config["parallel"] = {"data": 1, "pipeline": place.ranks, "tensor": 1}
    config["model"]["num_layers"] = 1
    if place.ranks > 3:
        place.refused(config, USAGE, (f"{place.ranks}", "3"))


def too_many_heads(place):
    config = place.gpt()
    config["parallel"] = {"data": 1, "pipeline": 1, "tensor": place.ranks}
    config["model"]["num_heads"] = 1
    if place.ranks > 1:
        place.refused(config, USAGE, ("parallel.tensor", f"{place.ranks} ranks", "1 heads", "at most 1"))


def batch_and_replicas(place):
    config = place.gpt(batch_size=6 * place.ranks + 2)
    config["parallel"] = {"data": place.ranks}
    if place.ranks > 1:
        place.refused(config, USAGE, ("training.batch_size", str(6 * place.ranks + 2), "would work"))


def wrong_launcher(place):
    with place.alone("--config", place.write(place.gpt()), environment={"PMI_SIZE": "4"}) as run:
        run.expect(USAGE, ("PMI_SIZE=4", "mpiexec"))
    with place.alone("--config", place.write(place.gpt()), environment={"PMI_SIZE": "4", "PMI_RANK": "2"}) as run:
        run.expect(USAGE, messages=0)


def written(config, section, key, value):
    config[section][key] = value


def set_key(section, key, value):
    return lambda config, place: written(config, section, key, value)


def memory(place):
    config = place.gpt()
    config["model"].update(hidden_size=65536, num_heads=64, num_layers=400)
    place.refused(config, USAGE, ("memory", "GiB", "available"))


def overflow(place):
    """As large as single keys may be: the products must not overflow."""
    config = place.gpt(batch_size=1 << 24)
    config["model"].update(hidden_size=1 << 20, num_heads=1 << 6, context_length=1 << 20, vocab_size=1 << 24)
    place.refused(config, USAGE, ("memory",))


def cases():
    broken = '{\n "model": {"type": "gpt",\n  "hidden_size": 16,,\n'
    return [
        ("unknown key", setting("training.stepz", 3, "its value is 3", "did you mean training.steps?")),
        ("unknown key in the file", changed(set_key("model", "hiden_size", 3), "model.hiden_size", "model.hidden_size")),
        ("wrong type", setting("model.hidden_size", "wide", '"wide" (a string)', "an integer from 1")),
        ("wrong type in the file", changed(set_key("training", "steps", [1]), "training.steps", "an integer")),
        ("huge number", setting("model.hidden_size", 10**12, str(10**12), "1048576")),
        ("number past 64 bits", setting("training.batch_size", 2**70, "an integer from")),
        ("batch of 2^62", setting("training.batch_size", 2**62, str(2**62))),
        ("negative", setting("training.micro_batches", -1, "-1", "from 0")),
        ("not a number", setting("optimizer.learning_rate", "NaN", "NaN", "a number")),
        ("not a number in JSON", text('{"optimizer": {"learning_rate": NaN}}', "1:")),
        ("infinite in JSON", text('{"optimizer": {"learning_rate": 1e999}}', "1:")),
        ("wrong word", setting("model.type", "gtp", '"gpt"')),
        ("wrong precision", setting("training.precision", "bf16", '"bf16"', '"float32" or "bfloat16"')),
        ("later precision", setting("training.precision", "float16", "does not have", '"bfloat16"')),
        ("bfloat16 by oneDNN", command(USAGE, ("--kernels onednn", "training.precision", "bfloat16"), "--config", "model.json",
                                       "--kernels", "onednn", "--set", "training.precision=bfloat16")),
        ("later word", setting("parallel.schedule", "zb_v", "zb_v", "1f1b")),
        ("set without a value", command(USAGE, ("--set",), "--config", "model.json", "--set", "training.steps")),
        ("broken JSON", text(broken, ":3:")),
        ("JSON that ends early", text('{"model": {"type": "gpt"', "1:")),
        ("empty file", text("", "1:1")),
        ("2 MiB of JSON", text('{"model": "' + "x" * (2 << 20) + '"}', "bytes long", "1048576")),
        ("deep nesting", text("[" * 100_000, "nested deeper")),
        ("a key written twice", text('{"model": {}, "model": {}}', "model", "twice")),
        ("a list for a file", text("[1, 2]", "object")),
        ("bytes that are no text", text(b'{"model": "\xff\xfe"}', "UTF-8")),
        ("NUL byte", text(b'{"model": \0}', "NUL")),
        ("no such file", command(USAGE, ("nowhere.json", "cannot be read"), "--config", "nowhere.json")),
        ("a folder as file", command(USAGE, ("cannot be read",), "--config", "/tmp")),
        ("unknown option", command(USAGE, ("--confg", "--config"), "--confg", "model.json")),
        ("unknown subcommand", command(USAGE, ("exprot", "export"), "exprot")),
        ("help is said once", help_is_said_once),
        ("heads and hidden size", setting("model.num_heads", 3, "16", "3", "18 would work")),
        ("batch and micro-batches", setting("training.micro_batches", 3, "16", "would work")),
        ("batch and replicas", batch_and_replicas),
        ("mesh and ranks", wrong_mesh),
        ("too many stages", too_many_stages),
        ("tensor ranks and heads", too_many_heads),
        ("partition and units", changed(lambda c, p: c.update(parallel={"tensor": p.ranks, "partition": [9]}), "partition", "9", "4")),
        ("sequence and context", setting("training.sequence_length", 9, "9", "8")),
        ("no layers", changed(lambda c, p: c.update(model={"type": "sequential", "layers": []}), "model.layers")),
        ("steps and epochs", setting("training.epochs", 2, "training.steps", "one of them")),
        ("vocabulary and tokenizer", changed(lambda c, p: (c.update(data={"type": "text", "path": "x"}), c["model"].update(vocab_size=100)), "vocab_size", "100", "256")),
        ("more memory than there is", memory),
        ("sizes that overflow", overflow),
        ("wrong launcher", wrong_launcher),
    ]
