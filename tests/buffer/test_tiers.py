"""Tiers below the pool: host memory and files, their bounds, and what happens when a disk fails."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults import files_end_at
from trustbench.buffer import ActivationBuffer, Spill
from trustbench.errors import DataError, InputError

WIDTHS = {"a": 3, "b": 40}
PAGE = 4096
# 64 tokens, so segments of 8; 8 * 43 * 4 bytes and a header fill two pages.
CAPACITY, SEGMENT = 64, 2 * PAGE


def numbered(start: int, n: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(start, start + n, dtype=torch.float32)
    return {name: ids[:, None].repeat(1, d) for name, d in WIDTHS.items()}


def made(tmp_path, host: int = 0, disk: int = 0, **options) -> ActivationBuffer:
    """Tiers of so many segments."""
    host_bytes = (host + (3 if disk and host else 0)) * SEGMENT
    spill = Spill(
        host_bytes=host_bytes, disk_bytes=2 * disk * SEGMENT, directory=str(tmp_path / "spill")
    )
    return ActivationBuffer(WIDTHS, CAPACITY, spill=spill, **options)


def fill(buffer: ActivationBuffer, total: int, n: int = 10) -> None:
    while buffer.space >= n and buffer.tokens_in < total:
        buffer.put(numbered(buffer.tokens_in, min(n, total - buffer.tokens_in)))


def stream(
    buffer: ActivationBuffer,
    until: int,
    n: int = 16,
    *,
    of: int | None = None,
    one_order: bool = True,
) -> list[list[int]]:
    """The batches of a run that keeps the buffer full, of so many tokens in all (until it ends)."""
    batches = []
    while buffer.tokens_out < until:
        fill(buffer, of or until)
        batch = buffer.take(min(n, len(buffer)))
        assert all(torch.equal(rows, rows[:, :1].expand_as(rows)) for rows in batch.values())
        if one_order:
            assert torch.equal(batch["a"][:, 0], batch["b"][:, 0])
        batches.append(batch["a"][:, 0].long().tolist())
    return batches


def files(tmp_path) -> list[Path]:
    return sorted((tmp_path / "spill").glob("segment-*"))


TIERS = [{"host": 6}, {"disk": 6}, {"host": 3, "disk": 5}, {"disk": 2}, {"host": 2}]


@pytest.mark.parametrize("tiers", TIERS, ids=str)
def test_every_token_exactly_once(tmp_path, tiers):
    with made(tmp_path, **tiers) as buffer:
        places = sum(tiers.values())
        assert buffer.limit == CAPACITY + 8 * (places - 1) and buffer.most == CAPACITY - 8
        fill(buffer, 10**6)
        assert buffer.space < 10
        batches = stream(buffer, 2000)
    assert sorted(t for batch in batches for t in batch) == list(range(2000))
    assert not files(tmp_path)


def test_the_order_does_not_depend_on_which_tier_holds_what(tmp_path):
    """Nor, then, on how fast either is."""
    orders = []
    for i, tiers in enumerate([{"host": 6}, {"disk": 6}, {"host": 2, "disk": 4}]):
        with made(tmp_path / str(i), **tiers) as buffer:
            orders.append(stream(buffer, 1500))
    assert orders[0] == orders[1] == orders[2]
    with made(tmp_path, host=6, seed=1) as buffer:
        assert stream(buffer, 1500) != orders[0]


def test_a_slow_disk_changes_nothing_but_time(tmp_path, monkeypatch):
    """Takes that come late, or all at once, find the same order."""
    with made(tmp_path / "fast", disk=6) as buffer:
        wanted = stream(buffer, 600)
    with made(tmp_path / "slow", disk=6) as buffer:
        batches = []
        while buffer.tokens_out < 600:
            fill(buffer, 600)
            if len(batches) % 7 == 0:
                subprocess.run(["sleep", "0.02"], check=True)
            batches.append(buffer.take(min(16, len(buffer)))["a"][:, 0].long().tolist())
    assert batches == wanted


@pytest.mark.parametrize("n", [1, 5, 8, 16])
def test_tokens_wait_as_long_as_the_whole_buffer_is_deep(tmp_path, n):
    """Little's law; and all circulate: what has been spilled is not left until the end."""
    total = 40_000
    with made(tmp_path, host=24) as buffer:
        depth = buffer.limit
        batches = []
        while buffer.tokens_out < total:
            while buffer.space >= n and buffer.tokens_in < total:
                buffer.put(numbered(buffer.tokens_in, min(n, total - buffer.tokens_in)))
            batches.append(buffer.take(min(n, len(buffer)))["a"][:, 0].long().tolist())
    waits = [
        i - (token - depth) / n
        for i, batch in enumerate(batches)
        for token in batch
        if depth < token < total - 20 * depth
    ]
    mean = sum(waits) / len(waits)
    # Puts and takes of n tokens leave the buffer short of full by up to n: a batch's wait.
    assert mean == pytest.approx(depth / n, rel=0.05, abs=0.6)
    # No sharp tail either way: the spread is of the order of the mean, as for one large pool.
    spread = (sum((w - mean) ** 2 for w in waits) / len(waits)) ** 0.5
    assert 0.8 * mean < spread < 1.6 * mean


