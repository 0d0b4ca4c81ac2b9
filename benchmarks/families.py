"""fvu of Gated and Matryoshka SAEs and transcoders beside their peers, on the demo model.

    python -m benchmarks.families [--peers-python PYTHON] [--out DIRECTORY]

Every contender trains on the same activations of one layer in the same order, at each learning rate
of one small grid. Gated SAEs, and ReLU SAEs with an L1 penalty, are compared at equal L0: their
coefficient takes the values of a small grid too, and between two of them fvu is a line in log L0.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks import tables
from benchmarks.cases import label
from benchmarks.quality import SLACK, activations
from benchmarks.record import RESULTS, Row, by_case
from benchmarks.workers import Worker
from trustbench import files, report
from trustbench.report import Table
from trustbench.sae.init import measure_input_scale
from trustbench.studies.demo import assets

SIZES = {
    "layer": 3, "tokens": 51_200, "test_tokens": 8_192, "N": 256, "F": 1024, "k": 32,
    "dead_after": 20_000,
}  # fmt: skip
RATES = (2e-3, 4e-3, 8e-3)
PREFIXES = (64, 128, 256, 512)
L0 = 24.0  # at which penalised families are compared: within what the coefficients give each
# What is compared: the family, who has it, and the coefficients of its penalty.
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], Sequence[float]]] = {
    "gated": (("trustbench", "dictionary_learning", "SAELens"), {}, (3.0, 5.0, 8.0)),
    "relu": (("trustbench",), {}, (3.0, 5.0, 8.0)),
    "matryoshka": (("trustbench", "dictionary_learning", "SAELens"), {"prefixes": PREFIXES}, ()),
    "transcoder": (("trustbench", "sparsify"), {}, ()),
    "transcoder, skip": (("trustbench", "sparsify"), {"skip": True}, ()),
}


def measure(
    peers_python: str, sizes: Mapping[str, int] = SIZES, rates: Sequence[float] = RATES
) -> Iterator[Row]:
    """A row for every family, contender, rate and coefficient."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(3) as pool:
        data = _data(Path(folder), sizes)

        def of(job: tuple[str, str]) -> list[Row]:
            return list(_trained(*job, sizes, rates, data[job[0].split(",")[0]], peers_python))

        jobs = [(case, name) for case, (names, _, _) in CASES.items() for name in names]
        for found in pool.map(of, jobs):
            yield from found


