"""How long threads should spin for each other: what a bare loop computes by GOMP_SPINCOUNT.

Tokens of one stream, and rows of a prompt in steps of 64; alone, and beside a program that keeps
one core busy. Each setting has a process of its own, as OpenMP reads it once; settings take turns.
It is what `worker/process.py` rests on. `python -m bench.spin`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.bare import BareLoop
from bench.client import ROOT, busy
from bench.compare import find

SETTINGS = ("", "100000", "30000", "10000", "3000", "1000")
N_TOKENS = 48
N_STEPS = 6
ROWS, DEPTH = 64, 512
PROMPT = "The stream is about water and oil."
CASES = ("decoding", "prompt")


def speeds(model: Path, threads: int, setting: str) -> list[float]:
    """By case, tokens a second in a process with this GOMP_SPINCOUNT, "" for none."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    if setting:
        environment["GOMP_SPINCOUNT"] = setting
    command = [sys.executable, "-m", "bench.spin", "--measure", str(model), str(threads)]
    output = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)
    return [float(word) for word in output.split()]


def measure(model: Path, threads: int) -> None:
    """Print what `speeds` returns, as measured in this process."""
    loop = BareLoop(model, n_ctx=1024, n_streams=2, n_threads=threads)
    decoding = loop.decode([PROMPT], N_TOKENS)
    steps = loop.step_seconds(DEPTH, [ROWS] * N_STEPS)
    print(decoding, ROWS / statistics.median(steps))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed by how long threads spin.")
    parser.add_argument("--model", default="0.5b", help="a synthetic size, demo, or a GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        path, threads = args.measure
        measure(Path(path), int(threads))
        return
    model = find(args.model, args.threads)
    figures: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for n_busy in (0, 1):
            with busy(n_busy):
                for setting in SETTINGS:
                    for case, speed in zip(
                        CASES, speeds(model, args.threads, setting), strict=True
                    ):
                        figures[setting, case, n_busy].append(speed)
    show(figures)


def show(figures: dict[tuple[str, str, int], list[float]]) -> None:
    """Print the table: tokens a second, and in brackets the ratio to OpenMP's default."""
    columns = [(case, n_busy) for n_busy in (0, 1) for case in CASES]
    names = (f"{case}, {'one core busy' if n_busy else 'alone'}" for case, n_busy in columns)
    table = Table("GOMP_SPINCOUNT", *names, title="tokens a second (to the default)")
    for setting in SETTINGS:
        cells = []
        for column in columns:
            mine, default = figures[setting, *column], figures["", *column]
            ratio = statistics.median(a / b for a, b in zip(mine, default, strict=True))
            cells.append(f"{statistics.median(mine):.1f} ({ratio:.2f})")
        table.add_row(setting or "(default)", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
