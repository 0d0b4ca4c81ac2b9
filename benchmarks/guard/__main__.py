"""Hold the kernels to what is recorded of them, or record anew.

    python -m benchmarks.guard            # exit status 1 where something differs; minutes
    python -m benchmarks.guard --update   # rewrite the records, say by how much each figure changed

Checked: instructions that the C++ kernels execute; registers, memory and instructions of the CUDA
kernels; time of the CPU ops over plain PyTorch's. The Triton kernels are compiled by the test suite,
which holds them to their record (tests/kernels/test_resources.py); --update records them as well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.guard import cuda, native, ratios, records, sass, triton


def check() -> bool:
    """Whether everything is as recorded; prints what is not."""
    return all([check_counts(), _check_cuda(), _check_ratios()])


def check_counts(root: Path = native.ROOT) -> bool:
    """Whether the kernels of this checkout, or of a copy of it, execute what is recorded."""
    made_by, has = native.compiler(), native.isas()
    recorded = records.read(records.path_of("cpp", made_by))
    if recorded is None:
        print(f"C++: NOT COMPARED. There is no record for {made_by}; {records.UPDATE} makes one.")
        return False
    absent = {name.rpartition(", ")[2] for name in recorded} - set(has)
    if absent:
        print(f"C++: not compared, as this processor lacks them: {', '.join(sorted(absent))}")
    kept = {name: n for name, n in recorded.items() if name.rpartition(", ")[2] in has}
    found = native.count(root)
    return _say(f"C++, {made_by}: {len(found)} counts of instructions", records.changes(kept, found))


def _check_cuda() -> bool:
    built, tools = cuda.module(), sass.tools()
    if built is None or tools is None:
        missing = (
            "trustbench._cuda is not built" if built is None else "Triton's cuobjdump is missing"
        )
        print(f"CUDA: not compared, as {missing} here")
        return True
    made_by = cuda.compiler(built)
    recorded = records.read(records.path_of("cuda", made_by))
    if recorded is None:
        print(f"CUDA: not compared. There is no record for {made_by}; {records.UPDATE} makes one.")
        return True
    found = cuda.measure(built, tools)
    return _say(f"CUDA, {made_by}: {len(found)} kernels", records.changes(recorded, found))


def _check_ratios() -> bool:
    isa = ratios.version()
    recorded = records.read(records.path_of("ratios", isa))
    if recorded is None:
        print(f"Ratios: not compared. There is no record for {isa}; {records.UPDATE} makes one.")
        return True
    slower = records.slower(recorded, ratios.measure(), ratios.BOUND)
    return _say(f"Time over plain PyTorch's, {isa}: {len(recorded)} ops", slower)


def update() -> None:
    """Measure everything there is here and record it."""
    has = native.isas()
    counts = records.path_of("cpp", native.compiler())
    kept = records.read(counts) or {}  # of instruction sets that this processor lacks
    kept = {name: n for name, n in kept.items() if name.rpartition(", ")[2] not in has}
    new = {
        counts: kept | native.count(),
        records.path_of("ratios", ratios.version()): ratios.measure(),
    }
    built, tools = cuda.module(), sass.tools()
    if built and tools:
        new[records.path_of("cuda", cuda.compiler(built))] = cuda.measure(built, tools)
    new[records.path_of("triton", triton.version())] = triton.named(triton.measured())
    for path, figures in new.items():
        _say(f"{path.name}: {len(figures)} figures", records.write(path, figures))


def _say(title: str, found: list[records.Change]) -> bool:
    print(f"{title}, {f'{len(found)} changed:' if found else 'as recorded'}")
    if found:
        print(records.table(found))
    return not found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="rewrite the records")
    if parser.parse_args().update:
        update()
    elif not check():
        print(f"\nIf that is meant to be so: {records.UPDATE}, and commit the records.")
        sys.exit(1)


if __name__ == "__main__":
    main()
