"""One full Adam training step with unit-norm decoder, against every peer, in one run.

    python benchmarks/step.py --peers-python PATH

Rounds go A B C ... A B C ..., so that a machine whose speed drifts is fair to all; each figure is a
median. See benchmarks/README.md for the peers' environment.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from harness import Worker, machine, write

PEERS = ["sparsify", "SAELens", "dictionary_learning"]
RUNS = [
    (name, bf16)
    for name in ["matmul only", "trustbench", *PEERS, "PyTorch dense", "PyTorch dense, compiled"]
    for bf16 in (False, True)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", default=sys.executable, help="python that has the peers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--N", type=int, default=2048)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--F", type=int, default=16384)
    parser.add_argument("--k", type=int, default=32)
    args = parser.parse_args()

    shape = {"d": args.d, "F": args.F, "k": args.k, "lr": 1e-4, "steps": 1000, "dead_after": 0}
    workers = [Worker(name, args.peers_python, bf16=bf16, **shape) for name, bf16 in RUNS]
    present = [w for w in workers if not w.absent]
    for worker in present:  # warm
        for _ in range(2):
            worker.ask(do="step", N=args.N)
    times: dict[Worker, list[float]] = {w: [] for w in present}
    for _ in range(args.rounds):
        for worker in present:
            times[worker].append(worker.ask(do="step", N=args.N)["seconds"])
    figures = []
    for worker in workers:
        figure = {"contender": worker.name, "bf16_matmul": worker.bf16}
        if worker.absent:
            figure["absent"] = worker.absent
        else:
            figure |= {
                "version": worker.version,
                "median_ms": 1e3 * statistics.median(times[worker]),
                "min_ms": 1e3 * min(times[worker]),
                "max_ms": 1e3 * max(times[worker]),
            }
            figure |= {
                f"{key}_mb": value / 2**20 for key, value in worker.ask(do="memory", N=args.N).items()
            }
        figures.append(figure)
        worker.close()

    here = machine()
    ours = {f["bf16_matmul"]: f for f in figures if f["contender"] == "trustbench"}
    lines = [
        f"One Adam step with unit-norm decoder: N = {args.N}, d = {args.d}, F = {args.F},"
        f" k = {args.k}; median of {args.rounds} interleaved rounds.",
        f"{here['cpu']}, {here['threads']} threads, torch {here['torch']}, commit {here['commit']},"
        f" {here['date']}.",
        "",
        "| | version | matmul | ms | trustbench fp32 is | trustbench bf16 is | peak memory, MB |"
        " of it in the step, MB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for f in figures:
        kind = "bf16" if f["bf16_matmul"] else "fp32"
        if "absent" in f:
            lines.append(f"| {f['contender']} | absent: {f['absent']} | {kind} | | | | | |")
            continue
        ratios = [f"{f['median_ms'] / ours[b]['median_ms']:.2f} ×" for b in (False, True)]
        lines.append(
            f"| {f['contender']} | {f['version']} | {kind} | {f['median_ms']:.0f} |"
            f" {ratios[0]} | {ratios[1]} | {f['peak_mb']:.0f} | {f['step_mb']:.0f} |"
        )
    write(
        "cpu_step",
        {"machine": here, "shape": vars(args) | shape, "figures": figures},
        "\n".join(lines) + "\n",
    )


if __name__ == "__main__":
    main()
