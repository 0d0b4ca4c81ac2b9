// TopK fused into the encoder matmul: every row keeps a short list of candidates and the k-th best
// value seen so far; only pre-activations above that value are looked at.
//
// A row expects about k (1 + ln(F / k)) candidates when features come in random order, so the
// selection costs one compare per pre-activation, from cache.
#include "encoder.h"
#include "select.h"
#include "table.h"

namespace tb {
namespace TB_ISA {
namespace {

struct TopK {
    const Encoder& e;
    std::int64_t k, capacity;
    RowEntry* entries;    // [N, capacity]
    std::int64_t* count;  // [N]
    float* floor;         // [N]: the k-th best value so far, -inf while fewer are known

    void prune(std::int64_t row) {
        RowEntry* list = entries + row * capacity;
        std::nth_element(list, list + (k - 1), list + count[row]);
        count[row] = k;
        floor[row] = list[k - 1].value();
    }

    void tile(int, std::int64_t row0, std::int64_t rows, std::int64_t col0, std::int64_t cols,
              const float* pre, std::int64_t stride) {
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t row = row0 + r;
            for (std::int64_t c = 0; c < cols; c += kLanes)
                add(row, col0 + c, pre + r * stride + c, std::min<std::int64_t>(kLanes, cols - c));
        }
    }

    void add(std::int64_t row, std::int64_t column, const float* pre, std::int64_t n) {
        Vec value;
        std::uint32_t mask;
        if (n == kLanes) {
            value = load(pre) + load(e.b + column);
            mask = mask_not_le(value, broadcast(floor[row]));
        } else {
            value = Vec{};
            mask = 0;
            for (std::int64_t i = 0; i < n; ++i) {
                value[i] = pre[i] + e.b[column + i];
                mask |= static_cast<std::uint32_t>(!(value[i] <= floor[row])) << i;
            }
        }
        // -inf is not above a floor of -inf, but while fewer than k are known it is a candidate.
        if (count[row] < k) mask = (1u << n) - 1;
        if (!mask) return;
        float lanes[kLanes];
        store(lanes, value);
        RowEntry* list = entries + row * capacity;
        for (; mask; mask &= mask - 1) {
            const int lane = __builtin_ctz(mask);
            list[count[row]++] = RowEntry(lanes[lane], static_cast<std::uint32_t>(column + lane));
        }
        if (count[row] + kLanes > capacity) prune(row);
    }
};

}  // namespace

void encode_topk(const Encoder& e, std::int64_t k, float* values, std::int32_t* indices) {
    const std::int64_t capacity = std::min(2 * k + 64, e.F) + kLanes;
    const Scratch entries(e.N * capacity * static_cast<std::int64_t>(sizeof(RowEntry)));
    const Scratch count(e.N * 8), floor(e.N * 4);
    TopK topk{e, k, capacity, entries.as<RowEntry>(), count.as<std::int64_t>(), floor.as<float>()};
    for (std::int64_t row = 0; row < e.N; ++row) {
        topk.count[row] = 0;
        topk.floor[row] = -std::numeric_limits<float>::infinity();
    }
    encode(e, topk);

    constexpr std::int64_t kRows = 64;
    auto finish = [&](std::int64_t chunk, int) {
        for (std::int64_t row = chunk * kRows; row < std::min(e.N, (chunk + 1) * kRows); ++row) {
            RowEntry* list = topk.entries + row * capacity;
            if (topk.count[row] > k) topk.prune(row);
            std::sort(list, list + k);
            for (std::int64_t j = 0; j < k; ++j) {
                const float value = list[j].value();
                values[row * k + j] = value <= 0 ? 0.0f : value;  // NaN passes through
                indices[row * k + j] = list[j].column();
            }
        }
    };
    parallel_for((e.N + kRows - 1) / kRows, e.threads, finish);
}

}  // namespace TB_ISA
}  // namespace tb
