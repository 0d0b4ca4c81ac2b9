"""One run of the suite: pytest in a process of its own, then the report, and what else was asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import compare as comparison
from benchmarks import readme as figures
from benchmarks import report
from benchmarks.machine import HERE, RESULTS
from benchmarks.peers import heap
from benchmarks.record import Record
from benchmarks.subjects import subjects
from trustbench.errors import bad


def run(
    *,
    scale: str,
    only: Sequence[str],
    out: Path,
    peers_python: str,
    compare: Path | None,
    readme: bool,
) -> int:
    """Measure, write `out`/bench.{json,md,html}; the exit status. See trustbench.bench."""
    known = {subject.name: subject for subject in subjects()}
    if unknown := [name for name in only if name not in known]:
        raise bad("only", ",".join(unknown), f"subjects out of: {', '.join(known)}")
    before = Record.load(compare) if compare else None  # a bad file is told before the minutes
    if before and before.machine["scale"] != scale:  # other shapes: nothing to compare
        raise bad("compare", str(compare), f"a record of --{scale}, not --{before.machine['scale']}")
    out.mkdir(parents=True, exist_ok=True)
    written = out.resolve() / "bench.json"
    written.unlink(missing_ok=True)
    paths = [str(known[name].path()) for name in only or known]
    status = _pytest(paths, scale, written, peers_python)
    if not written.exists():
        return status or 1
    found = Record.load(written)
    report.write(found, out, "bench")
    print(f"written to {out}/bench.json, bench.md and bench.html")
    if before:
        text, moved = comparison.table(before, found)
        print(f"\n{text}")
        status = status or int(bool(moved))
    if readme and status:
        print("not recorded: a case failed, see above", file=sys.stderr)
    elif readme:
        for kind in ("json", "md"):
            shutil.copy(out / f"bench.{kind}", RESULTS / f"cpu.{kind}")
        figures.write()
        print(f"recorded in {RESULTS}/cpu.json, and the README's figures are from it")
    return status


def _pytest(paths: list[str], scale: str, written: Path, peers_python: str) -> int:
    peers = ["--peers-python", peers_python] if peers_python else []
    command = [
        sys.executable, "-m", "pytest", *paths, "--scale", scale, *peers, "-q", "-rfE",
        "--benchmark-quiet", "--benchmark-json", str(written),
        "-o", "timeout=0", "-W", "ignore::pytest.PytestConfigWarning", "-p", "no:cacheprovider",
    ]  # fmt: skip
    # Run by a test that shares its machine with others, this is a run of its own nevertheless.
    environment = {
        n: value for n, value in heap.keeping().items() if not n.startswith("PYTEST_XDIST")
    }
    return subprocess.run(command, cwd=HERE.parent, env=environment).returncode
