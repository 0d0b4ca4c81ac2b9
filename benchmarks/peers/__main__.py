"""The peers' environment: `python -m benchmarks.peers` makes it in .peers/, for `trustbench bench`.

    python -m benchmarks.peers [DIRECTORY]

Their pins conflict with each other's and with newer torch builds, so they have an environment of
their own, with torch of this environment's version.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch

PEERS = Path(__file__).parents[2] / ".peers"
# In this order, each within the constraints.
INSTALLED = (
    ("sae-lens>=6,<7", "transformer-lens>=2.16.1,<4"),
    ("eai-sparsify>=1.3,<1.4",),
    ("dictionary-learning==0.1.0", "nnsight<0.4"),
    # Its SAEs need neither torchvision nor OpenCV, which it asks for.
    ("--no-deps", "overcomplete==0.3.0"),
)
# torchvision breaks transformers where its build is not torch's; Triton does nothing on a CPU.
REMOVED = ("torchvision", "triton")


def main(directory: Path) -> None:
    """Make the environment; pip says what goes wrong."""
    venv.create(directory, with_pip=True)
    pip = [str(directory / "bin" / "python"), "-m", "pip"]
    release = torch.__version__.split("+")[0]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write(f"torch=={release}\n")
        pins.flush()
        subprocess.run([*pip, "install", f"torch=={release}"], check=True)
        for wanted in INSTALLED:
            subprocess.run([*pip, "install", "-c", pins.name, *wanted], check=True)
    subprocess.run([*pip, "uninstall", "-y", *REMOVED], check=True)
    print(f"trustbench bench --peers-python {directory}/bin/python")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PEERS)