def test_orders_of_their_own(tmp_path):
    """Every hook point delivers every token once, in its own order."""
    with made(tmp_path, host=2, disk=3, one_order=False) as buffer:
        seen = {name: [] for name in WIDTHS}
        while buffer.tokens_out < 1000:
            fill(buffer, 1000)
            for name, rows in buffer.take(min(16, len(buffer))).items():
                seen[name] += rows[:, 0].long().tolist()
    assert seen["a"] != seen["b"]
    assert sorted(seen["a"]) == sorted(seen["b"]) == list(range(1000))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_stored_rows_go_down_and_come_back_as_they_are(tmp_path, dtype):
    rows = torch.randn(400, 33)
    plain = ActivationBuffer({"a": 33}, 400, dtype=dtype)
    plain.put({"a": rows})
    wanted = plain.peek(400)["a"]
    spill = Spill(disk_bytes=2**22, directory=str(tmp_path))
    with ActivationBuffer({"a": 33}, 64, dtype=dtype, spill=spill) as buffer:
        for start in range(0, 400, 50):
            buffer.put({"a": rows[start : start + 50]})
        got = torch.cat([batch["a"] for batch in buffer.batches(32)])
    assert sorted(map(tuple, got.tolist())) == sorted(map(tuple, wanted.tolist()))


# ------------------------------------------------------------------ saved and restored


@pytest.mark.parametrize("tiers", TIERS, ids=str)
@pytest.mark.parametrize("at", [0, 100, 700])
@pytest.mark.parametrize("one_order", [True, False])
def test_resume_is_exact_with_tiers_half_full(tmp_path, tiers, at, one_order):
    with made(tmp_path / "whole", **tiers, one_order=one_order) as buffer:
        stream(buffer, at, of=1000, one_order=one_order)
        wanted = stream(buffer, 1000, one_order=one_order)
    first = made(tmp_path, **tiers, one_order=one_order)
    stream(first, at, of=1000, one_order=one_order)
    state = first.state_dict()
    meta = json.loads(json.dumps(state["meta"]))
    tensors = {name: state["tensors"][name] for name in WIDTHS}
    first.saved()
    stream(first, 1000, one_order=one_order)  # what the killed process still did
    first.close()
    with made(tmp_path, **tiers, one_order=one_order, seed=5) as second:
        second.load_state_dict({"tensors": tensors, "meta": meta})
        assert stream(second, 1000, one_order=one_order) == wanted


