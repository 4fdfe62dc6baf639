#!/usr/bin/env python3
"""A smoothed trigram model of bytes: the loss that a trained model has to beat.

Witten-Bell interpolation of trigram, bigram, unigram and uniform:
    p(c|ab) = (n(abc) + t(ab) p(c|b)) / (n(ab) + t(ab)),   t(ab): how many different bytes followed ab.
It is fitted on the bytes of the training windows and evaluated on exactly the targets of the held-out windows, as
include/trainer/storage/dataset.hpp cuts them. It always sees two bytes of context, also where a window begins.
"""
import argparse
import math
import sys
from collections import Counter


def split_windows(size, positions, fraction):
    """(training windows, windows): window i has the inputs [i*positions, (i+1)*positions) and the targets one later."""
    windows = (size - 1) // positions
    held_out = max(1, math.floor(windows * fraction)) if fraction > 0 else 0
    return windows - held_out, windows


class Trigram:
    def __init__(self, data):
        self.trigrams = Counter(zip(data, data[1:], data[2:]))
        self.bigrams = Counter(zip(data, data[1:]))
        self.unigrams = Counter(data)
        self.total = len(data)
        # How often each context was followed by something, and by how many different bytes.
        self.after_pair, self.kinds_after_pair = Counter(), Counter()
        for (a, b, _), n in self.trigrams.items():
            self.after_pair[a, b] += n
            self.kinds_after_pair[a, b] += 1
        self.after_byte, self.kinds_after_byte = Counter(), Counter()
        for (a, _), n in self.bigrams.items():
            self.after_byte[a] += n
            self.kinds_after_byte[a] += 1

    def probability(self, a, b, c):
        kinds = len(self.unigrams)
        p = (self.unigrams[c] + kinds / 256) / (self.total + kinds)
        n, kinds = self.after_byte[b], self.kinds_after_byte[b]
        if n:
            p = (self.bigrams[b, c] + kinds * p) / (n + kinds)
        n, kinds = self.after_pair[a, b], self.kinds_after_pair[a, b]
        if n:
            p = (self.trigrams[a, b, c] + kinds * p) / (n + kinds)
        return p


def held_out_loss(data, positions, fraction):
    """Nats a byte on the held-out targets, and how many there are."""
    training, windows = split_windows(len(data), positions, fraction)
    if training < 1 or windows == training:
        raise ValueError(f"{len(data)} bytes give {training} training and {windows - training} held-out windows")
    first, end = training * positions + 1, windows * positions + 1  # of the held-out targets
    model = Trigram(data[:first])
    seen = Counter(zip(data[first - 2 : end - 2], data[first - 1 : end - 1], data[first:end]))
    loss = -sum(n * math.log(model.probability(*abc)) for abc, n in seen.items())
    return loss / (end - first), end - first


def self_test():
    model = Trigram(b"abracadabra")
    for a, b in (b"ab", b"br", b"zz", b"az"):  # seen, seen, unseen pair, unseen after a seen byte
        total = sum(model.probability(a, b, c) for c in range(256))
        assert abs(total - 1) < 1e-12, (a, b, total)
    assert model.probability(*b"abr") > 0.5
    assert split_windows(11, 5, 0.05) == (1, 2) and split_windows(10, 5, 0.5) == (0, 1)
    periodic, count = held_out_loss(b"abc" * 1000, 10, 0.05)
    assert count == 140 and periodic < 0.01, (periodic, count)
    print("trigram: self test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="build/data/english.txt")
    parser.add_argument("--positions", type=int, default=128, help="training.sequence_length (128)")
    parser.add_argument("--fraction", type=float, default=0.05, help="data.validation_fraction (0.05)")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    try:
        with open(arguments.text, "rb") as file:
            loss, count = held_out_loss(file.read(), arguments.positions, arguments.fraction)
    except (OSError, ValueError) as error:
        sys.exit(f"trigram: {arguments.text}: {error}")
    print(f"{loss:.6f} nats a byte on {count} held-out bytes of {arguments.text}")


if __name__ == "__main__":
    main()
