// The table of kernels of one instruction set.
#include "table.h"

namespace tb {
namespace TB_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    encode_topk,      encode_relu,       encode_batchtopk, decode,    code_grad,   transpose_code, weight_grad, adam,
    sparse_adam,      sparse_grad_norm,  attention_capture, put_rows, take_rows,   gather_rows,    scatter_rows,
};

}  // namespace TB_ISA
}  // namespace tb
