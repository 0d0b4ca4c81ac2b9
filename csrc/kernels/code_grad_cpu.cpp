// out[p] = <grad[row(p)], W[indices[p]]>: the gradient of a code's values.
#include <algorithm>

#include "kernels/table.h"
#include "kernels/vec.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {
namespace {

constexpr std::int64_t kRows = 16;
constexpr std::int64_t kAhead = 3;

template <class T>
void grad_rows(const float* grad, const Code& code, const T* W, std::int64_t d, float* out, int threads) {
    auto body = [&](std::int64_t chunk, int) {
        for (std::int64_t n = chunk * kRows; n < std::min(code.N, (chunk + 1) * kRows); ++n) {
            const std::int64_t end = code.begin(n + 1);
            for (std::int64_t p = code.begin(n); p < end; ++p) {
                if (p + kAhead < end) prefetch_row(W + code.indices[p + kAhead] * d, d);
                out[p] = dot(grad + n * d, W + code.indices[p] * d, d);
            }
        }
    };
    parallel_for((code.N + kRows - 1) / kRows, threads, body);
}

}  // namespace

void code_grad(const float* grad, const Code& code, const Matrix& W, std::int64_t d, float* out, int threads) {
    if (W.dtype == Dtype::f32) {
        grad_rows(grad, code, static_cast<const float*>(W.data), d, out, threads);
    } else {
        grad_rows(grad, code, static_cast<const bf16*>(W.data), d, out, threads);
    }
}

}  // namespace TB_ISA
}  // namespace tb
