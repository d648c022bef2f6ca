"""Bytes and time of one more token, and of reading, against the length of the story: constant with pins, growing with everything kept."""

import random
import time

import torch

from selkey.bench import timing
from selkey.bench.marks.contestants import CONTESTANTS
from selkey.bench.marks.stories import PIECE, SIZES, TRAINED, Reader, story, storyteller, weights
from selkey.bench.marks.streams import Stream

WORKLOAD = "marks_flat"
# so many tokens leave the window at once: the time of a token is a mean over them
_RUN = max(1, SIZES["window"] // 32)
_HUMAN = next(one for one in CONTESTANTS if one.name == "human")


def rows(lengths, seed, rounds, watch):
    """Arguments of a row for each length, with pins and with everything kept.

    What is timed takes turns: every length and both caches once in each round, in rotating order.

    Args:
        lengths: tokens of the story where it is timed, ascending.
        seed: of the story.
        rounds: how many times.
        watch: told what is being done.
    """
    text = story(storyteller()[1], random.Random(f"flat {seed}"), lengths[-1] + PIECE)
    reader, bounded = Reader(SIZES), {}
    stream = Stream(reader, [_HUMAN.make(text.facts, SIZES["pins"], None)], PIECE)
    for length in lengths:
        watch(f"stories: reading {length:,} tokens")
        stream.read(text.tokens[None, stream.seen : length])
        bounded[length] = reader.fork()
    readers = {("human", length): bounded[length] for length in lengths} | {("dense", length): _filled(length) for length in lengths}
    held = {key: one.nbytes for key, one in readers.items()}
    steps, pieces = {key: [] for key in readers}, {key: [] for key in readers}
    order = list(readers)
    for number in range(rounds + 1):
        watch(f"stories: timing, round {number} of {rounds}")
        for key in order[number % len(order) :] + order[: number % len(order)]:
            step = _timed(readers[key], text.tokens[None, :1], _RUN)
            piece = _timed(readers[key], text.tokens[None, :PIECE], 1) / PIECE
            if number:  # the first is to warm up
                steps[key].append(step)
                pieces[key].append(piece)
    for (name, length), samples in steps.items():
        found = timing.summary(samples)
        block = {
            "timer": "perf_counter", "cache_mode": "unproven", "cold_proof": None,
            "t_us": {one: found[one] for one in ("min", "p10", "p50", "p90", "max")}, "n": found["n"], "ci95_us": found["ci95"],
            "ci95_rel": found["ci95_rel"], "converged": None, "samples_us": [round(sample, 3) for sample in samples],
            "read_us": timing.summary(pieces[name, length])["p50"],
        }  # fmt: skip
        case = {"workload": WORKLOAD, "data": "stories", "context": length, "dtype": "fp32", "batch": 1, "piece": PIECE, "trained": TRAINED}
        case |= {"cfg_id": f"{WORKLOAD}-n{length}", "weights": weights()} | (SIZES if name == "human" else {})
        label = _HUMAN.label if name == "human" else "everything (transformers' cache)"
        yield {
            "case": case, "impl": {"name": name, "label": label}, "state": "ok", "reason": None, "time": block,
            "mem": {"total_bytes": held[name, length]},
        }  # fmt: skip


def _filled(length):
    """A reader that keeps everything, of so many random rows: what they say is of no matter for the time."""
    reader, config = Reader(None), storyteller()[0].config
    for layer in range(config.num_hidden_layers):
        reader.cache.update(*torch.randn(2, 1, config.num_key_value_heads, length, config.head_dim), layer)
    return reader


def _timed(reader, tokens, times):
    """Microseconds of feeding the tokens, a mean over so many times."""
    begin = time.perf_counter_ns()
    for _ in range(times):
        reader.feed(tokens)
    return (time.perf_counter_ns() - begin) / 1e3 / times