def test_files_stay_while_a_saved_state_needs_them_and_within_the_bound(tmp_path):
    disk = 6
    buffer = made(tmp_path, disk=disk)
    stream(buffer, 300, of=10**6)
    buffer.state_dict()
    buffer.saved()
    needed = set(files(tmp_path))
    assert 0 < len(needed) <= disk
    for until in range(400, 2000, 100):
        stream(buffer, until, of=10**6)
        found = set(files(tmp_path))
        assert needed <= found and len(found) <= 2 * disk  # of SEGMENT bytes each
    buffer.state_dict()
    buffer.saved()
    assert set(files(tmp_path)).isdisjoint(needed) and len(files(tmp_path)) <= disk
    needed = set(files(tmp_path))
    stream(buffer, 2100, of=10**6)
    assert set(files(tmp_path)) > needed
    buffer.close()
    assert set(files(tmp_path)) == needed


def test_a_finished_run_leaves_nothing(tmp_path):
    with made(tmp_path, disk=6) as buffer:
        fill(buffer, 10**6)
        buffer.state_dict()
        buffer.saved()
        buffer.forget()
    assert not (tmp_path / "spill").exists()


def test_what_an_abandoned_buffer_left_is_removed(tmp_path):
    (tmp_path / "spill").mkdir()
    left = tmp_path / "spill" / "segment-0000000777.spill"
    left.write_bytes(b"old")
    with made(tmp_path, disk=3) as buffer:
        fill(buffer, 10**6)
        buffer.state_dict()
        assert not left.exists() and files(tmp_path)


STREAM = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.buffer.test_tiers import WIDTHS, made, numbered, fill
from trustbench import files
out = Path(sys.argv[2])
buffer = made(out, host=1, disk=6)
taken = 0
if (out / "state" / "state.json").exists():
    state = files.read_json(out / "state" / "state.json")
    rows = files.load_tensors(out / "state" / "rows")
    buffer.load_state_dict({"meta": state["meta"], "tensors": rows})
    taken = state["taken"]
