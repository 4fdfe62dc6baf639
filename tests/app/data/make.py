#!/usr/bin/env python3
"""Writes the small sets that learning_test.py trains on: the same bytes every time.

usage: make.py [--check]    --check compares with the files that are here
"""
import math
import random
import sys
from pathlib import Path

PATTERN = "abacabadabacabaeabacabadabacaba"  # 31 letters; what follows an "aba" depends on up to 15 letters before it


def spirals():
    """Three interleaved spirals of a turn and a half, 200 points each, shuffled: the held-out rows are the last ones."""
    chooser = random.Random(1)
    rows = []
    for name, turn in (("red", 0), ("green", 1), ("blue", 2)):
        for i in range(200):
            t = (i + 0.5) / 200
            angle = 2 * math.pi * (turn / 3 + 1.5 * t) + chooser.uniform(-0.15, 0.15)
            rows.append(f"{(0.1 + 1.4 * t) * math.cos(angle):.3f},{(0.1 + 1.4 * t) * math.sin(angle):.3f},{name}")
    chooser.shuffle(rows)
    return "\n".join(["x,y,colour", *rows]) + "\n"


def sine():
    """y = sin(3x) + noise of standard deviation 0.05, 400 points."""
    chooser = random.Random(2)
    rows = ["x,y"]
    for _ in range(400):
        x = chooser.uniform(-2, 2)
        rows.append(f"{x:.3f},{math.sin(3 * x) + 0.05 * chooser.gauss(0, 1):.3f}")
    return "\n".join(rows) + "\n"


def pattern():
    """Windows of 32 letters begin at all 31 places of the pattern equally often, also among the last 31 windows."""
    return (PATTERN * (6 * 32)) + PATTERN[0]


def main():
    folder = Path(__file__).resolve().parent
    for name, text in (("spirals.csv", spirals()), ("sine.csv", sine()), ("pattern.txt", pattern())):
        if "--check" not in sys.argv[1:]:
            (folder / name).write_text(text)
        elif (folder / name).read_text() != text:
            sys.exit(f"{folder / name} is not what make.py writes")


if __name__ == "__main__":
    main()
