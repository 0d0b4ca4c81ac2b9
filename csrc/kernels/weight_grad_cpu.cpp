// dW[i] = sum over the entries p of feature i of coefs[p] source[row(p)], in row order; db[i] likewise.
#include <algorithm>

#include "kernels/table.h"
#include "kernels/vec.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {
namespace {

constexpr std::int64_t kFeatures = 64;

template <class T>
void grad_features(const float* coefs, const FeatureCode& code, const T* source, std::int64_t F,
                   std::int64_t d, float* dW, float* db, int threads) {
    auto body = [&](std::int64_t chunk, int) {
        for (std::int64_t i = chunk * kFeatures; i < std::min(F, (chunk + 1) * kFeatures); ++i) {
            float* row = dW + i * d;
            std::fill(row, row + d, 0.0f);
            float total = 0;
            for (std::int64_t q = code.offsets[i]; q < code.offsets[i + 1]; ++q) {
                const float coef = coefs[code.positions[q]];
                if (coef == 0) continue;
                axpy(coef, source + code.rows[q] * d, row, d);
                total += coef;
            }
            db[i] = total;
        }
    };
    parallel_for((F + kFeatures - 1) / kFeatures, threads, body);
}

}  // namespace

void weight_grad(const float* coefs, const FeatureCode& code, const Matrix& source, std::int64_t F,
                 std::int64_t d, float* dW, float* db, int threads) {
    if (source.dtype == Dtype::f32) {
        grad_features(coefs, code, static_cast<const float*>(source.data), F, d, dW, db, threads);
    } else {
        grad_features(coefs, code, static_cast<const bf16*>(source.data), F, d, dW, db, threads);
    }
}

}  // namespace TB_ISA
}  // namespace tb
