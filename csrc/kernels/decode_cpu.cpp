// x_hat[n] = sum_j values[n, j] W_dec[indices[n, j]]: a gather of rows, summed in the order of the code.
#include <algorithm>

#include "kernels/table.h"
#include "kernels/vec.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {
namespace {

constexpr std::int64_t kRows = 16;
constexpr std::int64_t kAhead = 8;  // rows of W prefetched before they are needed
constexpr int kBlock = kLanes == 16 ? 16 : 8;  // vectors of a row that are summed in registers

// Some columns of W, and the entries of one token: what is read after a token's last entry is here.
template <class T>
struct Next {
    const T* W;
    std::int64_t begin, end;
};

// kVectors vectors of a row of the output.
template <int kVectors, class T>
void sum_rows(const float* values, const std::int32_t* indices, std::int64_t begin, std::int64_t end,
              const T* W, std::int64_t d, float* out, const Next<T>& next) {
    Vec sum[kVectors] = {};
    for (std::int64_t p = begin; p < end; ++p) {
        const std::int64_t ahead = p + kAhead, beyond = next.begin + ahead - end;
        if (ahead < end) {
            prefetch_row(W + indices[ahead] * d, kVectors * kLanes);
        } else if (beyond < next.end) {
            prefetch_row(next.W + indices[beyond] * d, kVectors * kLanes);
        }
        if (values[p] == 0) continue;
        const Vec value = broadcast(values[p]);
        const T* row = W + indices[p] * d;
        for (int i = 0; i < kVectors; ++i) sum[i] += value * load(row + i * kLanes);
    }
    for (int i = 0; i < kVectors; ++i) store(out + i * kLanes, sum[i]);
}

template <class T>
void decode_rows(const float* values, const Code& code, const T* W, std::int64_t d, float* out, int threads) {
    constexpr std::int64_t kStep = kBlock * kLanes;
    auto body = [&](std::int64_t chunk, int) {
        const std::int64_t last = std::min(code.N, (chunk + 1) * kRows);
        for (std::int64_t n = chunk * kRows; n < last; ++n) {
            float* row = out + n * d;
            const std::int64_t begin = code.begin(n), end = code.begin(n + 1);
            const Next<T> token = {W, end, n + 1 < last ? code.begin(n + 2) : end};
            std::int64_t i = 0;
            for (; i + kStep <= d; i += kStep) {
                const bool more = i + 2 * kStep <= d;
                sum_rows<kBlock>(values, code.indices, begin, end, W + i, d, row + i,
                                 more ? Next<T>{W + i + kStep, begin, end} : token);
            }
            for (; i + kLanes <= d; i += kLanes) {
                sum_rows<1>(values, code.indices, begin, end, W + i, d, row + i, token);
            }
            for (; i < d; ++i) {
                float sum = 0;
                for (std::int64_t p = begin; p < end; ++p) {
                    if (values[p] != 0) sum += values[p] * to_float(W[code.indices[p] * d + i]);
                }
                row[i] = sum;
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
