"""Whether this checkout computes what another version of trustbench computes, to the bit.

    python scripts/same_as.py ../other                        # a checkout, native modules built there
    python scripts/same_as.py c73e95a                         # a commit: a temporary worktree, built
    python scripts/same_as.py ../other --only train,triton    # some parts

Both run here, side by side, on a tiny random model and made-up text: bits differ between processors,
so none are stored. Parts:

    train      runs of every activation and option, on the command line: weights, metrics, snapshots
    resume     runs stopped midway and continued; they also equal whole ones
    ranks      two processes that divide layers or tokens
    results    eval of a run and of a snapshot, capture, training on it, heads
    triton     steps on Triton kernels, in Triton's interpreter: weights, moments, figures
    counts     instructions that the C++ kernels execute (benchmarks/guard): as many, or fewer

One line a comparison, with the first difference where there is one. The exit status is 1 when
something differs that INTENDED does not name. Four minutes on 2 cores; counts takes one of them, and
only where csrc/ differs.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tests import tiny  # noqa: E402

PARTS = ("train", "resume", "ranks", "results", "triton", "counts")
SIDES = ("old", "new")
TIMEOUT = 600  # seconds of a part

# What may differ, and why: {"part, case: figure", with * and ?: reason}.
_FUSED = "JumpReLU's step is fused: the same sums in another order"
_CLIPPED = "the squared norm that clips is summed in fp64"
INTENDED: dict[str, str] = {
    "train, jumprelu*": _FUSED,
    "resume, jumprelu, l0, whole:*": _FUSED,
    "resume, jumprelu, l0, resumed:*": _FUSED,
    "ranks, jumprelu*": _FUSED,
    "triton, *clip*": _CLIPPED,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("old", help="a checkout, or a commit of this one")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkouts = {"old": stack.enter_context(checkout(options.old)), "new": ROOT}
        for side, root in checkouts.items():
            package(root, work / side / "package")
            tiny.write_model(work / side / "model", tiny.tokenizer(), 80)
            tiny.write_text(work / side / "text.txt")
        same = [run(part, work, checkouts) for part in parts]
    return 0 if all(same) else 1


@contextmanager
def checkout(named: str) -> Iterator[Path]:
    """The folder of a version: as given, or made of a commit, with its native modules."""
    if Path(named).is_dir():
        yield Path(named).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "checkout")
        subprocess.run(
            ["git", "-C", ROOT, "worktree", "add", "-q", "--detach", root, named], check=True
        )
        try:
            print(f"building the native modules of {named}", flush=True)
            subprocess.run(
                [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
                cwd=root,
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"TRUSTBENCH_CUDA": "OFF"},
            )
            yield root
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", root], check=True)


def package(root: Path, target: Path) -> None:
    """Links to a checkout's files, laid out as installing it would: its own package, and its kernels.

    Put first on the search path it hides whatever trustbench the interpreter has installed.
    """
    if not list((root / "trustbench").glob("_C*.so")):
        raise SystemExit(
            f"{root}: trustbench._C is not built there;"
            " run `python setup.py build_ext --inplace` in that folder"
        )
    kernels = target / "trustbench" / "kernels"
    kernels.mkdir(parents=True)
    for path in (root / "trustbench").iterdir():
        if path.name != "kernels":
            (target / "trustbench" / path.name).symlink_to(path)
    for path in (root / "trustbench" / "kernels").glob("*.py"):
        (kernels / path.name).symlink_to(path)
    (kernels / "triton").symlink_to(root / "kernels" / "triton")
    (target / "benchmarks").symlink_to(root / "benchmarks")


def run(part: str, work: Path, checkouts: dict[str, Path]) -> bool:
    """Do a part on both sides, compare, say so; whether nothing differs that must not."""
    if part == "counts" and _same_sources(*checkouts.values()):
        print("same     counts: the sources are the same", flush=True)
        return True
    with ThreadPoolExecutor() as pool:
        failures = list(pool.map(lambda side: _probe(part, work / side, checkouts[side]), SIDES))
    for side, failure in zip(SIDES, failures, strict=True):
        if failure:
            print(f"DIFFERS  {part}: the {side} one fails:\n{failure}", flush=True)
    if any(failures):
        return False
    old, new = (torch.load(work / side / part / "noted.pt", weights_only=True) for side in SIDES)
    same = [compare(f"{part}, {case}", old[case], new.get(case, {}), part) for case in old]
    for case in new:
        if whole := new.get(case.replace(", resumed", ", whole")) if "resumed" in case else None:
            same.append(compare(f"{part}, {case} and whole", whole, new[case], part))
    return all(same)


def _same_sources(old: Path, new: Path) -> bool:
    """Whether both would count the instructions of the same sources in the same way."""
    compared = ["git", "diff", "--no-index", "--quiet"]
    names = ("CMakeLists.txt", "csrc", "benchmarks/guard")
    return not any(subprocess.run([*compared, old / name, new / name]).returncode for name in names)


def _probe(part: str, folder: Path, root: Path) -> str:
    """One part on one side; what went wrong, or ""."""
    (folder / part).mkdir()
    env = os.environ | {
        # The counts look for csrc/ beside benchmarks/, where links would lead them astray.
        "PYTHONPATH": str(root if part == "counts" else folder / "package"),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
        "TRITON_INTERPRET": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1",
        "TQDM_DISABLE": "1",
    }  # fmt: skip
    start = [sys.executable]
    if part == "ranks":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    probe = Path(__file__).with_name("same_as_probe.py")
    try:
        done = subprocess.run(
            [*start, probe, part, folder / part], env=env, cwd=folder, text=True,
            capture_output=True, timeout=TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it was not done within {TIMEOUT} s"
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}"[-3000:]


def compare(name: str, old: dict[str, Any], new: dict[str, Any], part: str) -> bool:
    """Print how one comparison ends; whether nothing differs that must not."""
    found = [(figure, differs(old[figure], new.get(figure), part)) for figure in old]
    different = [(figure, how) for figure, how in found if how]
    reasons = {figure: _reason(f"{name}: {figure}") for figure, _ in different}
    wrong = [(figure, how) for figure, how in different if not reasons[figure]]
    if wrong:
        (figure, how), more = wrong[0], len(wrong) - 1
        tail = f"; and {more} more" if more else ""
        print(f"DIFFERS  {name}: {figure}: {how}{tail}", flush=True)
        return False
    said = f"{len(old)} figures"
    if different:
        said += f", but for {len(different)}: " + "; ".join(sorted(set(reasons.values())))
    print(f"same     {name}: {said}", flush=True)
    return True


def _reason(figure: str) -> str:
    """Why a figure may differ, or ""."""
    return next((why for like, why in INTENDED.items() if fnmatch.fnmatchcase(figure, like)), "")


def differs(old: Any, new: Any, part: str) -> str:
    """How two figures differ, or ""."""
    if part == "counts":
        return "" if new is not None and new <= old else f"{old} instructions, now {new}"
    if not isinstance(old, torch.Tensor):  # the shortest text that gives a float back, nan too
        return "" if repr(old) == repr(new) else f"{old!r}, now {new!r}"
    if not isinstance(new, torch.Tensor) or (old.dtype, old.shape) != (new.dtype, new.shape):
        now = f"{new.dtype} {list(new.shape)}" if isinstance(new, torch.Tensor) else repr(new)
        return f"{old.dtype} {list(old.shape)}, now {now}"
    # Bytes: nan equals itself, and 0 is not -0.
    rows = [t.contiguous().reshape(-1, 1).view(torch.uint8) for t in (old, new)]
    unequal = (rows[0] != rows[1]).any(1).nonzero().flatten()
    if not len(unequal):
        return ""
    values = [t.flatten()[unequal[0]].item() for t in (old, new)]
    return (
        f"{len(unequal)} of {old.numel()} numbers, the first [{int(unequal[0])}]:"
        f" {values[0]!r}, now {values[1]!r}"
    )


if __name__ == "__main__":
    sys.exit(main())
