#!/usr/bin/env python3
"""Writes optim.json beside this file: what PyTorch's optimizers do to 48 values in 10 steps, computed in float64.

Weights, gradients and constants are made of numbers that float32 holds exactly where that is possible, so that the file
states the mathematics and a float32 implementation can be held to an error bound. Run with any Python that has torch.
"""
import json
import pathlib

import torch

COUNT, STEPS = 48, 10
RECORDED = (1, 2, 10)  # the steps whose weights are written

CASES = {
    "sgd": ("sgd", dict(lr=0.125)),
    "sgd_decay": ("sgd", dict(lr=0.125, weight_decay=0.0625)),
    "sgd_momentum": ("sgd", dict(lr=0.0625, momentum=0.875)),
    "sgd_momentum_decay": ("sgd", dict(lr=0.0625, momentum=0.875, weight_decay=0.0625)),
    "sgd_nesterov": ("sgd", dict(lr=0.0625, momentum=0.875, nesterov=True)),
    "sgd_nesterov_decay": ("sgd", dict(lr=0.0625, momentum=0.9, nesterov=True, weight_decay=0.01)),
    "adamw": ("adamw", dict(lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)),
    "adamw_decay": ("adamw", dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
    "adamw_eps": ("adamw", dict(lr=0.02, betas=(0.8, 0.99), eps=0.01, weight_decay=0.01)),
}


def exact(values):
    """Rounded to float32, as float64."""
    return values.to(torch.float32).to(torch.float64)


def run(kind, options, weights, gradients):
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[kind]([parameter], foreach=False, **options)
    trajectory = {}
    for step, gradient in enumerate(gradients, start=1):
        parameter.grad = gradient.clone()
        optimizer.step()
        if step in RECORDED:
            trajectory[step] = parameter.detach().tolist()
    state = optimizer.state[parameter]
    names = {"momentum": "momentum_buffer"} if kind == "sgd" else {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
    final = {ours: state[theirs].tolist() for ours, theirs in names.items() if state.get(theirs) is not None}
    return {"type": kind, "options": options, "weights": trajectory, "state": final}


def main():
    torch.manual_seed(1)
    weights = exact(torch.randn(COUNT, dtype=torch.float64))
    gradients = torch.randn(STEPS, COUNT, dtype=torch.float64)
    # Several magnitudes, so that eps matters for some elements and not for others.
    gradients = exact(gradients * 10.0 ** -torch.arange(COUNT, dtype=torch.float64).remainder(4))
    out = {
        "torch": torch.__version__.split("+")[0],
        "initial": weights.tolist(),
        "gradients": gradients.tolist(),
        "cases": {name: run(kind, options, weights, gradients) for name, (kind, options) in CASES.items()},
    }
    path = pathlib.Path(__file__).with_name("optim.json")
    path.write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
