"""sparse_adam_ (both gradients, Adam, unit norm) against the same by index_add_."""

import torch

from benchmarks.ops.inputs import Inputs, op_test
from trustbench import ops

SUBJECT = "ops"


@torch.no_grad()
def index_add(i: Inputs) -> None:
    """Both gradients as dense matrices, through [N k, d], the decoder's projected; fused Adam."""
    W_enc, W_dec, b_enc = i.adam_of_an_sae.param_groups[0]["params"]
    features, values = i.long.flatten(), i.code.values
    da = torch.einsum("nkd,nd->nk", W_dec[i.long], i.grad) * (values > 0)
    b_enc.grad.zero_().index_add_(0, features, da.flatten())
    for W, a, rows in ((W_enc, da, i.x), (W_dec, values, i.grad)):
        W.grad.zero_().index_add_(0, features, (a[:, :, None] * rows[:, None]).flatten(0, 1))
    W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
    i.adam_of_an_sae.step()
    W_dec /= W_dec.norm(dim=1, keepdim=True)


test_sparse_adam = op_test(
    "sparse_adam",
    {
        "trustbench": lambda i: ops.sparse_adam_(
            i.weights, i.code.values, i.by_feature, i.x, i.grad, i.moments, step=1, lr=1e-6
        ),
        "torch: index_add, Adam": index_add,
    },
)
