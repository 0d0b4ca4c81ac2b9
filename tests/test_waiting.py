"""The waiting policy reaches the OpenMP runtime, and the user's own settings win."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from trustbench.waiting import SPINS


def runtime(code: str, **settings: str) -> tuple[dict[str, str], str]:
    """What the runtime says of itself when this program loads it, and what the program prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=kept | {"OMP_DISPLAY_ENV": "VERBOSE"} | settings,
    )  # fmt: skip
    said = dict(re.findall(r"(\w+) = '(.*)'", found.stderr))
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch runs on another OpenMP runtime than GNU's")
    return said, found.stdout.strip()


COMMAND = "from trustbench.cli import main; main(['info'])"
OURS = "import trustbench.waiting as w, torch; print(w.policy())"
TORCH_FIRST = "import torch, trustbench.waiting as w; print(w.policy())"


def test_waiting_threads_soon_sleep():
    said, printed = runtime(OURS)
    assert said["GOMP_SPINCOUNT"] == str(SPINS)
    assert printed == f"GOMP_SPINCOUNT={SPINS}"


def test_the_command_is_in_time():
    said, printed = runtime(COMMAND)
    assert said["GOMP_SPINCOUNT"] == str(SPINS)
    assert re.search(rf"^waiting threads +GOMP_SPINCOUNT={SPINS}$", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("settings", "spins"),
    [({"GOMP_SPINCOUNT": "77"}, 77), ({"OMP_WAIT_POLICY": "PASSIVE"}, 0)],
    ids=["spincount", "policy"],
)
def test_the_users_own_settings_win(settings, spins):
    said, printed = runtime(OURS, **settings)
    assert said["GOMP_SPINCOUNT"] == str(spins)
    assert [printed] == [f"{name}={value}" for name, value in settings.items()]


def test_torch_imported_first_keeps_its_own():
    said, printed = runtime(TORCH_FIRST)
    assert int(said["GOMP_SPINCOUNT"]) > SPINS
    assert printed.startswith("OpenMP's default")
