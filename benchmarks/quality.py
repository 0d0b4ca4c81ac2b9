"""fvu and dead features at equal tokens and at equal time, on the demo model.

Was speed bought with quality? Every contender trains on the same captured activations in the same
order, with the same k and width and its own AuxK, at each learning rate of one small grid, and is
tested on the same held-out activations along the way. Contenders take turns from one test to the
next, so that the seconds of their curves are of one machine at one time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.record import Row
from benchmarks.workers import Worker, figures, start
from trustbench.buffer import ActivationBuffer
from trustbench.data import Documents, TokenStream
from trustbench.models import ActivationCapture, load_model, resolve_hook_points
from trustbench.models.hook_points import Site
from trustbench.sae.init import measure_input_scale
from trustbench.studies.demo import assets

SLACK = 1.01  # how much worse than a peer's our fvu may be


def activations(
    text: Path, layer: int, tokens: int, *, shuffled: bool, sites: Sequence[Site] = ("resid_post",)
) -> torch.Tensor:
    """Activations [tokens, d] of one layer, of several sites side by side; training ones through
    the shuffling buffer."""
    model, tokenizer = load_model(str(assets.MODEL))
    points = [point for site in sites for point in resolve_hook_points(model, [layer], site)]
    run = ActivationCapture(model, points)
    name, rows = points[0].name, []
    for batch in TokenStream(Documents(str(text)), tokenizer, 256, 16, repeat=shuffled):
        found = run.run(batch.input_ids)
        rows.append(torch.cat([found[point.name][batch.mask] for point in points], dim=1))
        if sum(map(len, rows)) >= tokens:
            break
    acts = torch.cat(rows)[:tokens]
    if not shuffled:
        return acts
    buffer = ActivationBuffer({name: acts.shape[1]}, len(acts))
    buffer.put({name: acts})
    return torch.cat([part[name] for part in buffer.batches(8192)])


def rows(case: Case, peers_python: str) -> Iterator[Row]:
    """A row for every contender at every rate: its times, and its curve."""
    o = case.options
    train = activations(assets.TRAIN_TEXT, o["layer"], o["tokens"], shuffled=True)
    test = activations(assets.HELDOUT_TEXT, o["layer"], o["test_tokens"], shuffled=False)
    scale = measure_input_scale(train)  # the same for all: the grid of rates then fits all
    with tempfile.TemporaryDirectory() as folder:
        files = {"train": f"{folder}/train.pt", "test": f"{folder}/test.pt"}
        torch.save(train * scale, files["train"])
        torch.save(test * scale, files["test"])
        options: dict[str, Any] = {
            "N": o["batch"], "d": train.shape[1], "F": o["d_sae"], "k": o["k"], "bf16": False,
            "steps": o["tokens"] // o["batch"], "dead_after": o["dead_after"], "lr": o["rates"][0],
        }  # fmt: skip
        workers = start("steps", case.contenders, options, peers_python)
        try:
            for rate in o["rates"]:
                for worker in workers.values():
                    worker.build(options | {"lr": rate})
                yield from _at_rate(case, rate, workers, files)
        finally:
            for worker in workers.values():
                worker.close()


def _at_rate(
    case: Case, rate: float, workers: dict[str, Worker], files: dict[str, str]
) -> Iterator[Row]:
    o = case.options
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    steps = o["tokens"] // o["batch"]
    stops = [steps * (i + 1) // o["points"] * o["batch"] for i in range(o["points"])]
    for begin, end in zip([0, *stops], stops, strict=False):
        for name, worker in workers.items():
            seconds[name] += worker.call("train", file=files["train"], start=begin, stop=end) or []
            if (point := worker.call("test", file=files["test"])) is not None:
                curves[name].append({"tokens": end, "trained": sum(seconds[name])} | point)
    for name, worker in workers.items():
        curve = {key: [point[key] for point in curves[name]] for key in (curves[name] or [{}])[0]}
        found = figures(seconds[name], worker.version, worker.absent)
        yield {"contender": name, "rate": rate} | found | curve


def best(rows: Sequence[Row]) -> list[Row]:
    """Of every contender the row at its best rate."""
    ends: dict[str, Row] = {}
    for row in rows:
        old = ends.get(row["contender"])
        if old is None or "absent" in old or row.get("fvu", [9.9])[-1] < old["fvu"][-1]:
            ends[row["contender"]] = row
    return list(ends.values())


def bought(rows: Sequence[Row]) -> str | None:
    """Whose best fvu ours is worse than by more than 1 %, in a sentence; None: nobody's."""
    ends = {r["contender"]: r["fvu"][-1] for r in best(rows) if "absent" not in r}
    mine = ends.get("trustbench", float("inf"))
    better = {name: fvu for name, fvu in ends.items() if mine > SLACK * fvu}
    if not better:
        return None
    return f"trustbench's best fvu is {mine:.4f}, more than 1 % worse than {better}"
