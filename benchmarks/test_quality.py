"""fvu and dead features at equal tokens and at equal time, on the demo model.

Was speed bought with quality? Every contender trains on the same captured activations in the same
order, with the same k and width and its own AuxK, at each learning rate of one small grid, and is
tested on the same held-out activations along the way. Contenders take turns from one test to the
next, so that the seconds of their curves are of one machine at one time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.shapes import Quality, label
from benchmarks.suite import MEASURED, Suite
from benchmarks.workers import Measured, Worker, start
from trustbench.buffer import ActivationBuffer
from trustbench.data import Documents, TokenStream
from trustbench.models import ActivationCapture, load_model, resolve_hook_points
from trustbench.sae.init import measure_input_scale
from trustbench.studies.demo import assets

SUBJECT = "quality"
CONTENDERS = ("trustbench", "sparsify", "SAELens", "dictionary_learning", "overcomplete")
SLACK = 1.01  # how much worse than a peer's our fvu may be


def activations(text: Path, layer: int, tokens: int, *, shuffled: bool) -> torch.Tensor:
    """Activations [tokens, d] of one layer; training ones through the shuffling buffer."""
    model, tokenizer = load_model(str(assets.MODEL))
    points = resolve_hook_points(model, [layer])
    run = ActivationCapture(model, points)
    name, rows = points[0].name, []
    for batch in TokenStream(Documents(str(text)), tokenizer, 256, 16, repeat=shuffled):
        rows.append(run.run(batch.input_ids)[name][batch.mask])
        if sum(map(len, rows)) >= tokens:
            break
    acts = torch.cat(rows)[:tokens]
    if not shuffled:
        return acts
    buffer = ActivationBuffer({name: acts.shape[1]}, len(acts))
    buffer.put({name: acts})
    return torch.cat([part[name] for part in buffer.batches(8192)])


def curves(case: Quality, folder: Path, peers_python: str) -> dict[tuple[str, float], Measured]:
    """{(contender, rate): its step times, and a curve of points}."""
    train = activations(assets.TRAIN_TEXT, case.layer, case.tokens, shuffled=True)
    test = activations(assets.HELDOUT_TEXT, case.layer, case.test_tokens, shuffled=False)
    scale = measure_input_scale(train)  # the same for all: the grid of rates then fits all
    files = {"train": str(folder / "train.pt"), "test": str(folder / "test.pt")}
    torch.save(train * scale, files["train"])
    torch.save(test * scale, files["test"])
    options: dict[str, Any] = {
        "N": case.batch, "d": train.shape[1], "F": case.d_sae, "k": case.k, "bf16": False,
        "steps": case.tokens // case.batch, "dead_after": case.dead_after,
    }  # fmt: skip
    options |= {"lr": case.rates[0]}
    workers = start("steps", {name: (name, options) for name in CONTENDERS}, peers_python)
    found = {}
    try:
        for rate in case.rates:
            for worker in workers.values():
                worker.build(options | {"lr": rate})
            for name, result in _at_rate(case, workers, files).items():
                found[name, rate] = result
        return found
    finally:
        for worker in workers.values():
            worker.close()


def _at_rate(case: Quality, workers: dict[str, Worker], files: dict[str, str]) -> dict[str, Measured]:
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    points: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    steps = case.tokens // case.batch
    stops = [steps * (i + 1) // case.points * case.batch for i in range(case.points)]
    for begin, end in zip([0, *stops], stops, strict=False):
        for name, worker in workers.items():
            seconds[name] += worker.call("train", file=files["train"], start=begin, stop=end) or []
            if (quality := worker.call("test", file=files["test"])) is not None:
                points[name].append({"tokens": end, "seconds": sum(seconds[name])} | quality)
    return {
        name: Measured(seconds[name], w.version, w.absent, {"curve": points[name]})
        for name, w in workers.items()
    }


@pytest.fixture(scope="session")
def trained(case: Quality, suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All curves of a case."""
    folder = tmp_path_factory.mktemp("quality")
    return suite.once((SUBJECT, case), lambda: curves(case, folder, suite.peers_python))


@MEASURED
@pytest.mark.parametrize("contender", CONTENDERS)
def test_quality(case: Quality, contender: str, suite: Suite, benchmark: Any, trained: Any) -> None:
    runs = {rate: trained[contender, rate] for rate in case.rates}
    absent = next((m for m in runs.values() if m.absent), None)
    rate, best = min(
        runs.items(), key=lambda run: (run[1].answers["curve"] or [{"fvu": 9.9}])[-1]["fvu"]
    )
    ends = {
        f"{rate:g}": measured.answers["curve"][-1]
        for rate, measured in runs.items()
        if measured.answers["curve"]
    }
    row = {"case": label(case), "contender": contender, "rate": rate, "rates": ends}
    suite.report(benchmark, SUBJECT, row, absent or best)


def test_speed_was_not_bought_with_quality(case: Quality, trained: Any) -> None:
    ends: dict[str, float] = {}
    for (name, _), measured in trained.items():
        if not measured.absent:
            end = measured.answers["curve"][-1]["fvu"]
            ends[name] = min(end, ends.get(name, end))
    better = {n: fvu for n, fvu in ends.items() if ends["trustbench"] > SLACK * fvu}
    assert not better, (
        f"trustbench's best fvu after {case.tokens:,} tokens is {ends['trustbench']:.4f}, more than"
        f" 1 % worse than {better}: speed was bought with quality"
    )
