"""Measure this machine: every op and every main job against its floor and every peer present.

    python -m benchmarks [--quick | --full | --gpu] [--only step,quality] [--compare bench.jsonl]

`trustbench bench` runs this. benchmarks/README.md says how figures are made.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import heap  # and not torch, whose settings trustbench chooses first
from trustbench.benchmarking import BenchConfig
from trustbench.errors import TrustbenchError, bad

PEERS = Path(__file__).parents[1] / ".peers" / "bin" / "python"


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 1 where one of ours failed, or a ratio moved; 2 for bad flags."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.splitlines()[0])
    for field in dataclasses.fields(BenchConfig):
        kind = {"action": "store_true"} if field.default is False else {"default": field.default}
        parser.add_argument(f"--{field.name.replace('_', '-')}", **kind)
    parser.add_argument("--rehearse", action="store_true", help="--gpu without one, at toy sizes")
    options = vars(parser.parse_args(words))
    rehearse = options.pop("rehearse")
    try:
        config = BenchConfig(**options)
        if config.gpu:
            return gpu(config, rehearse=rehearse)
        return cpu(config, "full" if config.full else "quick")
    except TrustbenchError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def cpu(config: BenchConfig, scale: str) -> int:
    """Measure, write bench.{jsonl,about.json,md,html}, and what else was asked.

    Raises
    ------
    InputError, DataError
        For an unknown subject, or a record that cannot be compared: before anything is measured.
    """
    from benchmarks import compare, readme, report, suite
    from benchmarks.record import RESULTS, read

    only = [name.strip() for name in config.only.split(",") if name.strip()]
    if any(name not in suite.SUBJECTS for name in only):
        raise bad("only", config.only, f"subjects out of: {', '.join(suite.SUBJECTS)}")
    before, then = read(Path(config.compare)) if config.compare else (None, {})
    if before and then["config"]["scale"] != scale:  # other shapes: nothing to compare
        wanted = f"a record of --{scale}, not --{then['config']['scale']}"
        raise bad("compare", config.compare, wanted)
    peers = config.peers_python or str(PEERS if PEERS.exists() else sys.executable)
    out, (rows, about, failed) = Path(config.out), suite.run(scale, only, os.path.abspath(peers))
    report.write(rows, about, out / "bench")
    print(f"{report.markdown(rows)}\nwritten to {out}/bench.jsonl, bench.md and bench.html")
    if before:
        text, moved = compare.table(before, rows, then["commit"])
        print(f"\n{text}")
        failed += [f"{len(moved)} ratios moved"] if moved else []
    for line in failed:
        print(f"FAILED: {line}", file=sys.stderr)
    if config.readme and failed:
        print("not recorded: something failed, see above", file=sys.stderr)
    elif config.readme:
        for kind in ("jsonl", "about.json"):
            shutil.copy(out / f"bench.{kind}", RESULTS / f"cpu.{kind}")
        readme.write()
        print(f"recorded in {RESULTS}/cpu.jsonl, and the README's figures are from it")
    return int(bool(failed))


def gpu(config: BenchConfig, *, rehearse: bool) -> int:
    """The same on a GPU, or rehearsed without one."""
    with tempfile.TemporaryDirectory() as folder:
        if rehearse:  # before anything imports Triton; it compiles and remembers nothing
            os.environ |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
            os.environ |= {"XDG_CACHE_HOME": folder}
        from benchmarks import gpu as on_gpu

        return on_gpu.run(Path(config.out), rehearse=rehearse)


if __name__ == "__main__":
    if heap.keeping() != dict(
        os.environ
    ):  # who is timed keeps what it frees, and so does this process
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], heap.keeping())
    sys.exit(main())
