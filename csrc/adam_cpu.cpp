// Adam on a matrix with a dense gradient, with the unit-norm constraint on rows where asked.
#include "adam.h"

#include <algorithm>

#include "parallel.h"
#include "table.h"

namespace tb {
namespace TB_ISA {

void adam(const Moments& w, const float* grad, std::int64_t rows, std::int64_t d, const Adam& options, int threads) {
    const AdamFactors factors(options);
    constexpr std::int64_t kRows = 64;
    auto body = [&](std::int64_t chunk, int) {
        const std::unique_ptr<float[]> projected(new float[options.unit_norm ? d : 0]);
        for (std::int64_t i = chunk * kRows; i < std::min(rows, (chunk + 1) * kRows); ++i) {
            float* param = w.param + i * d;
            const float* g = grad + i * d;
            if (options.unit_norm) {
                std::copy_n(g, d, projected.get());
                project_row(projected.get(), param, d);
                g = projected.get();
            }
            const float squared = adam_row(param, w.m + i * d, w.v + i * d, g, 1.0f, d, factors);
            if (options.unit_norm) normalize_row(param, squared, d);
        }
    };
    parallel_for((rows + kRows - 1) / kRows, threads, body);
}

}  // namespace TB_ISA
}  // namespace tb
