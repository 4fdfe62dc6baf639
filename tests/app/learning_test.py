#!/usr/bin/env python3
"""Small sets are learned: held-out accuracy, squared error and loss against stated values, on one rank and on four.

data/spirals.csv: no line separates the arms. data/sine.csv: the noise alone has a mean square of 0.0025, the best line 0.5.
data/pattern.txt: a window of 32 letters tells its place among 31 only after its first letters, so that no model gets below
H(place | first letter) / 32 nats a letter; what two letters say leaves far more. A linear model is trained too, on the
tables: it must stay behind, else the bounds would say nothing.

In bfloat16 the bounds are the same, and the whole curve on a random text stays within 2^-8 of float32's: what rounding
both operands of a product to 8 bits may change its terms by. The text's letters follow their two predecessors, so that
the loss falls without leaps, whose moment any rounding shifts. usage: learning_test.py --trainer build/trainer
"""
import json
import math
import random
import sys
from collections import Counter
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools/lib"))
import runs

ALONE, FOUR, REPLICAS = runs.layout(), runs.layout(pipeline=2, tensor=2), runs.layout(data=2, pipeline=2, schedule="gpipe")
COPIES = runs.layout(data=4)
COMPRESSIONS = [{"type": "top_k", "ratio": 0.05, "min_elements": 100}, {"type": "random_k", "ratio": 0.1, "min_elements": 100},
                {"type": "sign", "min_elements": 100}, {"type": "power_sgd", "rank": 2, "min_elements": 100},
                {"type": "int8", "min_elements": 100}]
POSITIONS = 32
SPIRALS = {"type": "csv", "path": str(DATA / "spirals.csv"), "target": "colour", "validation_fraction": 0.25}
SINE = {"type": "csv", "path": str(DATA / "sine.csv"), "target": "y", "task": "regression", "validation_fraction": 0.25}
PATTERN = {"type": "text", "path": str(DATA / "pattern.txt"), "tokenizer": "char", "validation_fraction": 0.167}


def mlp(inputs, outputs):
    return {"type": "mlp", "input_size": inputs, "hidden_sizes": [48, 48], "output_size": outputs, "activation": "gelu"}


def sequential(inputs, outputs):
    wide = {"type": "linear", "output_size": 48}
    inner = [{"type": "layer_norm"}, wide, {"type": "tanh"}, wide]
    return {"type": "sequential", "input_size": inputs,
            "layers": [wide, {"type": "relu"}, {"type": "residual", "layers": inner},
                       {"type": "linear", "output_size": outputs}]}


def linear(inputs, outputs):
    return {"type": "sequential", "layers": [{"type": "linear", "input_size": inputs, "output_size": outputs}]}


def pattern_floor():
    """The lowest mean loss on windows that begin at each place of the pattern equally often."""
    first = Counter((DATA / "pattern.txt").read_text()[:31])
    return sum(n / 31 * math.log(n) for n in first.values()) / POSITIONS


def second_order_text(letters="abcdefghijklmnop", length=100_000):
    """Each pair of letters has four successors, the first the likeliest."""
    generator = random.Random(7)
    successors = {a + b: generator.choices(letters, k=4) for a in letters for b in letters}
    text = [letters[0], letters[1]]
    for _ in range(length):
        text.append(successors[text[-2] + text[-1]][min(int(generator.expovariate(1)), 3)])
    return "".join(text)


def train(arguments, folder, name, model, data, steps, batch, rate, parallel, precision="float32"):
    """The losses of all steps, and the run's last evaluation."""
    directory = folder / name
    adamw = {"type": "adamw", "learning_rate": rate, "betas": [0.9, 0.95]}
    sgd = {"type": "sgd", "learning_rate": 30 * rate, "momentum": 0.9}
    signs = parallel.get("compression", {}).get("type") == "sign"  # of one magnitude, which AdamW cannot use
    config = {
        "model": model, "data": data,
        "training": {"steps": steps, "batch_size": batch, "micro_batches": 2, "gradient_clip": 1.0, "seed": 1,
                     "hang_timeout": 60, "precision": precision, "bfloat16_emulation": True},
        "optimizer": {**(sgd if signs else adamw), "schedule": {"type": "cosine", "warmup_steps": 20, "final_ratio": 0.05}},
        "logging": {"directory": str(directory), "every_steps": 1},
    }
    path = runs.write_config(folder / f"{name}.json", config, parallel)
    runs.train(arguments.trainer, runs.ranks_of(parallel), ["--config", path, "--threads", 1], folder / f"{name}.log", 100)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    if last["step"] != steps or "validation_loss" not in last:
        raise runs.Failed(f"{directory}/metrics.jsonl does not end with an evaluation at step {steps}")
    return [line["loss"] for line in lines if "loss" in line], last


