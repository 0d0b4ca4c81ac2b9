// TopK fused into the encoder matmul: every row keeps a short list of candidates and the k-th best
// value seen so far; only pre-activations above that value are looked at.
//
// A row expects about k (1 + ln(F / k)) candidates when features come in random order, so the
// selection costs one compare per pre-activation, from cache.
#include "kernels/encoder.h"
#include "kernels/select.h"
#include "kernels/table.h"

namespace tb {
namespace TB_ISA {
namespace {

using Entry = Candidate<std::int32_t>;

// The k-th largest of n keys: built bit by bit from the top, each bit one vectorised count.
std::int32_t kth_largest(const std::int32_t* keys, std::int64_t n, std::int64_t k) {
    std::uint32_t found = 0;  // in unsigned order; signed keys differ from it by the top bit
    for (int bit = 31; bit >= 0; --bit) {
        const std::uint32_t candidate = found | 1u << bit;
        const std::int32_t least = static_cast<std::int32_t>(candidate ^ 0x80000000u);
        std::int32_t count = 0;
        for (std::int64_t i = 0; i < n; ++i) count += keys[i] >= least;
        if (count >= k) found = candidate;
    }
    return static_cast<std::int32_t>(found ^ 0x80000000u);
}

struct TopK {
    const Encoder& e;
    std::int64_t k, capacity;
    std::int32_t *keys, *columns;  // [N, capacity]: candidates, columns ascending
    std::int64_t* count;           // [N]
    float* floor;                  // [N]: the k-th best value so far, -inf while fewer are known

    // Cuts a row's candidates to its k best, in their order; of equals the first ones stay.
    void prune(std::int64_t row) {
        std::int32_t *key = keys + row * capacity, *column = columns + row * capacity;
        const std::int64_t n = count[row];
        const std::int32_t least = kth_largest(key, n, k);
        std::int64_t above = 0;
        for (std::int64_t i = 0; i < n; ++i) above += key[i] > least;
        std::int64_t equals = k - above, kept = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            const bool equal = key[i] == least && equals > 0;
            key[kept] = key[i];
            column[kept] = column[i];
            kept += key[i] > least || equal;
            equals -= equal;
        }
        count[row] = k;
        floor[row] = from_ordered(least);
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
        std::int64_t at = row * capacity + count[row];
        for (; mask; mask &= mask - 1) {
            const int lane = __builtin_ctz(mask);
            keys[at] = ordered(lanes[lane]);
            columns[at++] = static_cast<std::int32_t>(column + lane);
        }
        count[row] = at - row * capacity;
        if (count[row] + kLanes > capacity) prune(row);
    }
};

}  // namespace

void encode_topk(const Encoder& e, std::int64_t k, float* values, std::int32_t* indices) {
    const std::int64_t capacity = std::min(2 * k + 64, e.F) + kLanes;
    const Scratch keys(e.N * capacity * 4), columns(e.N * capacity * 4);
    const Scratch count(e.N * 8), floor(e.N * 4);
    TopK topk{e, k, capacity, keys.as<std::int32_t>(), columns.as<std::int32_t>(),
              count.as<std::int64_t>(), floor.as<float>()};
    for (std::int64_t row = 0; row < e.N; ++row) {
        topk.count[row] = 0;
        topk.floor[row] = -std::numeric_limits<float>::infinity();
    }
    encode(e, topk);

    constexpr std::int64_t kRows = 64;
    auto finish = [&](std::int64_t chunk, int) {
        const std::unique_ptr<Entry[]> best(new Entry[k]);
        for (std::int64_t row = chunk * kRows; row < std::min(e.N, (chunk + 1) * kRows); ++row) {
            if (topk.count[row] > k) topk.prune(row);
            const std::int64_t at = row * capacity;
            for (std::int64_t j = 0; j < k; ++j) best[j] = {topk.keys[at + j], topk.columns[at + j]};
            std::sort(best.get(), best.get() + k);
            for (std::int64_t j = 0; j < k; ++j) {
                const float value = from_ordered(best[j].key);
                values[row * k + j] = value <= 0 ? 0.0f : value;  // NaN passes through
                indices[row * k + j] = best[j].position;
            }
        }
    };
    parallel_for((e.N + kRows - 1) / kRows, e.threads, finish);
}

}  // namespace TB_ISA
}  // namespace tb
