"""Started by torchrun: trains one run after another, each on all ranks.

    torchrun --nproc-per-node 2 ranks.py CONFIGS   (a JSON list, each as TrainConfig.to_dict gives it)

A run may have "stop_at": the rank that "stop_rank" names is told to stop, by SIGTERM, once so many
tokens are trained. A run that must fail has "error": a part of what every rank's error says. A run
with "along" goes along with the one recorded there (see lockstep.py).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import trustbench as tb
from tests.training import lockstep
from trustbench.errors import TrustbenchError
from trustbench.team import Team
from trustbench.training import loop


def stop_at(tokens: int) -> None:
    """SIGTERM to this process when that many tokens are trained."""
    step = loop._Run._step

    def watched(run, batch, bar):
        step(run, batch, bar)
        if run.tokens >= tokens:
            os.kill(os.getpid(), signal.SIGTERM)

    loop._Run._step = watched


def main() -> None:
    torch.set_num_threads(1)
    team = Team.of_environment(torch.device("cpu"))
    original = loop._Run._step
    for fields in json.loads(sys.argv[1]):
        tokens, rank = fields.pop("stop_at", 0), fields.pop("stop_rank", 0)
        error = fields.pop("error", None)
        recorded = fields.pop("along", None)
        if tokens and team.rank == rank:
            stop_at(tokens)
        try:
            with lockstep.along(Path(recorded)) if recorded else nullcontext():
                result = tb.train(tb.TrainConfig.from_dict(fields), progress=False)
            assert error is None, "no error"
            assert result.finished == (not tokens)
        except (TrustbenchError, NotImplementedError) as raised:
            assert error and error in str(raised), repr(raised)
        loop._Run._step = original
        team.objects(None)  # the next run begins together
    team.leave()


if __name__ == "__main__":
    main()
