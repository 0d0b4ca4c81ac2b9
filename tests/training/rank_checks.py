"""Started by torchrun on three processes: what a team says to each other, and BatchTopK in shares."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from trustbench import ops
from trustbench.errors import DataError
from trustbench.sae import SAE, SAEConfig
from trustbench.steps.batchtopk_shares import encode_share
from trustbench.team import Team, TeamError


def check_words(team: Team, directory: Path) -> None:
    assert team.any(team.rank == 1, False) == (True, False)
    assert team.objects(team.rank * 2) == [0, 2, 4]
    for kind in (torch.float32, torch.bfloat16, torch.bool, torch.int64):
        for counts in ([3, 0, 2], [0, 0, 0], [1, 1, 1]):
            rows = torch.full((counts[team.rank], 2), team.rank).to(kind)
            expected = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor(counts))
            assert torch.equal(team.joined(rows, counts), expected[:, None].expand(-1, 2).to(kind))
    parcels = [torch.full((team.rank + to,), team.rank, dtype=torch.uint8) for to in range(3)]
    got = team.exchanged(parcels, [source + team.rank for source in range(3)])
    assert [part.tolist() for part in got] == [[r] * (r + team.rank) for r in range(3)]
    # A trustbench error is everyone's; another is told.
    for error, raised in ((DataError("lost"), DataError), (KeyError("lost"), TeamError)):
        try:
            with team.together():
                if team.rank == 1:
                    raise error
            raise AssertionError("no error")
        except (raised, KeyError) as told:
            assert "lost" in str(told)
            assert (told is error) == (team.rank == 1)
    try:
        with team.directory(directory / "target") as half:
            (half / str(team.rank)).write_text("")
            if team.rank == 2:
                raise DataError("too late")
    except DataError:
        pass
    assert not any(directory.iterdir()) or team.rank
    dist.barrier()
    with team.directory(directory / "target") as whole:
        (whole / str(team.rank)).write_text("")
    assert {path.name for path in (directory / "target").iterdir()} == {"0", "1", "2"}


def check_batchtopk(team: Team) -> None:
    """Ties over ranks, all winners on one rank, fewer positive entries than there is room for."""
    for case in range(8):
        torch.manual_seed(case)
        k = 1 + case % 3
        sae = SAE(SAEConfig(d_in=6, d_sae=40, k=k, activation="batchtopk"))
        x = torch.randn(13, 6)
        if case % 4 == 1:  # whole numbers: many ties
            x, sae.W_enc.data = x.round(), sae.W_enc.data.mul(3).round()
        if case % 4 == 2:  # one rank has everything
            x[team.share(13, case % 3)] *= 100
        if case % 4 == 3:
            sae.b_enc.data -= 1.5
        wanted = ops.encode_batchtopk(x, sae.W_enc, sae.b_enc, k)
        mine = team.share(13)
        found = encode_share(sae, x[mine], 13 * k, team)
        edges = wanted.row_offsets[mine.start : mine.stop + 1]
        assert torch.equal(found.row_offsets, edges - edges[0])
        assert torch.equal(found.indices, wanted.indices[edges[0] : edges[-1]])
        assert torch.equal(found.values, wanted.values[edges[0] : edges[-1]])


def main() -> None:
    torch.set_num_threads(1)
    team = Team.of_environment(torch.device("cpu"))
    with torch.no_grad():
        check_batchtopk(team)
    check_words(team, Path(sys.argv[1]))
    team.leave()


if __name__ == "__main__":
    main()
