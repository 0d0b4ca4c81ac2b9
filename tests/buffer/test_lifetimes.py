"""What a buffer's batches and memory do when processes fork, objects die, and pools are large."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import torch

from trustbench.buffer import ActivationBuffer

MEASURE = """
from pathlib import Path
import torch
from trustbench.buffer import ActivationBuffer

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

torch.set_num_threads(2)
acts = {f"layer {i}": torch.randn(512, 256).bfloat16() for i in range(8)}
small = ActivationBuffer({name: 256 for name in acts}, 512, dtype=torch.bfloat16)
small.put(acts)
batch = small.take(256)  # what libraries need once is there now
bare = memory("VmRSS")
buffer = ActivationBuffer({name: 256 for name in acts}, 16384, dtype=torch.bfloat16)
Path("/proc/self/clear_refs").write_text("5")
for _ in range(100):
    while buffer.space >= 512:
        buffer.put(acts)
    batch = buffer.take(256, batch)
print(memory("VmHWM") - bare, buffer.nbytes)
"""


def test_memory_stays_within_the_bound_that_is_stated():
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    grown, stated = map(int, run.stdout.split())
    assert stated == 8 * 16384 * 256 * 2
    # The slots' numbers (8 bytes a token) and the allocator's pages come on top.
    assert 0.9 * stated < grown < 1.02 * stated + 2**21


def filled() -> ActivationBuffer:
    buffer = ActivationBuffer({"a": 64}, 256)
    buffer.put({"a": torch.arange(256.0)[:, None].expand(256, 64).contiguous()})
    return buffer


def test_batches_outlive_their_buffer():
    buffer = filled()
    batch, sample = buffer.take(100), buffer.peek(10)
    wanted = batch["a"].clone(), sample["a"].clone()
    buffer.close()
    del buffer
    gc.collect()
    filled()  # which may get the same memory
    assert torch.equal(batch["a"], wanted[0]) and torch.equal(sample["a"], wanted[1])


def test_a_forked_process_has_a_buffer_of_its_own():
    torch.set_num_threads(2)
    buffer = filled()
    buffer.take(50)  # the threads of the kernels exist by now
    child = os.fork()
    if child == 0:  # nothing but the buffer, and no way back into the tests
        torch.set_num_threads(1)  # OpenMP's threads are not there after a fork
        try:
            rows = buffer.take(200)["a"]
            os._exit(0 if len(set(rows[:, 0].tolist())) == 200 else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(buffer) == 206 and len(set(buffer.take(206)["a"][:, 0].tolist())) == 206


def test_any_order_of_dying_is_fine():
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        buffer = filled()
        things: list = [buffer, buffer.take(10), buffer._slots]
        del buffer
        for i in order:
            things[i] = None
            gc.collect()