def check(ok, name, text):
    print(f"{name}: {text}{'' if ok else '  WRONG'}", flush=True)
    return 0 if ok else 1


def classes(arguments, folder, name, model, parallel, precision="float32"):
    _, last = train(arguments, folder, name, model(2, 3), SPIRALS, 1000, 32, 1e-2, parallel, precision)
    if last["validation_targets"] != 150:
        raise runs.Failed(f"{last['validation_targets']} rows were held out, 150 expected")
    return last["accuracy"]


def values(arguments, folder, name, model, parallel, precision="float32"):
    _, last = train(arguments, folder, name, model(1, 1), SINE, 1000, 32, 1e-2, parallel, precision)
    return last["validation_loss"]


def gpt(letters):
    return {"type": "gpt", "vocab_size": letters, "context_length": POSITIONS, "hidden_size": 64, "num_layers": 2,
            "num_heads": 4}


def bfloat16_curve(arguments, folder):
    """How far each step's loss, and the evaluation's, is from float32's."""
    text = folder / "second-order.txt"
    text.write_text(second_order_text())
    data = {"type": "text", "path": str(text), "tokenizer": "char", "validation_fraction": 0.1}

    def curve(name, parallel, precision):
        losses, last = train(arguments, folder, f"second order, {name}", gpt(16), data, 300, 16, 3e-3, parallel, precision)
        return [*losses, last["validation_loss"]]
    exact = curve("float32", ALONE, "float32")
    wrong = check(exact[-1] < 2.1 and exact[0] > 2.7, "second order, float32", f"from {exact[0]:.3f} to {exact[-1]:.3f}")
    for parallel in (ALONE, FOUR, REPLICAS):
        name = f"bfloat16, {runs.show_layout(parallel)}"
        rounded = curve(name, parallel, "bfloat16")
        worst = max(abs(a - b) / b for a, b in zip(rounded, exact, strict=True))
        wrong += check(0 < worst <= 2 ** -8, f"second order, {name}", f"within {worst:.5f} of float32, at most {2 ** -8:.5f}")
    return wrong


def work(arguments, folder):
    wrong = 0
    for model in (mlp, sequential):
        for parallel in (ALONE, FOUR if model is mlp else REPLICAS):
            name = f"{model.__name__}, {runs.show_layout(parallel)}"
            accuracy = classes(arguments, folder, f"spirals, {name}", model, parallel)
            wrong += check(accuracy >= 0.9, f"spirals, {name}", f"accuracy {accuracy:.3f}, at least 0.9")
            error = values(arguments, folder, f"sine, {name}", model, parallel)
            wrong += check(error <= 0.01, f"sine, {name}", f"squared error {error:.4f}, at most 0.01")
    accuracy = classes(arguments, folder, "spirals, bfloat16", mlp, REPLICAS, "bfloat16")
    wrong += check(accuracy >= 0.9, "spirals, bfloat16", f"accuracy {accuracy:.3f}, at least 0.9")
    error = values(arguments, folder, "sine, bfloat16", mlp, FOUR, "bfloat16")
    wrong += check(error <= 0.01, "sine, bfloat16", f"squared error {error:.4f}, at most 0.01")
    accuracy = classes(arguments, folder, "spirals, linear", linear, ALONE)
    wrong += check(accuracy < 0.6, "spirals, linear", f"accuracy {accuracy:.3f}, below 0.6")
    error = values(arguments, folder, "sine, linear", linear, ALONE)
    wrong += check(error > 0.3, "sine, linear", f"squared error {error:.4f}, above 0.3")

    for compression in COMPRESSIONS:
        name = f"compressed by {compression['type']}"
        parallel = {**(REPLICAS if compression["type"] == "power_sgd" else COPIES), "compression": compression}
        accuracy = classes(arguments, folder, f"spirals, {name}", mlp, parallel)
        wrong += check(accuracy >= 0.9, f"spirals, {name}", f"accuracy {accuracy:.3f}, at least 0.9")

    floor = pattern_floor()
    for parallel, precision in ((ALONE, "float32"), (FOUR, "float32"), (FOUR, "bfloat16")):
        name = f"pattern, gpt, {runs.show_layout(parallel)}, {precision}"
        _, last = train(arguments, folder, name, gpt(5), PATTERN, 400, 16, 3e-3, parallel, precision)
        loss = last["validation_loss"]
        # Half a thousandth below: rounding, and a phase that the training windows have by chance more often.
        wrong += check(floor - 5e-4 < loss < floor + 0.03, name,
                       f"loss {loss:.4f}, between {floor:.4f} and {floor + 0.03:.4f}")
    wrong += bfloat16_curve(arguments, folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(runs.main("learning", work, runs.parser(__doc__.splitlines()[0]).parse_args()))
