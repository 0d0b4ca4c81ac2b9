"""encode_relu: dense pre-activations of some rows at a time, then the kept entries in order.

The sizes of a CSR code depend on the data, so this asks the device once for every part of the rows.
Training in the dense regime does not come here: see trustbench.train.dense_step.
"""

import torch

from trustbench.kernels.triton import _csr, _dense

BUILDS = ()


def encode_relu(x, W, b, threshold):
    """(values fp32, indices, row_offsets): pre-activations above `threshold` [F] fp32, or above 0.

    x [N, d] and W [F, d] in bf16 or fp32, contiguous; b [F].
    """
    N, F = len(x), len(W)
    size = _dense.rows_at_once(F)
    parts = []
    for first in range(0, N, size):
        pre = _dense.pre_activations(x, W, b, first, min(size, N - first))
        above, _ = _csr.count(pre, threshold=threshold)
        parts.append(_csr.write(pre, above, threshold=threshold))
    if len(parts) == 1:
        return parts[0]
    values = torch.cat([torch.empty(0, device=x.device), *(v for v, _, _ in parts)])
    indices = torch.cat(
        [torch.empty(0, dtype=torch.int32, device=x.device), *(i for _, i, _ in parts)]
    )
    counts = torch.cat(
        [torch.zeros(1, dtype=torch.int64, device=x.device), *(o.diff() for _, _, o in parts)]
    )
    return values, indices, counts.cumsum(0)
