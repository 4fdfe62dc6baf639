#!/usr/bin/env python3
"""PyTorch reads, validates, lowers and simulates the CSV of every schedule, and its own tables are ours.

usage: torch_schedules.py --trainer build/trainer [--python PYTHON]     where PyTorch is missing: skipped (exit code 77)
"""
import argparse
import csv
import io
import subprocess
import sys

SHAPES = [(ranks, m) for ranks in (1, 2, 3, 4, 6) for m in (1, 2, 4, 7, 12)]
CHUNKS = {"gpipe": [1], "1f1b": [1], "interleaved": [2, 3], "zb-h1": [1], "zb-h2": [1], "zb-v": [2], "dualpipe-v": [2]}


def printed(trainer, name, ranks, chunks, m, *more):
    words = [trainer, "schedule", "--name", name, "--ranks", str(ranks), "--stages", str(ranks * chunks),
             "--micro-batches", str(m), *more]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def read(schedules, text):
    rows = csv.reader(io.StringIO(text))
    return {rank: [schedules._Action.from_str(cell) for cell in row] for rank, row in enumerate(rows)}


def accept(schedules, text, ranks, stages, m):
    """Raises where PyTorch finds anything wrong; returns the number of steps that its simulator takes."""
    order = read(schedules, text)
    ranks_of = schedules._validate_schedule(order, ranks, stages, m)
    compute = {rank: [action for action in row if action is not None] for rank, row in order.items()}
    lowered = schedules._add_send_recv(compute, lambda stage: ranks_of[stage], stages)
    simulated = schedules._simulate_comms_compute(lowered, lambda stage: ranks_of[stage], stages)
    return max(len(row) for row in simulated.values())


# Ours → PyTorch's class, chunks.
SAME = {"interleaved": ("ScheduleInterleaved1F1B", 2), "zb-v": ("ScheduleZBVZeroBubble", 2),
        "dualpipe-v": ("ScheduleDualPipeV", 2)}


def torch_order(schedules, name, ranks, chunks, m):
    """PyTorch's own order of compute actions, without pipelines or processes: its pure part on a bare object."""
    schedule = object.__new__(getattr(schedules, name))
    schedule.pp_group_size, schedule.n_local_stages, schedule.num_stages = ranks, chunks, ranks * chunks
    schedule._num_stages, schedule._n_microbatches = schedule.num_stages, m
    schedule.number_of_rounds = max(1, m // ranks)
    schedule.microbatches_per_round = m // schedule.number_of_rounds
    order = []
    for rank in range(ranks):
        row = [action for action in schedule._calculate_single_rank_operations(rank) if action is not None]
        flat = [part for action in row for part in (action.sub_actions or (action,))]
        order.append([str(action) for action in flat if action.microbatch_index < m])
    return order


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer", required=True)
    arguments = parser.parse_args()
    try:
        import torch.distributed.pipelining.schedules as schedules
    except ImportError as error:
        print(f"skipped: {error}")
        return 77
    tables = 0
    for name, chunks_list in CHUNKS.items():
        for chunks in chunks_list:
            for ranks, m in SHAPES:
                for more in [[], ["--split-backward"]]:
                    text = printed(arguments.trainer, name, ranks, chunks, m, *more)
                    try:
                        accept(schedules, text, ranks, ranks * chunks, m)
                    except Exception as error:
                        print(f"{name} {more} on {ranks} ranks, {chunks} chunks, {m} micro-batches: {error}\n{text}")
                        return 1
                    tables += 1
    same = 0
    for name, (theirs, chunks) in SAME.items():
        for ranks, m in [(2, 4), (3, 6), (4, 8), (4, 16), (6, 12)]:
            text = printed(arguments.trainer, name, ranks, chunks, m)
            ours = [[cell for cell in row if cell] for row in csv.reader(io.StringIO(text))]
            if ours != torch_order(schedules, theirs, ranks, chunks, m):
                print(f"{name} on {ranks} ranks, {m} micro-batches is not PyTorch's order:")
                for a, b in zip(ours, torch_order(schedules, theirs, ranks, chunks, m)):
                    print(" ", *a, "\n  PyTorch:", *b)
                return 1
            same += 1
    print(f"PyTorch accepts {tables} tables, and {same} are its own")
    return 0


if __name__ == "__main__":
    sys.exit(main())
