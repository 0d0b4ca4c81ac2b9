"""transpose_code: the entries of a code grouped by feature."""

from __future__ import annotations

import torch
from torch import Tensor

from trustbench.errors import bad
from trustbench.ops import dispatch
from trustbench.ops.codes import FeatureCode, entry_rows
from trustbench.ops.registration import (
    address,
    check_code,
    check_entries,
    check_integer,
    check_tensor,
    register,
)
from trustbench.ops.spec import FULL, INT32, INT64, OpSpec


def transpose_code(
    indices: Tensor,
    d_sae: int,
    row_offsets: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    values: Tensor | None = None,
) -> FeatureCode:
    """Group a code's entries by feature, tokens ascending: what feature-stationary passes walk.

    Deterministic: a stable counting sort by the order of the code.

    Parameters
    ----------
    indices : Tensor [N, k] (TopK code) or [nnz] (CSR code), int32, each in [0, d_sae)
    d_sae : int
    row_offsets : Tensor [N + 1], int64, for a CSR code
    rows : Tensor [nnz], int32 or int64, in the place of row_offsets
        The row of every entry, for a padded code, or for entries of several codes.
    values : Tensor, shape of indices, fp32
        Entries of value 0 are left out.

    Returns
    -------
    FeatureCode
        feature_offsets [d_sae + 1] int64, rows [nnz] int32, positions [nnz] int32; with `values`
        what lies behind feature_offsets[-1] in rows and positions means nothing.

    Raises
    ------
    InputError
        For a wrong shape or dtype, an index outside [0, d_sae), or offsets that do not fit the code.
    """
    if rows is None:
        check_code(indices, row_offsets)
    else:
        if row_offsets is not None:
            raise bad("row_offsets", "a tensor", "None where rows are given")
        check_tensor("indices", indices, (None,), torch.int32)
        check_tensor("rows", rows, tuple(indices.shape), torch.int32, torch.int64)
    if values is not None:
        check_tensor("values", values, tuple(indices.shape), torch.float32, torch.float64)
    check_integer("d_sae", d_sae)
    return FeatureCode(*_transpose_code(indices, d_sae, row_offsets, rows, values))


def reference(
    indices: Tensor,
    d_sae: int,
    row_offsets: Tensor | None,
    rows: Tensor | None = None,
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    features = indices.flatten().long()
    if values is not None:  # what is left out goes behind the last feature
        features = torch.where(values.flatten() == 0, d_sae, features)
    positions = features.argsort(stable=True)
    offsets = torch.zeros(d_sae + 1, dtype=torch.int64, device=features.device)
    offsets[1:] = torch.bincount(features, minlength=d_sae)[:d_sae].cumsum(0)
    rows = entry_rows(indices, row_offsets) if rows is None else rows
    return offsets, rows[positions].to(torch.int32), positions.to(torch.int32)


def _run(
    indices: Tensor,
    d_sae: int,
    row_offsets: Tensor | None,
    rows: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    indices, row_offsets = check_entries(indices, row_offsets, d_sae)
    chosen = dispatch.implementation("transpose_code", indices)
    if chosen == "reference":
        return reference(indices, d_sae, row_offsets, rows, values)
    if chosen == "triton":
        if row_offsets is not None:
            rows = entry_rows(indices, row_offsets)
        values = None if values is None else values.float().contiguous()
        return dispatch.triton("transpose_code").transpose_code(indices, d_sae, rows, values)
    if rows is not None or values is not None:
        return _of_single_entries(indices, d_sae, row_offsets, rows, values)
    return _native(indices, d_sae, row_offsets)


def _of_single_entries(
    indices: Tensor,
    d_sae: int,
    row_offsets: Tensor | None,
    rows: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """For the C++ kernel: a code of one entry a row, the wanted entries alone."""
    rows = entry_rows(indices, row_offsets) if rows is None else rows
    flat, kept = indices.flatten(), None
    if values is not None:
        kept = (values.flatten() != 0).nonzero().flatten()
        flat, rows = flat[kept], rows[kept]
    offsets, _, order = _native(flat[:, None], d_sae, None)
    found = rows[order.long()].to(torch.int32)
    if kept is None:
        return offsets, found, order
    rest = indices.numel() - len(kept)
    positions = kept[order.long()].to(torch.int32)
    pad = torch.nn.functional.pad
    return offsets, pad(found, (0, rest)), pad(positions, (0, rest))


def _native(indices: Tensor, d_sae: int, row_offsets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
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


def _fake(indices: Tensor, d_sae: int, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    entries = indices.numel()
    return (
        indices.new_empty(d_sae + 1, dtype=torch.int64),
        indices.new_empty(entries),
        indices.new_empty(entries),
    )


_transpose_code = register(
    "transpose_code(Tensor indices, int d_sae, Tensor? row_offsets, Tensor? rows,"
    " Tensor? values) -> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)

SPEC = OpSpec(
    "transpose_code",
    "entries sorted by (feature, token)",
    {
        "indices": ("N k or nnz", INT32),
        "row_offsets": ("N+1", INT64),
        "rows": ("nnz", INT32 + INT64),
        "values": ("N k or nnz", FULL),
    },
    {"feature_offsets": ("F+1", INT64), "rows": ("nnz", INT32), "positions": ("nnz", INT32)},
    "entries of one feature: the lower token first, then the order of the code",
    lambda s: 0.0,
    lambda s: 12.0 * s.N * s.k + 8.0 * s.F,
)
