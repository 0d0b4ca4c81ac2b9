"""Which implementation runs, and that nothing is chosen in silence."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from tests.ops.cases import encoder_inputs
from trustbench import ops
from trustbench.errors import InputError
from trustbench.ops import dispatch
from trustbench.ops.spec import Shape

ROOT = Path(__file__).parents[2]


def test_use_is_undone_and_checked():
    x = torch.zeros(1)
    assert dispatch.implementation("decode", x) == "cpp"
    with ops.use("reference"):
        assert dispatch.implementation("decode", x) == "reference"
    assert dispatch.implementation("decode", x) == "cpp"
    with pytest.raises(InputError, match="name='cuda'"), ops.use("cuda"):
        pass


def test_fp64_runs_the_reference_unless_cpp_is_asked_for():
    x, W, b = (t.double() for t in encoder_inputs(Shape(3, 4, 5, 2), torch.float32))
    assert ops.encode_topk(x, W, b, 2).values.dtype == torch.float64
    with ops.use("cpp"), pytest.raises(InputError, match=r"dtype=torch\.float64"):
        ops.encode_topk(x, W, b, 2)


def test_a_missing_module_warns_once_by_name_and_never_replaces_what_was_asked_for(monkeypatch):
    dispatch._warn_missing.cache_clear()
    monkeypatch.setattr(dispatch, "_load", lambda name: None)
    x, W, b = encoder_inputs(Shape(3, 4, 5, 2), torch.float32)
    with pytest.warns(RuntimeWarning, match="encode_topk runs its slow PyTorch reference"):
        ops.encode_topk(x, W, b, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.encode_topk(x, W, b, 2)
    with pytest.raises(ImportError, match=r"pip install -e \."), ops.use("cpp"):
        pass
    assert "not built" in dispatch.implementations()["cpu"]
    dispatch._warn_missing.cache_clear()


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="isa='sse9'"):
        dispatch.native().set_isa("sse9")


def test_ops_on_another_device_say_so():
    class Elsewhere:
        type = "mps"

        def __str__(self):
            return "mps"

    class There(torch.Tensor):
        device = Elsewhere()

    x, W, b = encoder_inputs(Shape(3, 4, 5, 2), torch.float32)
    with pytest.raises(NotImplementedError, match="x is on mps: the ops run on CPUs and CUDA"):
        ops.encode_topk(x.as_subclass(There), W, b, 2)


def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    with ops.use("triton"), pytest.raises(InputError, match=r"device='cpu'.*TRITON_INTERPRET=1"):
        ops.decode(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1))


def test_without_triton_nothing_else_replaces_it(monkeypatch):
    monkeypatch.setattr(dispatch, "_load", lambda name: None)
    with pytest.raises(ImportError, match="pip install triton"), ops.use("triton"):
        pass


def test_one_op_has_one_name_everywhere():
    named = {p.stem for p in (ROOT / "trustbench/ops").glob("*.py")}
    named -= {"__init__", "attention_masks", "codes", "dispatch", "parameters"}
    named -= {"registration", "scalars", "spec"}
    kernels = {p.stem.removesuffix("_cpu") for p in (ROOT / "csrc/kernels").glob("*_cpu.cpp")}
    # reconstruct is decode and code_grad on the CPU, one kernel on a GPU, which alone has a dense
    # regime; rows are the buffer's.
    assert kernels - {"table", "rows"} == named - {"reconstruct", "relu_dense", "mask_gradient"}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests/ops").glob("test_*.py")}
    assert tests - {"contracts", "dispatch", "fuzz"} == named
    triton = {p.stem for p in (ROOT / "kernels/triton").glob("*.py") if p.stem[0] != "_"}
    assert triton == named
