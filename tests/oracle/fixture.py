"""What the oracle scripts share: train ten steps in PyTorch, in float32 and in float64, and keep what a test compares.

A fixture is one safetensors file. Its metadata's "config" is a configuration for the trainer, with the model, the loss, the
batch, the clipping and the optimizer of the run. Its tensors:
    initial/NAME    F32  weights before the first step, under the trainer's parameter names
    inputs          I32 [10, batch, positions] or F32 [10, batch, features]: another batch for each step
    targets         I32 [10, batch, positions], I32 [10, batch] or F32 [10, batch, outputs]
    logits          F64  of the first batch with the initial weights (or predictions)
    gradient/NAME   F64  of that batch's loss, before clipping
    losses          F64 [10], each before its update; losses[0] belongs to logits and gradients
    gradient_norms  F64 [10], before clipping
    final/NAME      F64  weights after the tenth update
    error/X         F64 [1]  for each F64 tensor X above: the largest |float32 - float64| that PyTorch itself has in X
The F64 values are the float64 run's, that is exact for a float32 test. A float32 implementation that rounds as often as
PyTorch does has errors of error/X's size; they are random sums, so a test allows a small multiple of
error/X + 2^-23 max|X| (the second term for tensors in which PyTorch's few roundings happened to cancel).
"""
import argparse
import json
import sys
from pathlib import Path

SKIPPED = 77
STEPS = 10

try:
    import numpy
    import torch
    from safetensors import safe_open
except ImportError as error:
    print(f"skipped: {error}; tools/setup --oracle makes an environment that has it")
    sys.exit(SKIPPED)

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)


def make_optimizer(config, parameters):
    """Weight decay on matrices and tables, not on biases and norms."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": config["weight_decay"]},
        {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    if config["type"] == "adamw":
        return torch.optim.AdamW(groups, lr=config["learning_rate"], betas=config["betas"], eps=config["eps"])
    return torch.optim.SGD(groups, lr=config["learning_rate"], momentum=config["momentum"], nesterov=config["nesterov"])


def train(config, initial, inputs, targets, forward, loss_of, dtype):
    """The fixture's F64 tensors, from a run in `dtype`."""
    parameters = {name: value.to(dtype, copy=True).requires_grad_() for name, value in initial.items()}
    optimizer = make_optimizer(config["optimizer"], parameters)
    if inputs.is_floating_point():
        inputs = inputs.to(dtype)
    if targets.is_floating_point():
        targets = targets.to(dtype)
    out, losses, norms = {}, [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = forward(parameters, inputs[step])
        loss = loss_of(logits, targets[step])
        loss.backward()
        if step == 0:
            out["logits"] = logits.detach().double()
            out.update({f"gradient/{name}": p.grad.double().clone() for name, p in parameters.items()})
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), config["training"]["gradient_clip"]).item())
        optimizer.step()
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    out["gradient_norms"] = torch.tensor(norms, dtype=torch.float64)
    out.update({f"final/{name}": p.detach().double().clone() for name, p in parameters.items()})
    return out


def make(config, initial, inputs, targets, forward, loss_of):
    exact = train(config, initial, inputs, targets, forward, loss_of, torch.float64)
    single = train(config, initial, inputs, targets, forward, loss_of, torch.float32)
    tensors = {f"initial/{name}": value for name, value in initial.items()}
    tensors.update({"inputs": inputs, "targets": targets}, **exact)
    tensors.update({f"error/{name}": (single[name] - exact[name]).abs().max().reshape(1) for name in exact})
    return {name: value.contiguous() for name, value in tensors.items()}


def save(path, tensors, metadata):
    """A safetensors file in reference order (larger types first, then names), the same bytes every time."""
    header, offset = {"__metadata__": metadata}, 0
    arrays = {name: value.numpy() for name, value in tensors.items()}
    order = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    for name in order:
        dtype = {"float64": "F64", "float32": "F32", "int32": "I32"}[arrays[name].dtype.name]
        end = offset + arrays[name].nbytes
        header[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(arrays[name].tobytes() for name in order))


def differences(path, tensors, config):
    """What of a stored fixture this machine's PyTorch does not confirm. float64 sums may come in another order."""
    with safe_open(str(path), "pt") as stored:
        if json.loads(stored.metadata()["config"]) != config:
            yield "config"
        if sorted(stored.keys()) != sorted(tensors):
            yield "names of tensors"
            return
        for name, value in tensors.items():
            bound = 1e-9 if value.dtype == torch.float64 else 0.0
            if not name.startswith("error/") and not torch.allclose(stored.get_tensor(name), value, rtol=0, atol=bound):
                yield name


def main(fixtures):
    """fixtures: {name: function that returns (config, tensors)}."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with the files in --out")
    arguments = parser.parse_args()
    wrong = 0
    for name, build in fixtures.items():
        config, tensors = build()
        path = arguments.out / f"{name}.safetensors"
        if arguments.check:
            for what in differences(path, tensors, config):
                print(f"{path}: {what} differs")
                wrong += 1
        else:
            save(path, tensors, {"format": "pt", "config": json.dumps(config), "torch": torch.__version__})
            print(f"{path}: {path.stat().st_size} bytes, losses {tensors['losses'][0]:.4f} to {tensors['losses'][-1]:.4f}")
    if arguments.check:
        print(f"checked {len(fixtures)} fixtures with PyTorch {torch.__version__}: {wrong} differences")
    sys.exit(1 if wrong else 0)


def random(seed):
    """normal(scale, *shape) → float32 tensor; numpy's legacy generator gives the same numbers for ever."""
    generator = numpy.random.RandomState(seed)

    def normal(scale, *shape):
        return torch.from_numpy((scale * generator.standard_normal(shape)).astype(numpy.float32))

    def integers(end, *shape):
        return torch.from_numpy(generator.randint(0, end, shape).astype(numpy.int32))

    return normal, integers
