"""This server against its peers: the same scenarios, model, machine and minute.

In every round each scenario runs on all servers, one after the other, while the others idle;
figures are medians over the rounds, targets are ratios. Nothing is asserted: read the table.
`python -m bench.compare --llama-server PATH` writes table, JSON and plots to bench/results/; with
`--models 0.5b 1.5b demo` for each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench import embeddings, synthetic
from bench.peers import Peer, llama_cpp_python, llama_server, ours
from bench.scenarios import FIGURES, SCENARIOS, Site
from llm_server.demo import demo_model_path
from llm_server.programs import exit_on_signals

RESULTS = Path(__file__).parent / "results"
US = "llm-server"


@dataclass
class Results:
    """Figures of all rounds by name and server, and the errors where there are none."""

    figures: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    errors: dict[str, str] = field(default_factory=dict)

    def median(self, name: str, peer: str) -> float | None:
        """The median of the rounds, None where nothing could be measured."""
        values = self.figures[name].get(peer)
        return statistics.median(values) if values else None

    def ratio(self, name: str, peer: str) -> float | None:
        """Ours to theirs: the median of the ratios of each round."""
        pairs = zip(self.figures[name][US], self.figures[name].get(peer, []), strict=False)
        ratios = [us / them for us, them in pairs if them]
        return statistics.median(ratios) if ratios else None


def measure(peers: list[Peer], model: Path, rounds: int, threads: int) -> Results:
    """All rounds. A scenario that a server cannot do costs it that scenario only."""
    results = Results()
    for n in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            sites: dict[str, Site] = {}
            try:
                for peer in peers:
                    sites[peer.name] = Site(peer, model, Path(folder) / peer.name, threads)
                    sites[peer.name].start()
                _round(sites, results, n)
            finally:
                for site in sites.values():
                    site.stop()
    return results


def _round(sites: dict[str, Site], results: Results, n: int) -> None:
    for scenario in SCENARIOS:
        # Who goes first changes with the round, so that nobody always follows the same one.
        names = list(sites) if n % 2 else list(sites)[::-1]
        for name in names:
            try:
                figures = scenario(sites[name], f"round {n}")
            except (RuntimeError, httpx.HTTPError, ValueError, OSError) as error:
                label = getattr(scenario, "__qualname__", "scenario").split(".")[0]
                results.errors[f"{name}, {label}"] = str(error)[:200]
                continue
            for figure, value in figures.items():
                results.figures[figure][name].append(value)
                print(
                    f"round {n}, {name}, {figure}: {value:.4g} {FIGURES[figure].unit}", flush=True
                )


def measure_embeddings(
    results: Results, rounds: int, threads: int, llama_server: Path | None
) -> None:
    """Texts a second of an encoder, whatever model the rest is about."""
    for one in embeddings.rounds_of(rounds, threads, llama_server):
        figures = results.figures[f"embeddings, {embeddings.N_TEXTS} texts of {one.n_words} words"]
        figures[US].append(one.ours)
        if one.theirs is not None:
            figures["llama-server"].append(one.theirs)


def table(results: Results, peers: list[Peer]) -> Table:
    """Medians, spread of ours, and ratios with their targets."""
    others = [peer.name for peer in peers if peer.name != US]
    shown = Table("scenario", "unit", US, *[c for o in others for c in (o, "ratio")], "target", "")
    for name, figure in FIGURES.items():
        cells = [name, figure.unit, _spread(results.figures[name].get(US, []))]
        missed = False
        for other in others:
            median, ratio = results.median(name, other), results.ratio(name, other)
            cells += ["-" if median is None else f"{median:.4g}"]
            cells += ["-" if ratio is None else f"{ratio:.3f}"]
            missed |= ratio is not None and other == others[0] and not figure.met(ratio)
        sign = ">=" if figure.higher_is_better else "<="
        cells += ["" if figure.target is None else f"{sign} {figure.target}"]
        shown.add_row(*cells, "MISSED" if missed else "")
    return shown


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    middle = f"{statistics.median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.4g} to {max(values):.4g})"


def plot(results: Results, peers: list[Peer], folder: Path) -> None:
    """One bar a scenario and peer: how many times better we are, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    others = [peer.name for peer in peers if peer.name != US]
    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(FIGURES) + 1.5))
    labels = list(FIGURES)[::-1]
    for i, other in enumerate(others):
        ratios = [results.ratio(name, other) for name in labels]
        better = [
            0.0 if r is None else (r if FIGURES[name].higher_is_better else 1 / r)
            for name, r in zip(labels, ratios, strict=True)
        ]
        height = 0.8 / len(others)
        places = [y + i * height for y in range(len(labels))]
        bars = axes.barh(places, better, height, left=0, label=f"against {other}")
        texts = ["" if r is None else f"{b:.2g}x" for r, b in zip(ratios, better, strict=True)]
        axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks([y + 0.4 - 0.4 / len(others) for y in range(len(labels))], labels)
    axes.set_xlabel("times better than the peer (medians of the same run)")
    axes.legend()
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(folder / f"compare.{kind}", dpi=150)


def compare(
    binary: Path | None, model: Path, *, rounds: int, threads: int, folder: Path
) -> Results:
    """Measure, print the table, and write it to `folder` with the figures and the plots.

    `binary` is llama.cpp's server. Peers that are not there are named with the reason.
    """
    exit_on_signals()  # so that no server is left behind
    print(
        f"Table, figures and plots go to {folder}. Each of {rounds} rounds takes minutes with a "
        "small model, and an hour or more with a large one on a small machine.",
        flush=True,
    )
    peers, absent = [ours()], {}
    if binary:
        peers.append(llama_server(binary))
    else:
        absent["llama-server"] = "give its binary with --llama-server PATH"
    try:
        peers.append(llama_cpp_python())
    except RuntimeError as error:
        absent["llama_cpp.server"] = str(error)
    results = measure(peers, model, rounds, threads)
    results.errors.update(absent)
    measure_embeddings(results, rounds, threads, binary)
    console = Console(record=True, width=130)
    console.print(table(results, peers))
    for what, reason in results.errors.items():
        console.print(f"{what}: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.txt").write_text(console.export_text())
    figures = {name: dict(by_peer) for name, by_peer in results.figures.items()}
    data = {"model": model.name, "threads": threads, "figures": figures, "errors": results.errors}
    (folder / "compare.json").write_text(json.dumps(data, indent=1))
    if len(peers) > 1:
        plot(results, peers, folder)
    return results


def find(name: str, threads: int) -> Path:
    """The model that a size, "demo" or a path means; copied or built in build/ if need be."""
    if name in synthetic.SHAPES:
        return synthetic.build(name, n_threads=threads)
    if name != "demo":
        return Path(name)
    copy = synthetic.BUILD / "demo" / demo_model_path().name
    copy.parent.mkdir(parents=True, exist_ok=True)
    # A copy: a server serves all files of a folder, and may be given a second one there.
    shutil.copy(demo_model_path(), copy)
    return copy


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare this server with its peers.")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server binary")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["0.5b"],
        help="sizes of synthetic models (0.5b, 1.5b), demo, or GGUF files, one after the other",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder in it a model")
    args = parser.parse_args()
    for name in args.models:
        model = find(name, args.threads)
        folder = args.results / model.stem
        compare(args.llama_server, model, rounds=args.rounds, threads=args.threads, folder=folder)


if __name__ == "__main__":
    main()
