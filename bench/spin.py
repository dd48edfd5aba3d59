"""How long threads should spin for each other: a bare loop's tokens a second by GOMP_SPINCOUNT.

Alone, and beside a program that keeps one core busy. Each setting has a process of its own, as
OpenMP reads it once; settings take turns. It is what `worker/process.py` rests on.
`python -m bench.spin`.
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

SETTINGS = ("", "10000", "3000", "1000", "300")
N_TOKENS = 48
PROMPT = "The stream is about water and oil."


def speed(model: Path, threads: int, setting: str) -> float:
    """Tokens a second of one stream in a process with this GOMP_SPINCOUNT, "" for none."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    if setting:
        environment["GOMP_SPINCOUNT"] = setting
    command = [sys.executable, "-m", "bench.spin", "--measure", str(model), str(threads)]
    return float(subprocess.check_output(command, cwd=ROOT, env=environment, text=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Decode speed by how long threads spin.")
    parser.add_argument("--model", default="0.5b", help="a synthetic size, demo, or a GGUF file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        path, threads = args.measure
        loop = BareLoop(Path(path), n_ctx=512, n_streams=1, n_threads=int(threads))
        print(loop.decode([PROMPT], N_TOKENS))
        return
    model = find(args.model, args.threads)
    figures: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for n_busy in (0, 1):
            with busy(n_busy):
                for setting in SETTINGS:
                    figures[setting, n_busy].append(speed(model, args.threads, setting))
    table = Table("GOMP_SPINCOUNT", "alone, tok/s", "to the default", "one core busy", "to it")
    for setting in SETTINGS:
        cells = []
        for n_busy in (0, 1):
            pairs = zip(figures[setting, n_busy], figures["", n_busy], strict=True)
            ratio = statistics.median(one / default for one, default in pairs)
            cells += [f"{statistics.median(figures[setting, n_busy]):.1f}", f"{ratio:.2f}"]
        table.add_row(setting or "(default)", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