log = (out / "taken").open("r+" if taken else "w")
log.seek(taken)
log.truncate()
print("ready", flush=True)
while buffer.tokens_out < 6000:
    fill(buffer, 6000)
    batch = buffer.take(min(16, len(buffer)))["a"][:, 0].long().tolist()
    print(*batch, sep="\\n", file=log, flush=True)
    if (buffer.tokens_out // 16) % 10 == 0:
        state = buffer.state_dict()
        with files.atomic_dir(out / "state") as directory:
            files.save_tensors(directory / "rows", dict(state["tensors"]))
            files.atomic_write_json(
                directory / "state.json", {"meta": state["meta"], "taken": log.tell()}
            )
        buffer.saved()
print("done", flush=True)
"""


def test_killed_at_any_moment_it_loses_nothing_that_was_saved(tmp_path):
    command = [sys.executable, "-c", STREAM, str(Path(__file__).parents[2]), str(tmp_path)]
    tmp_path.mkdir(exist_ok=True)
    for delay in (0.05, 0.11, 0.02, 0.17):
        run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert run.stdout.readline() == "ready\n"
        try:
            run.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
        run.wait()
        run.stdout.close()
    last = subprocess.run(command, capture_output=True, text=True)
    assert last.stdout == "ready\ndone\n", last.stderr
    taken = list(map(int, (tmp_path / "taken").read_text().split()))
    with made(tmp_path / "whole", host=1, disk=6) as buffer:
        wanted = [t for batch in stream(buffer, 6000) for t in batch]
    assert taken == wanted


# ------------------------------------------------------------------ faults


def damaged(tmp_path, how) -> tuple[ActivationBuffer, Path]:
    """A buffer whose every file has been damaged."""
    buffer = made(tmp_path, disk=6)
    fill(buffer, 10**6)
    buffer.state_dict()  # all files are written
    for path in files(tmp_path):
        how(path)
    return buffer, files(tmp_path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[PAGE + 100] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (flip, "corrupt"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "truncated"),
        (lambda p: p.write_bytes(b""), "truncated"),
        (lambda p: p.unlink(), "not readable"),
        (lambda p: p.write_bytes(bytes(p.stat().st_size)), "corrupt"),
    ],
    ids=["flipped", "truncated", "empty", "missing", "zeros"],
)
def test_a_damaged_file_is_named_and_never_handed_out(tmp_path, how, words):
    buffer, _ = damaged(tmp_path, how)
    with buffer:
        taken = []
        with pytest.raises(DataError, match=rf"segment-\d+\.spill: {words}"):
            while True:
                taken += buffer.take(8)["a"][:, 0].long().tolist()
        assert len(set(taken)) == len(taken) == buffer.tokens_out  # what went out was whole
        with pytest.raises(DataError, match=words):  # it stays so
            buffer.take(8)


def test_swapped_files_are_noticed(tmp_path):
    buffer = made(tmp_path, disk=6)
    fill(buffer, 10**6)
    buffer.state_dict()
    first, *others = files(tmp_path)
    for path in others:
        path.write_bytes(first.read_bytes())
    with buffer, pytest.raises(DataError, match="another segment"):
        for _ in range(20):
            buffer.take(8)


def test_a_missing_or_short_file_is_named_before_a_resumed_run_starts(tmp_path):
    for how, words in (
        (lambda p: p.unlink(), "not readable"),
        (lambda p: p.write_bytes(p.read_bytes()[:-5]), "truncated"),
    ):
        first = made(tmp_path, disk=6)
        fill(first, 10**6)
        state = first.state_dict()
        held = {"meta": state["meta"], "tensors": dict(state["tensors"])}
        first.saved()
        first.close()
        how(files(tmp_path)[0])
        second = made(tmp_path, disk=6)
        with pytest.raises(DataError, match=rf"segment-\d+\.spill: {words}"):
            second.load_state_dict(held)
        second.close()


def test_a_full_disk_stops_the_producer_and_loses_nothing(tmp_path):
    buffer = made(tmp_path, host=1, disk=6)
    put = 0
    with files_end_at(PAGE), pytest.raises(DataError, match=r"segment-\d+\.spill: not written"):
        for _ in range(20):
            buffer.put(numbered(put, 10))
            put += 10
    assert len(buffer) == put
    state = buffer.state_dict()  # with what could not be written
    assert not list((tmp_path / "spill").glob("*.tmp"))
    held = {"meta": state["meta"], "tensors": dict(state["tensors"])}
    assert buffer.take(8)["a"].shape == (8, 3)  # usable: what is there can be trained on
    buffer.saved()
    buffer.close()
    with made(tmp_path, host=1, disk=6) as second:
        second.load_state_dict(held)
        tokens = [t for batch in stream(second, put) for t in batch]
    assert sorted(tokens) == list(range(put))


def test_one_directory_serves_one_buffer(tmp_path):
    first = made(tmp_path, disk=3)
    with pytest.raises(DataError, match="in use by another buffer"):
        made(tmp_path, disk=3)
    first.close()
    made(tmp_path, disk=3).close()


def test_bad_bounds_are_named(tmp_path):
    for given, words in (
        ({"host_bytes": -1}, "host_bytes=-1: expected an integer >= 0"),
        ({"disk_bytes": 1.5}, "disk_bytes=1.5"),
        ({"disk_bytes": 10}, "directory=''"),
    ):
        with pytest.raises(InputError, match=words):
            Spill(**given)
    directory = str(tmp_path / "spill")
    for given, words in (
        ({"host_bytes": 100}, "host_bytes=100: expected at least 16384, for two segments"),
        ({"disk_bytes": 100, "directory": directory}, "disk_bytes=100: expected at least 32768"),
        (
            {"disk_bytes": 2**20, "host_bytes": 100, "directory": directory},
            "host_bytes=100: expected at least 24576",
        ),
    ):
        with pytest.raises(InputError, match=words):
            ActivationBuffer(WIDTHS, CAPACITY, spill=Spill(**given))
    with pytest.raises(DataError, match=r"is more than the .* bytes free"):
        ActivationBuffer(WIDTHS, CAPACITY, spill=Spill(disk_bytes=2**60, directory=directory))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be used"):
        ActivationBuffer(
            WIDTHS, CAPACITY, spill=Spill(disk_bytes=2**20, directory=str(tmp_path / "file"))
        )
    with made(tmp_path, host=3) as buffer:
        with pytest.raises(InputError, match="at most space=80 and most=56"):
            buffer.put(numbered(0, 57))
        buffer.put(numbered(0, 20))
        with pytest.raises(InputError, match=r"n=21: expected an integer in \[1, min\(len=20"):
            buffer.take(21)


def test_a_state_of_other_tiers_is_refused(tmp_path):
    buffer = made(tmp_path / "a", host=3)
    fill(buffer, 10**6)
    state = buffer.state_dict()
    for other in (made(tmp_path / "b", host=4), ActivationBuffer(WIDTHS, CAPACITY)):
        with pytest.raises(InputError, match="another capacity"):
            other.load_state_dict(state)
    with pytest.raises(InputError, match="buffer state: restore: expected tiers that are new"):
        buffer.load_state_dict(state)


# ------------------------------------------------------------------ processes and memory


def test_a_forked_process_leaves_the_tiers_alone(tmp_path):
    buffer = made(tmp_path, disk=4)
    fill(buffer, 10**6)
    buffer.state_dict()
    before = files(tmp_path)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            for _ in range(2):  # the first batch is the pool's own
                buffer.take(8)
            os._exit(1)
        except DataError as error:
            del buffer
            gc.collect()
            os._exit(0 if "not to a fork of it" in str(error) else 2)
        except BaseException:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert files(tmp_path) == before
    tokens = [t for b in buffer.batches(16) for t in b["a"][:, 0].long().tolist()]
    assert len(set(tokens)) == len(tokens) > CAPACITY
    buffer.close()


MEASURE = """
import sys
from pathlib import Path
import torch
from trustbench.buffer import ActivationBuffer, Spill

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(2)
widths = {f"layer {i}": 256 for i in range(8)}
acts = {name: torch.randn(512, 256).bfloat16() for name in widths}
def made(tokens, host, disk, name):
    spill = Spill(host_bytes=host, disk_bytes=disk, directory=f"{sys.argv[1]}/{name}")
    return ActivationBuffer(widths, tokens, dtype=torch.bfloat16, spill=spill)
with made(1024, 2**21, 2**22, "small") as small:
    for _ in range(8):
        while small.space >= 512:
            small.put(acts)
        batch = small.take(256)
bare = memory("VmRSS")
buffer = made(16384, 2**26, 2**27, "large")
Path("/proc/self/clear_refs").write_text("5")
largest = 0
for _ in range(200):
    while buffer.space >= 512:
        buffer.put(acts)
    batch = buffer.take(256, batch)
    size = 0
    for file in Path(sys.argv[1], "large").glob("segment-*"):
        try:
            size += file.stat().st_size
        except FileNotFoundError:
            pass
    largest = max(largest, size)
print(memory("VmHWM") - bare, buffer.nbytes, largest, buffer.limit)
"""


def test_memory_and_files_stay_within_their_bounds(tmp_path):
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, stated, largest, limit = map(int, run.stdout.split())
    assert 16384 * 8 * 256 * 2 < stated <= 16384 * 8 * 256 * 2 + 2**26
    # The slots' numbers, the threads' stacks and the allocator's pages come on top.
    assert 0.9 * stated < grown < 1.02 * stated + 2**22
    assert 0.4 * 2**27 < largest <= 2**27
    assert limit > 1.5 * 16384
