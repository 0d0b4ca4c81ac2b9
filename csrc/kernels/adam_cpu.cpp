// Adam on a matrix with a dense gradient, with the unit-norm constraint on rows where asked.
#include "kernels/adam.h"

#include <algorithm>

#include "kernels/table.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {

void adam(const Moments& w, const float* grad, std::int64_t rows, std::int64_t d, const Adam& options, int threads) {
    const AdamFactors factors(options);
    constexpr std::int64_t kRows = 64;
    auto body = [&](std::int64_t chunk, int) {
        for (std::int64_t i = chunk * kRows; i < std::min(rows, (chunk + 1) * kRows); ++i) {
            float *param = w.param + i * d, *m = w.m + i * d, *v = w.v + i * d;
            const float* g = grad + i * d;
            if (options.unit_norm) {
                const float squared = adam_row<true>(param, m, v, g, dot(g, param, d), 1.0f, d, factors);
                normalize_row(param, squared, d);
            } else {
                adam_row<false>(param, m, v, g, 0.0f, 1.0f, d, factors);
            }
        }
    };
    parallel_for((rows + kRows - 1) / kRows, threads, body);
}

}  // namespace TB_ISA
}  // namespace tb
