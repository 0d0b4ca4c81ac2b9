"""The command that makes the peers' environment."""

from __future__ import annotations

import importlib
import subprocess
import venv

import torch


def test_every_peer_is_installed_beside_this_torch(tmp_path, monkeypatch, capsys):
    peers = importlib.import_module("benchmarks.peers.__main__")
    commands = []
    monkeypatch.setattr(venv, "create", lambda directory, with_pip: directory.mkdir())
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    peers.main(tmp_path / "peers")
    assert all(command[0] == f"{tmp_path}/peers/bin/python" for command in commands)
    assert f"torch=={torch.__version__.split('+')[0]}" in commands[0]
    installed = " ".join(word for command in commands for word in command)
    for name in ("sae-lens", "eai-sparsify", "dictionary-learning", "nnsight", "overcomplete"):
        assert name in installed
    assert "uninstall" in commands[-1] and "torchvision" in commands[-1]
    assert f"--peers-python {tmp_path}/peers/bin/python" in capsys.readouterr().out