def _data(folder: Path, sizes: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Files of activations, scaled: of the stream, and for a transcoder of an MLP's two ends."""
    sites: dict[str, Sequence[Any]] = {"stream": ("resid_post",), "mlp": ("mlp_in", "mlp_out")}
    found: dict[str, dict[str, str]] = {name: {} for name in sites}
    texts = {"train": (assets.TRAIN_TEXT, "tokens"), "test": (assets.HELDOUT_TEXT, "test_tokens")}
    for name, of in sites.items():
        scales: list[float] = []
        for part, (text, tokens) in texts.items():
            rows = activations(
                text, sizes["layer"], sizes[tokens], shuffled=part == "train", sites=of
            )
            ends = rows.chunk(len(of), dim=1)
            scales = scales or [measure_input_scale(end) for end in ends]
            found[name][part] = str(folder / f"{name}-{part}.pt")
            scaled = [scale * end for scale, end in zip(scales, ends, strict=True)]
            torch.save(torch.cat(scaled, dim=1), found[name][part])
    return {case: found["mlp" if case == "transcoder" else "stream"] for case in CASES}


def _trained(
    case: str,
    contender: str,
    sizes: Mapping[str, int],
    rates: Sequence[float],
    data: Mapping[str, str],
    peers_python: str,
) -> Iterator[Row]:
    _, more, coefficients = CASES[case]
    steps = sizes["tokens"] // sizes["N"]
    width = torch.load(data["test"]).shape[1] // (2 if case.startswith("transcoder") else 1)
    options = {
        "N": sizes["N"], "d": width, "F": sizes["F"], "k": sizes["k"], "steps": steps, "bf16": False,
        "dead_after": sizes["dead_after"], "lr": rates[0], "family": case.split(",")[0], **more,
    }  # fmt: skip
    worker = Worker("families", contender, peers_python, options)
    try:
        for rate, l1 in itertools.product(rates, coefficients or (0.0,)):
            worker.build(options | {"lr": rate, "l1": l1})
            worker.call("train", file=data["train"], start=0, stop=steps * sizes["N"])
            found = worker.call("test", file=data["test"])
            row = {"case": case, "contender": contender, "version": worker.version}
            if found is None:
                yield row | {"absent": worker.absent or "nothing was measured"}
                return
            tuned = {"l1": l1} if coefficients else {}
            print(case, contender, rate, tuned, found, flush=True)
            yield row | {"rate": rate} | tuned | found
    finally:
        worker.close()


def at_l0(points: Iterable[tuple[float, float]], l0: float) -> float | None:
    """fvu at this L0, on the lines between points (L0, fvu) in log L0; None outside of them."""
    points = sorted(points)
    for (a, low), (b, high) in itertools.pairwise(points):
        if a <= l0 <= b:
            share = math.log(l0 / a) / math.log(b / a) if b > a else 0.0
            return low + share * (high - low)
    return None


def best(rows: Iterable[Row], l0: float) -> list[Row]:
    """Of every contender in every case its best rate: at this L0 where a coefficient was tuned."""
    found: dict[tuple[str, str], Row] = {}
    rows = list(rows)
    for row in rows:
        key = row["case"], row["contender"]
        if "l1" in row:
            alike = [
                r for r in rows if all(r.get(n) == row[n] for n in ("case", "contender", "rate"))
            ]
            fvu = at_l0([(r["l0"], r["fvu"]) for r in alike], l0)
            if fvu is None:
                continue
            row = {n: row[n] for n in ("case", "contender", "version", "rate")}
            row |= {"l0": l0, "fvu": fvu}
        if key not in found or row.get("fvu", 9.9) < found[key].get("fvu", 9.9):
            found[key] = row
    return list(found.values())


def worse(rows: Iterable[Row], l0: float) -> list[str]:
    """Where ours is worse than a peer's by more than 1 %, and Gated than ReLU by anything."""
    said = []
    ends = {(r["case"], r["contender"]): r for r in best(rows, l0) if "absent" not in r}
    for (case, name), row in ends.items():
        mine = ends.get((case, "trustbench"))
        if mine is None:
            continue
        pairs = [("", mine["fvu"], row["fvu"])]
        if "prefixes" in CASES[case][1]:
            both = zip(PREFIXES, mine["prefix_fvu"], row["prefix_fvu"], strict=False)
            pairs += [(f" at prefix {width}", a, b) for width, a, b in both]
        said += [
            f"{case}{where}: trustbench's fvu is {a:.4f}, {name}'s {b:.4f}"
            for where, a, b in pairs
            if a > SLACK * b
        ]
    gated, relu = (ends.get((case, "trustbench"), {}).get("fvu") for case in ("gated", "relu"))
    if gated is not None and relu is not None and gated > relu:
        said.append(f"gated: fvu {gated:.4f}, ReLU with L1 {relu:.4f}, at L0 {l0:g}")
    return said


def markdown(rows: Iterable[Row], sizes: Mapping[str, int] = SIZES) -> str:
    """A table of the best, and what is worse."""
    rows = list(rows)
    head = ["", "contender", "version", "learning rate", "L0", "fvu", "fvu of prefixes"]
    body = []
    for found in by_case(best(rows, L0)).values():
        for row in found:
            name = [row["case"], row["contender"], row["version"] or ""]
            if "absent" in row:
                body.append([*name, f"absent: {row['absent']}", "", "", ""])
                continue
            nested = ", ".join(f"{fvu:.4f}" for fvu in row.get("prefix_fvu", ()))
            body.append([*name, f"{row['rate']:g}", f"{row['l0']:.1f}", f"{row['fvu']:.4f}", nested])
    said = worse(rows, L0) or ["Nothing of ours is worse than a peer's by more than 1 %."]
    lines = "\n".join(f"- {line}" for line in said)
    return f"# Families\n\n{label(sizes)}\n\n{tables.markdown(head, body)}\n\n{lines}\n"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, and write families.{jsonl,about.json,md}; 1 where ours is worse."""
    from benchmarks.__main__ import PEERS

    parser = argparse.ArgumentParser(prog="benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", default=str(PEERS))
    parser.add_argument("--out", default=str(RESULTS), type=Path)
    options = parser.parse_args(words)
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    rows = Table()
    for row in measure(options.peers_python):
        rows.append(row)
    about = report.about(
        {"sizes": SIZES, "rates": list(RATES), "prefixes": list(PREFIXES), "l0": L0},
        device=torch.device("cpu"),
    )
    rows.write(options.out / "families.jsonl", about)
    text = markdown(rows)
    files.atomic_write_text(options.out / "families.md", text)
    print(text)
    return int(bool(worse(rows, L0)))


if __name__ == "__main__":
    sys.exit(main())
