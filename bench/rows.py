"""What a step of so many rows costs behind so many tokens: a bare `llama_decode`, no server.

One row decodes and the others are a prompt's: it is what `engine/pace.py` rests on. A second table
is about streams alone, each with tokens of its own. `python -m bench.rows`.
"""

from __future__ import annotations

import argparse
import statistics
from typing import get_args

from rich.console import Console
from rich.table import Table

from bench import synthetic
from bench.bare import BareLoop
from llm_server.worker.config import FlashAttention

DEPTHS = (64, 512, 1536, 3072)
SIZES = (1, 8, 16, 20, 32, 48, 63, 64, 65, 80, 96, 128, 256)
STREAMS = ((1, 1536), (2, 1536), (8, 100), (8, 500), (8, 1536), (32, 100), (32, 300))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The cost of a step by its rows and their depth.")
    parser.add_argument("--size", choices=["0.5b", "1.5b"], default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash-attn", choices=get_args(FlashAttention), default="auto")
    args = parser.parse_args()
    bare = BareLoop(
        synthetic.build(args.size),
        n_ctx=max(max(DEPTHS) + 2 * max(SIZES), max(n * (depth + 1) for n, depth in STREAMS)),
        n_streams=max(n for n, _ in STREAMS),
        n_threads=args.threads,
        flash_attn=args.flash_attn,
    )
    table = Table("rows", *(f"behind {depth}" for depth in DEPTHS), title="ms a step (ms a row)")
    bare.step_seconds(DEPTHS[0], SIZES)  # the weights come into memory
    columns = []
    for depth in DEPTHS:
        rounds = [bare.step_seconds(depth, SIZES) for _ in range(args.rounds)]
        columns.append([1000 * statistics.median(times) for times in zip(*rounds, strict=True)])
    for size, row in zip(SIZES, zip(*columns, strict=True), strict=True):
        table.add_row(str(size), *(f"{ms:.0f} ({ms / size:.1f})" for ms in row))
    streams = Table("streams", "behind", title="ms a step")
    streams.add_column("ms")
    for n, depth in STREAMS:
        ms = 1000 * statistics.median(bare.streams_seconds(n, depth) for _ in range(args.rounds))
        streams.add_row(str(n), f"{depth} each", f"{ms:.0f}")
    bare.close()
    Console().print(table, streams)


if __name__ == "__main__":
    main()
