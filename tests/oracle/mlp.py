#!/usr/bin/env python3
"""Writes tests/oracle/data/mlp_{adamw,sgd,mse}.safetensors: small MLPs in PyTorch; see fixture.py for what is in them."""
from fixture import STEPS, main, make, random  # first: leaves with 77 where PyTorch is missing

import torch
import torch.nn.functional as F

SIZES, BATCH = [10, 16, 12, 5], 12


def forward_with(activation, closest):
    def forward(p, x):
        for i in range(len(SIZES) - 1):
            x = F.linear(x, p[f"layers.{i}.weight"], p[f"layers.{i}.bias"])
            if i + 2 < len(SIZES):
                closest.append(x.abs().min().item())
                x = activation(x)
        return x

    return forward


def mlp(seed, activation, loss, optimizer):
    config = {
        "model": {"type": "mlp", "input_size": SIZES[0], "hidden_sizes": SIZES[1:-1], "output_size": SIZES[-1],
                  "activation": activation},
        "data": {"type": "synthetic"},
        "training": {"steps": STEPS, "batch_size": BATCH, "micro_batches": 1, "loss": loss, "gradient_clip": 1.0},
        "optimizer": optimizer,
    }
    normal, integers = random(seed)
    initial = {}
    for i, (inputs, outputs) in enumerate(zip(SIZES, SIZES[1:])):
        initial[f"layers.{i}.weight"] = normal(inputs**-0.5, outputs, inputs)
        initial[f"layers.{i}.bias"] = normal(0.1, outputs)
    inputs = normal(1.0, STEPS, BATCH, SIZES[0])
    closest = []
    forward = forward_with(getattr(torch, activation), closest)
    if loss == "mse":
        targets, loss_of = normal(1.0, STEPS, BATCH, SIZES[-1]), F.mse_loss
    else:
        targets = integers(SIZES[-1], STEPS, BATCH)
        loss_of = lambda logits, classes: F.cross_entropy(logits, classes.long())
    tensors = make(config, initial, inputs, targets, forward, loss_of)
    # A relu's input so near to 0 that rounding chooses its side would make the comparison one of luck.
    if activation == "relu" and min(closest) < 1e-5:
        raise SystemExit(f"seed {seed}: a relu's input comes as near to 0 as {min(closest):.1e}; take another seed")
    return config, tensors


ADAMW = {"type": "adamw", "learning_rate": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
SGD = {"type": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}

if __name__ == "__main__":
    main({
        "mlp_adamw": lambda: mlp(3, "relu", "cross_entropy", ADAMW),
        "mlp_sgd": lambda: mlp(4, "relu", "cross_entropy", SGD),
        "mlp_mse": lambda: mlp(5, "tanh", "mse", ADAMW),
    })
