#!/usr/bin/env python3
"""PyTorch's side of tools/bench: the same models, the same work a step, on the CPU. Needs torch; run by tools/bench.

usage: bench_torch.py gpt [--layout single|data|pipeline|tensor] [--threads N] [--steps N] [--compile] [--bfloat16] [--split-head]
       bench_torch.py mlp [--threads N] [--steps N] [--compile]
       bench_torch.py kernels [--threads N]
Prints one JSON object: {"seconds": [a step each, the first ones too], "peak_memory": bytes, "parameters": n}, for kernels
{"kernels": [{"layout", "m", "n", "k", "seconds"}]}. Several processes: gloo, one thread each, peak_memory of the largest.
"""
import argparse
import contextlib
import json
import socket
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn import functional

LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 384, 6, 4096, 256
BATCH, MICRO_BATCHES = 8, 4
CLIP = 1.0
RANKS = 2
FIRST_STAGE_BLOCKS = 4  # of the pipeline's two stages: the head costs as much as two blocks


class Attention(nn.Module):
    """Causal self-attention. Three separate projections where they are to be divided by heads, one else."""

    def __init__(self, separate):
        super().__init__()
        self.joint = None if separate else nn.Linear(WIDTH, 3 * WIDTH)
        if separate:
            self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        parts = self.joint(x).chunk(3, -1) if self.joint is not None else (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, separate):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(separate)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(POSITIONS, WIDTH)

    def forward(self, tokens):
        return self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.logits = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, x):
        return self.logits(self.norm(x))


def gpt(separate=False):
    torch.manual_seed(1)
    return nn.Sequential(Embedding(), *(Block(separate) for _ in range(LAYERS)), Head())


def token_loss(logits, targets):
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, VOCABULARY, (2, BATCH, POSITIONS), generator=generator)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-4, betas=(0.9, 0.999), weight_decay=0.01, fused=True)


def peak_memory():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def timed(step, steps, barrier=lambda: None):
    seconds = []
    for _ in range(steps):
        barrier()
        begin = time.perf_counter()
        step()
        barrier()
        seconds.append(time.perf_counter() - begin)
    return seconds


def update(optimizer, parameters):
    nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    optimizer.zero_grad()


def precision(options):
    return torch.autocast("cpu", dtype=torch.bfloat16) if options.bfloat16 else contextlib.nullcontext()


def single(options):
    model = gpt()
    parameters = list(model.parameters())
    optimizer = adamw(parameters)
    forward = torch.compile(model) if options.compile else model
    inputs, targets = batch()

    def step():
        for x, y in zip(inputs.chunk(MICRO_BATCHES), targets.chunk(MICRO_BATCHES)):
            with precision(options):
                loss = token_loss(forward(x), y) / MICRO_BATCHES
            loss.backward()
        update(optimizer, parameters)

    return step, parameters


def data_parallel(_options, rank):
    """A replica takes its share of the batch in micro-batches as large as one process's."""
    model = gpt()
    parameters = list(model.parameters())
    replica = nn.parallel.DistributedDataParallel(model)
    optimizer = adamw(parameters)
    inputs, targets = (whole.chunk(RANKS)[rank] for whole in batch())
    pieces = MICRO_BATCHES // RANKS

    def step():
        for i, (x, y) in enumerate(zip(inputs.chunk(pieces), targets.chunk(pieces))):
            with contextlib.nullcontext() if i + 1 == pieces else replica.no_sync():
                (token_loss(replica(x), y) / pieces).backward()
        update(optimizer, parameters)

    return step, parameters


def pipeline_parallel(_options, rank):
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B
    layers = list(gpt())
    cut = 1 + FIRST_STAGE_BLOCKS
    part = nn.Sequential(*(layers[:cut] if rank == 0 else layers[cut:]))
    parameters = list(part.parameters())
    optimizer = adamw(parameters)
    schedule = Schedule1F1B(PipelineStage(part, rank, RANKS, torch.device("cpu")), MICRO_BATCHES, loss_fn=token_loss)
    inputs, targets = batch()

    def step():
        if rank == 0:
            schedule.step(inputs)
        else:
            schedule.step(target=targets, losses=[])
        update(optimizer, parameters)

    return step, parameters


