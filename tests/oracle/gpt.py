#!/usr/bin/env python3
"""Writes tests/oracle/data/gpt_{tied,untied}.safetensors: a small GPT-2 in PyTorch; see fixture.py for what is in them."""
from fixture import STEPS, main, make, random  # first: leaves with 77 where PyTorch is missing

import torch
import torch.nn.functional as F

VOCAB, WIDTH, HEADS, LAYERS, CONTEXT, POSITIONS, BATCH = 61, 18, 3, 2, 16, 12, 6


def forward(p, tokens):
    def norm(name, x):
        return F.layer_norm(x, (WIDTH,), p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-5)

    def linear(name, x):
        return F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    tokens = tokens.long()
    samples, positions = tokens.shape
    future = torch.ones(positions, positions, dtype=torch.bool).triu(1)
    x = p["wte.weight"][tokens] + p["wpe.weight"][:positions]
    for i in range(LAYERS):
        h = f"h.{i}"
        qkv = linear(f"{h}.attn.c_attn", norm(f"{h}.ln_1", x)).split(WIDTH, dim=-1)
        q, k, v = (part.view(samples, positions, HEADS, WIDTH // HEADS).transpose(1, 2) for part in qkv)
        scores = (q @ k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5
        attended = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        x = x + linear(f"{h}.attn.c_proj", attended.transpose(1, 2).reshape(samples, positions, WIDTH))
        inner = F.gelu(linear(f"{h}.mlp.c_fc", norm(f"{h}.ln_2", x)), approximate="tanh")
        x = x + linear(f"{h}.mlp.c_proj", inner)
    head = p["lm_head.weight"] if "lm_head.weight" in p else p["wte.weight"]
    return F.linear(norm("ln_f", x), head)


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long())


def initial_weights(normal, tied):
    """Far from GPT-2's own small initial weights: attention is not uniform, and every gradient is of a size to measure."""
    p = {"wte.weight": normal(0.5, VOCAB, WIDTH), "wpe.weight": normal(0.5, CONTEXT, WIDTH)}

    def add(name, out, inputs):
        p[f"{name}.weight"], p[f"{name}.bias"] = normal(0.3, out, inputs), normal(0.1, out)

    def add_norm(name):
        p[f"{name}.weight"], p[f"{name}.bias"] = 1 + normal(0.1, WIDTH), normal(0.1, WIDTH)

    for i in range(LAYERS):
        add_norm(f"h.{i}.ln_1")
        add(f"h.{i}.attn.c_attn", 3 * WIDTH, WIDTH)
        add(f"h.{i}.attn.c_proj", WIDTH, WIDTH)
        add_norm(f"h.{i}.ln_2")
        add(f"h.{i}.mlp.c_fc", 4 * WIDTH, WIDTH)
        add(f"h.{i}.mlp.c_proj", WIDTH, 4 * WIDTH)
    add_norm("ln_f")
    if not tied:
        p["lm_head.weight"] = normal(0.5, VOCAB, WIDTH)
    return p


def gpt(tied):
    config = {
        "model": {"type": "gpt", "vocab_size": VOCAB, "context_length": CONTEXT, "hidden_size": WIDTH,
                  "num_layers": LAYERS, "num_heads": HEADS, "tie_embeddings": tied},
        "data": {"type": "synthetic"},
        "training": {"steps": STEPS, "batch_size": BATCH, "micro_batches": 1, "sequence_length": POSITIONS,
                     "loss": "cross_entropy", "gradient_clip": 1.0},
        # eps is large because the gradient of the key's bias is zero but for rounding, which Adam would blow up.
        "optimizer": {"type": "adamw", "learning_rate": 0.01, "betas": [0.9, 0.95], "eps": 1e-4, "weight_decay": 0.1},
    }
    normal, integers = random(1 if tied else 2)
    tokens = integers(VOCAB, STEPS, BATCH, POSITIONS + 1)
    inputs, targets = tokens[..., :-1].contiguous(), tokens[..., 1:].contiguous()
    return config, make(config, initial_weights(normal, tied), inputs, targets, forward, loss_of)


if __name__ == "__main__":
    main({"gpt_tied": lambda: gpt(True), "gpt_untied": lambda: gpt(False)})
