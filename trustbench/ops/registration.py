"""Registering an op with torch.library, and the checks that all ops share.

`Library.define` and `Library.impl` cost a call about 2 µs; `torch.library.custom_op` costs about 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.ops.spec import FLOATS

_library = torch.library.Library("trustbench", "DEF")
_INTEGERS, _NUMBERS = (int, torch.SymInt), (int, float, torch.SymInt, torch.SymFloat)
DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1}
_trusted: ContextVar[bool] = ContextVar("trustbench_trusted", default=False)


@contextmanager
def trusted() -> Iterator[None]:
    """Inside the block ops take codes as they are: no index or offset is looked at.

    For codes that trustbench's own encoders made: looking at data waits for a GPU. A wrong index
    leads the kernels out of memory.
    """
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def is_trusted() -> bool:
    """Whether codes are taken as they are."""
    return _trusted.get()


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Define trustbench::<name>; return what calls it. `run` serves every device."""
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, run, "CPU")
    _library.impl(name, _on_its_device(run), "CUDA")
    torch.library.register_fake(f"trustbench::{name}", fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            f"trustbench::{name}", backward, setup_context=setup_context, lib=_library
        )
    return getattr(torch.ops.trustbench, name).default


def on_device_of(tensor: Tensor) -> Any:
    """Inside the block the current CUDA device, on which Triton launches, is the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _on_its_device(run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(run)
    def guarded(first: Tensor, *rest: Any) -> Any:
        with on_device_of(first):
            return run(first, *rest)

    return guarded


def no_second_order(op: str) -> Callable[..., Any]:
    """The backward of an op that is itself a gradient: without one, torch would return zeros."""

    def backward(ctx: Any, *_: Any) -> None:
        raise NotImplementedError(f"{op} is a gradient already: second derivatives are not supported")

    return backward


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    *dtypes: Any,
    device: torch.device | None = None,
) -> None:
    """Shape (None: any size), dtype and device (None: any that the ops run on) of one argument."""
    if not isinstance(tensor, Tensor):
        raise bad(name, type(tensor).__name__, "a torch.Tensor")
    actual = tuple(tensor.shape)
    if len(actual) != len(shape) or any(
        want is not None and have != want for have, want in zip(actual, shape, strict=True)
    ):
        # Worded only here: torch.compile cannot turn the size of a CSR code into a string.
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise bad(f"{name}.shape", list(actual), f"[{wanted}]")
    if dtypes and tensor.dtype not in dtypes:
        raise bad(f"{name}.dtype", tensor.dtype, " or ".join(str(d) for d in dtypes))
    if tensor.layout is not torch.strided:
        raise bad(f"{name}.layout", tensor.layout, "torch.strided")
    if device is not None and tensor.device != device:
        raise bad(f"{name}.device", str(tensor.device), f"{device}, as the other tensors")
    if tensor.device.type not in ("cpu", "cuda", "meta"):
        raise NotImplementedError(
            f"{name} is on {tensor.device}: the ops run on CPUs and CUDA devices"
        )


def check_encoder(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    matmul_dtype: torch.dtype | None,
    out_dtype: torch.dtype | None = None,
) -> None:
    """The arguments that all encoders share."""
    check_tensor("x", x, (None, None), *FLOATS)
    check_tensor("W_enc", W_enc, (None, x.shape[1]), x.dtype, device=x.device)
    check_tensor("b_enc", b_enc, (W_enc.shape[0],), *FLOATS, device=x.device)
    if W_enc.shape[0] < 1 or W_enc.shape[1] < 1:
        raise bad("W_enc.shape", list(W_enc.shape), "[d_sae, d_in], both at least 1")
    if not any(matmul_dtype is dtype for dtype in (None, torch.float32, torch.bfloat16)):
        raise bad("matmul_dtype", matmul_dtype, "None, torch.float32 or torch.bfloat16")
    if not any(out_dtype is dtype for dtype in (None, *FLOATS)):
        raise bad("out_dtype", out_dtype, "None, torch.float32, torch.bfloat16 or torch.float64")


def check_k(k: int, d_sae: int) -> None:
    """The number of active features a token."""
    if isinstance(k, bool) or not isinstance(k, _INTEGERS) or not 1 <= k <= d_sae:
        raise bad("k", k, f"an integer in [1, d_sae={d_sae}]")


def check_integer(name: str, value: int, least: int = 1) -> None:
    """A whole number that fits 32 bits, as indices do."""
    if isinstance(value, bool) or not isinstance(value, _INTEGERS) or not least <= value < 2**31:
        raise bad(name, value, f"an integer >= {least}, below 2^31")


def check_numbers(expected: str, least: float, below: float, **numbers: float) -> None:
    """Numbers in [least, below), which are finite; bools and integers of over 64 bits are none."""
    for name, value in numbers.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, _NUMBERS)
            or not least <= value < below
            or (isinstance(value, int) and value >= 2**63)
        ):
            raise bad(name, value, expected)


def check_flags(**flags: bool) -> None:
    """Arguments that are True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise bad(name, value, "True or False")


