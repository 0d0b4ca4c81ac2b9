"""transpose_code: the entries of a code grouped by feature."""

from __future__ import annotations

import torch
from torch import Tensor

from trustbench.ops import dispatch
from trustbench.ops.codes import FeatureCode, entry_rows
from trustbench.ops.registration import address, check_code, check_entries, check_integer, register
from trustbench.ops.spec import OpSpec


def transpose_code(indices: Tensor, d_sae: int, row_offsets: Tensor | None = None) -> FeatureCode:
    """Group a code's entries by feature, tokens ascending: what feature-stationary passes walk.

    Deterministic: a stable counting sort.

    Parameters
    ----------
    indices : Tensor [N, k] (TopK code) or [nnz] (CSR code), int32, each in [0, d_sae)
    d_sae : int
    row_offsets : Tensor [N + 1], int64, for a CSR code

    Returns
    -------
    FeatureCode
        feature_offsets [d_sae + 1] int64, rows [nnz] int32, positions [nnz] int32.

    Raises
    ------
    InputError
        For a wrong shape or dtype, an index outside [0, d_sae), or offsets that do not fit the code.
    """
    check_code(indices, row_offsets)
    check_integer("d_sae", d_sae)
    return FeatureCode(*_transpose_code(indices, d_sae, row_offsets))


def reference(
    indices: Tensor, d_sae: int, row_offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    features = indices.flatten().long()
    positions = features.argsort(stable=True)
    offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=features.device)
    offsets[1:] = torch.bincount(features, minlength=d_sae).cumsum(0)
    rows = entry_rows(indices, row_offsets)[positions]
    return offsets, rows.to(torch.int32), positions.to(torch.int32)


def _run(indices: Tensor, d_sae: int, row_offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    indices, row_offsets = check_entries(indices, row_offsets, d_sae)
    chosen = dispatch.implementation("transpose_code", indices)
    if chosen == "reference":
        return reference(indices, d_sae, row_offsets)
    if chosen == "triton":
        token = None if row_offsets is None else entry_rows(indices, row_offsets)
        return dispatch.triton("transpose_code").transpose_code(indices, d_sae, token)
    N = len(indices) if row_offsets is None else len(row_offsets) - 1
    k = indices.shape[1] if row_offsets is None else 0
    offsets = torch.empty(d_sae + 1, dtype=torch.int64)
    rows = torch.empty(indices.numel(), dtype=torch.int32)
    positions = torch.empty(indices.numel(), dtype=torch.int32)
    dispatch.native().transpose_code(
        indices.data_ptr(), address(row_offsets), offsets.data_ptr(), rows.data_ptr(),
        positions.data_ptr(), N, d_sae, k, torch.get_num_threads(),
    )  # fmt: skip
    return offsets, rows, positions


def _fake(indices: Tensor, d_sae: int, row_offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    entries = indices.numel()
    return (
        indices.new_empty(d_sae + 1, dtype=torch.int64),
        indices.new_empty(entries),
        indices.new_empty(entries),
    )


_transpose_code = register(
    "transpose_code(Tensor indices, int d_sae, Tensor? row_offsets) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)

SPEC = OpSpec(
    "transpose_code",
    "entries sorted by (feature, token)",
    {
        "indices": "[N, k] or [nnz]",
        "row_offsets": "[N + 1]",
        "returns": "feature_offsets [F + 1], rows [nnz], positions [nnz]",
    },
    (),
    "entries of one feature: the lower token first, then the order of the code",
    lambda s: 0.0,
    lambda s: 12.0 * s.N * s.k + 8.0 * s.F,
)
