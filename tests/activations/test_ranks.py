"""Several processes on one cache: a share and a spilling buffer each, every token once together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from trustbench.activations.cache import CacheWriter, Rows

RANK = """
import sys
import torch
from trustbench.activations import ActivationCache, CacheSource
from trustbench.buffer import ActivationBuffer, Spill

cache, rank = ActivationCache(sys.argv[1]), int(sys.argv[2])
source = CacheSource(cache, ["layer"], 40, torch.device("cpu"), 7, share=(rank, 2))
spill = Spill(disk_bytes=12 * 8192, directory=f"{sys.argv[3]}/rank-{rank}")

def epoch():
    while source.epoch == 0:
        yield source.pull().acts

with ActivationBuffer({"layer": 3}, 256, seed=rank, spill=spill) as buffer, buffer.fed_by(epoch()):
    for batch in buffer.batches(16):
        print(*batch["layer"][:, 0].long().tolist(), sep="\\n")
"""


def written(path: Path, shards: int, tokens: int) -> None:
    """A cache of one hook point whose rows hold their own number."""
    path.mkdir()
    writer = CacheWriter(path, {"dtype": "fp32"}, {"layer": 3}, {"layer": []}, tokens)
    for start in range(0, shards * tokens, tokens):
        ids = torch.arange(start, start + tokens, dtype=torch.int32)
        writer.add(Rows({"layer": ids[:, None].float().repeat(1, 3)}, ids, ids), {})
    writer.flush({}, complete=True)


def test_two_ranks_hand_out_every_token_once(tmp_path):
    written(tmp_path / "cache", shards=6, tokens=200)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, tmp_path / "cache", str(rank), tmp_path / "spill"],
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    taken = [list(map(int, process.communicate(timeout=120)[0].split())) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert sorted(taken[0] + taken[1]) == list(range(1200))
    assert len(taken[0]) == len(taken[1]) == 600
    for tokens in taken:
        assert np.abs(np.diff(tokens)).mean() > 100  # mixed over the shards
    assert not any((tmp_path / "spill").glob("*/segment-*"))