def check_code(
    indices: Tensor,
    row_offsets: Tensor | None,
    *,
    tokens: int | None = None,
    device: torch.device | None = None,
) -> None:
    """Indices [N, k], or [nnz] with row_offsets [N + 1]."""
    if row_offsets is None:
        check_tensor("indices", indices, (tokens, None), torch.int32, device=device)
    else:
        check_tensor("indices", indices, (None,), torch.int32, device=device)
        offsets = None if tokens is None else tokens + 1
        check_tensor("row_offsets", row_offsets, (offsets,), torch.int64, device=indices.device)
        if row_offsets.shape[0] < 1:
            raise bad("row_offsets.shape", [0], "[N + 1]")


def check_entries(
    indices: Tensor, row_offsets: Tensor | None, d_sae: int
) -> tuple[Tensor, Tensor | None]:
    """What the kernels follow as addresses, contiguous; raises for what would lead out of memory.

    Looks at data, so it belongs inside an implementation, where torch.compile does not see it. It
    costs about 2 µs for a small code and 6 µs for 65,536 entries, and 8 µs more for row offsets.
    """
    if _trusted.get():
        return indices.contiguous(), None if row_offsets is None else row_offsets.contiguous()
    if indices.numel():
        low, high = (int(end) for end in indices.aminmax())
        if low < 0 or high >= d_sae:
            raise bad("indices", low if low < 0 else high, f"integers in [0, d_sae={d_sae})")
    if row_offsets is not None:
        row_offsets = row_offsets.contiguous()
        first, last = int(row_offsets[0]), int(row_offsets[-1])
        if first != 0 or last != len(indices) or bool((row_offsets[1:] < row_offsets[:-1]).any()):
            raise bad("row_offsets", f"{first} ... {last}", f"ascending from 0 to nnz={len(indices)}")
    return indices.contiguous(), row_offsets


def operands(x: Tensor, W_enc: Tensor, matmul_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """x and W as the reference multiplies them: rounded to `matmul_dtype`, summed in fp32 or fp64."""
    if matmul_dtype == torch.bfloat16:
        x, W_enc = x.to(torch.bfloat16), W_enc.to(torch.bfloat16)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(wide), W_enc.to(wide)


def pre_activations(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, matmul_dtype: torch.dtype | None
) -> Tensor:
    """x W_enc^T + b_enc, dense [N, F]: what the references select from."""
    x, W_enc = operands(x, W_enc, matmul_dtype)
    return x @ W_enc.T + b_enc.to(x.dtype)


def encoder_arguments(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, matmul_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Contiguous x and W_enc, b_enc as fp32, and whether the kernels round operands to bf16."""
    rounded = x.dtype == torch.bfloat16 or matmul_dtype == torch.bfloat16
    return x.contiguous(), W_enc.contiguous(), b_enc.float().contiguous(), rounded


def tensor_core_operands(x: Tensor, W: Tensor, rounded: bool) -> tuple[Tensor, Tensor]:
    """x and W as the Triton kernels multiply them."""
    return (x.to(torch.bfloat16), W.to(torch.bfloat16)) if rounded else (x, W)


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data lies; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
