"""The ops: one file each, holding the contract, the reference, the registration.

The kernels behind them are in csrc/kernels/<op>_cpu.cpp (C++) and kernels/triton/<op>.py (Triton).
"""

from trustbench.ops.adam import adam_
from trustbench.ops.attention_capture import Attention, attention_capture
from trustbench.ops.code_grad import code_grad
from trustbench.ops.codes import Code, CSRCode, FeatureCode, PaddedCode, TopKCode
from trustbench.ops.decode import decode
from trustbench.ops.dispatch import use
from trustbench.ops.encode_batchtopk import encode_batchtopk, encode_batchtopk_padded
from trustbench.ops.encode_relu import encode_relu, encode_relu_padded
from trustbench.ops.encode_topk import encode_topk
from trustbench.ops.mask_gradient import mask_gradient_
from trustbench.ops.reconstruct import reconstruct, reconstruct_products
from trustbench.ops.registration import trusted
from trustbench.ops.relu_dense import relu_dense
from trustbench.ops.scalars import step_scalars
from trustbench.ops.sparse_adam import sparse_adam_, sparse_grad_norm
from trustbench.ops.transpose_code import transpose_code
from trustbench.ops.weight_grad import weight_grad

__all__ = [
    "Attention",
    "CSRCode",
    "Code",
    "FeatureCode",
    "PaddedCode",
    "TopKCode",
    "adam_",
    "attention_capture",
    "code_grad",
    "decode",
    "encode_batchtopk",
    "encode_batchtopk_padded",
    "encode_relu",
    "encode_relu_padded",
    "encode_topk",
    "mask_gradient_",
    "reconstruct",
    "reconstruct_products",
    "relu_dense",
    "sparse_adam_",
    "sparse_grad_norm",
    "step_scalars",
    "transpose_code",
    "trusted",
    "use",
    "weight_grad",
]
