// A made-up code: k distinct features a token, a few values zero; also as CSR, and grouped by feature.
#pragma once
#include "inputs.h"

namespace guard {

constexpr std::int64_t kTokens = 100, kWidth = 260, kFeatures = 300, kActive = 16;

struct MadeCode {
    Array<float> values = floats(kTokens * kActive, 11, 0, 1);
    Array<std::int32_t> indices{kTokens * kActive}, rows{kTokens * kActive}, positions{kTokens * kActive};
    Array<std::int64_t> row_offsets{kTokens + 1}, feature_offsets{kFeatures + 1};

    MadeCode() {
        Numbers numbers(12);
        for (std::int64_t n = 0; n < kTokens; ++n) {
            row_offsets[n + 1] = (n + 1) * kActive;
            const std::int64_t first = numbers.below(kFeatures);
            for (std::int64_t j = 0; j < kActive; ++j)
                indices[n * kActive + j] = static_cast<std::int32_t>((first + 7 * j) % kFeatures);
        }
        for (std::int64_t p = 0; p < values.size(); p += 9) values[p] = 0;
        std::int64_t at = 0;
        for (std::int64_t i = 0; i < kFeatures; ++i) {
            for (std::int64_t p = 0; p < indices.size(); ++p) {
                if (indices[p] != i) continue;
                rows[at] = static_cast<std::int32_t>(p / kActive);
                positions[at++] = static_cast<std::int32_t>(p);
            }
            feature_offsets[i + 1] = at;
        }
    }

    tb::Code code() const { return {indices.data(), nullptr, kTokens, kActive}; }
    tb::Code csr() const { return {indices.data(), row_offsets.data(), kTokens, 0}; }
    tb::FeatureCode by_feature() const { return {feature_offsets.data(), rows.data(), positions.data()}; }
};

}  // namespace guard
