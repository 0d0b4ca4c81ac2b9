// x_hat[n] = sum_j values[n, j] W_dec[indices[n, j]]: a gather of rows, summed in the order of the code.
#include <algorithm>

#include "parallel.h"
#include "table.h"
#include "vec.h"

namespace tb {
namespace TB_ISA {
namespace {

constexpr std::int64_t kRows = 16;
constexpr std::int64_t kAhead = 3;  // rows of W prefetched before they are needed

template <class T>
void decode_rows(const float* values, const Code& code, const T* W, std::int64_t d, float* out, int threads) {
    auto body = [&](std::int64_t chunk, int) {
        for (std::int64_t n = chunk * kRows; n < std::min(code.N, (chunk + 1) * kRows); ++n) {
            float* row = out + n * d;
            std::fill(row, row + d, 0.0f);
            const std::int64_t end = code.begin(n + 1);
            for (std::int64_t p = code.begin(n); p < end; ++p) {
                if (p + kAhead < end) prefetch_row(W + code.indices[p + kAhead] * d, d);
                if (values[p] != 0) axpy(values[p], W + code.indices[p] * d, row, d);
            }
        }
    };
    parallel_for((code.N + kRows - 1) / kRows, threads, body);
}

}  // namespace

void decode(const float* values, const Code& code, const Matrix& W, std::int64_t d, float* out, int threads) {
    if (W.dtype == Dtype::f32) {
        decode_rows(values, code, static_cast<const float*>(W.data), d, out, threads);
    } else {
        decode_rows(values, code, static_cast<const bf16*>(W.data), d, out, threads);
    }
}

}  // namespace TB_ISA
}  // namespace tb