def tensor_parallel(options, _rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, loss_parallel, parallelize_module
    model = gpt(separate=True)
    mesh = init_device_mesh("cpu", (RANKS,))
    by_columns = {name: ColwiseParallel() for name in ("attention.query", "attention.key", "attention.value", "up")}
    by_rows = {name: RowwiseParallel() for name in ("attention.out", "down")}
    for block in model[1:-1]:
        parallelize_module(block, mesh, {**by_columns, **by_rows})
    if options.split_head:
        parallelize_module(model[-1], mesh, {"logits": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)})
    parameters = list(model.parameters())
    divided = [p for p in parameters if isinstance(p, DTensor)]
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    optimizers = [adamw(divided), adamw(whole)]
    inputs, targets = batch()

    def step():
        with loss_parallel() if options.split_head else contextlib.nullcontext():
            for x, y in zip(inputs.chunk(MICRO_BATCHES), targets.chunk(MICRO_BATCHES)):
                (token_loss(model(x), y) / MICRO_BATCHES).backward()
        norms = [nn.utils.get_total_norm([p.grad for p in group]) for group in (divided, whole)]
        norm = torch.hypot(norms[0].full_tensor(), norms[1])
        for group, optimizer in zip((divided, whole), optimizers):
            nn.utils.clip_grads_with_norm_(group, CLIP, norm)
            optimizer.step()
            optimizer.zero_grad()

    return step, parameters


LAYOUTS = {"data": data_parallel, "pipeline": pipeline_parallel, "tensor": tensor_parallel}


def rank_main(rank, options, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    step, parameters = LAYOUTS[options.layout](options, rank)
    seconds = timed(step, options.steps, dist.barrier)
    own = sum(p.numel() for p in parameters) if rank == 0 or options.layout == "pipeline" else 0
    facts = torch.zeros(2, RANKS, dtype=torch.int64)
    facts[0, rank], facts[1, rank] = own, peak_memory()
    dist.all_reduce(facts)
    if rank == 0:
        report(seconds, int(facts[0].sum()), int(facts[1].max()))
    dist.barrier()
    dist.destroy_process_group()


def report(seconds, parameters, peak):
    print(json.dumps({"seconds": seconds, "peak_memory": peak, "parameters": parameters}), flush=True)


def run_gpt(options):
    if options.layout == "single":
        step, parameters = single(options)
        report(timed(step, options.steps), sum(p.numel() for p in parameters), peak_memory())
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_main, (options, port), nprocs=RANKS)


def run_mlp(options):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    forward = torch.compile(model) if options.compile else model
    images, labels = torch.rand(64, 784), torch.randint(0, 10, (64,))

    def step():
        functional.cross_entropy(forward(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    report(timed(step, options.steps), sum(p.numel() for p in parameters), peak_memory())


def run_kernels(_options):
    """Matrix products of one micro-batch: y = x·Wᵀ (NT), dx = dy·W (NN), dW += dyᵀ·x (TN)."""
    rows = BATCH // MICRO_BATCHES * POSITIONS
    found = []
    for inner, outer in ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH), (WIDTH, VOCABULARY)):
        x, weight, dy = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)
        y, dx, gradient = torch.empty(rows, outer), torch.empty(rows, inner), torch.zeros(outer, inner)
        calls = {"NT": (lambda: torch.mm(x, weight.T, out=y), (rows, outer, inner)),
                 "NN": (lambda: torch.mm(dy, weight, out=dx), (rows, inner, outer)),
                 "TN": (lambda: gradient.addmm_(dy.T, x), (outer, inner, rows))}
        for layout, (call, (m, n, k)) in calls.items():
            seconds, end = [], time.perf_counter() + 0.06
            while time.perf_counter() < end:
                seconds += timed(call, 1)
            found.append({"layout": layout, "m": m, "n": n, "k": k, "seconds": min(seconds)})
    print(json.dumps({"kernels": found}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=("gpt", "mlp", "kernels"))
    parser.add_argument("--layout", choices=("single", *LAYOUTS), default="single")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="by autocast")
    parser.add_argument("--split-head", action="store_true", help="tensor: head and loss divided by the vocabulary")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    {"gpt": run_gpt, "mlp": run_mlp, "kernels": run_kernels}[options.work](options)


if __name__ == "__main__":
    main()
