"""encode_relu: the entries above a bound, collected in the matmul's epilogue."""

import torch

from trustbench.kernels.triton import _csr
from trustbench.kernels.triton._collect import MOST, collect

_SHARE = 16  # room for one in so many pre-activations at first; a fuller code costs a second matmul
_LEAST = 2**20  # and for so many in any case


def encode_relu(x, W, b, threshold):
    """(values fp32, indices, row_offsets): pre-activations above `threshold` [F] fp32, or above 0.

    x [N, d] and W [F, d] in bf16 or fp32, contiguous; b [F]. Asks the device once for how many
    entries there are: the sizes of the result depend on it.
    """
    N, F = len(x), len(W)
    bound = torch.zeros(1, device=x.device) if threshold is None else threshold
    entries = collect(x, W, b, bound, min(N * F, max(N * F // _SHARE, _LEAST)))
    nnz = int(entries.total)
    if nnz > MOST:
        raise NotImplementedError(f"{nnz} active entries: on a GPU a code has at most {MOST}")
    if nnz > len(entries.values):
        entries = collect(x, W, b, bound, nnz)
    code = _csr.code(entries, N, F, nnz)
    return code.values, code.indices, code.row_offsets


def padded(x, W, b, threshold, size):
    """(values fp32, indices, row_offsets, rows, whether all of it is there: bool [1]).

    In `size` places; the device is asked for nothing.
    """
    bound = torch.zeros(1, device=x.device) if threshold is None else threshold
    entries = collect(x, W, b, bound, size)
    return *_csr.code(entries, len(x), len(W), size), entries.total <= size
