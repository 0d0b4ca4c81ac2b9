// The `total` largest positive pre-activations of a whole batch, exact, without writing them all.
//
// Every thread keeps a list of candidates above a floor; a full list is cut to its `total` best, and
// its worst survivor is a floor for all threads, because `total` entries at least as good exist.
#include <atomic>

#include "kernels/encoder.h"
#include "kernels/select.h"
#include "kernels/table.h"

namespace tb {
namespace TB_ISA {
namespace {

using BatchEntry = Candidate<std::int64_t>;

struct BatchTopK {
    const Encoder& e;
    std::int64_t total, capacity;
    BatchEntry* entries;                 // [threads, capacity]
    std::int64_t* count;                 // [threads]
    std::atomic<std::int32_t>* floor;    // ordered key; entries below it cannot be kept

    void prune(int thread) {
        BatchEntry* list = entries + thread * capacity;
        std::nth_element(list, list + (total - 1), list + count[thread]);
        count[thread] = total;
        const std::int32_t candidate = list[total - 1].key;
        std::int32_t known = floor->load(std::memory_order_relaxed);
        while (candidate > known && !floor->compare_exchange_weak(known, candidate)) {}
    }

    void tile(int thread, std::int64_t row0, std::int64_t rows, std::int64_t col0, std::int64_t cols,
              const float* pre, std::int64_t stride) {
        const std::int32_t zero = ordered(0.0f);
        for (std::int64_t r = 0; r < rows; ++r) {
            if (count[thread] + cols > capacity) prune(thread);
            // Columns do not arrive in flat order over the batch, so equal to the floor still counts.
            const std::int32_t least = std::max(floor->load(std::memory_order_relaxed), zero + 1);
            // The largest float below `least`: a cheap vector test that lets equals through.
            const Vec below = broadcast(from_ordered(least - 1));
            const float* values = pre + r * stride;
            BatchEntry* list = entries + thread * capacity;
            const std::int64_t flat = (row0 + r) * e.F + col0;
            std::int64_t c = 0;
            for (; c + kLanes <= cols; c += kLanes) {
                const Vec value = load(values + c) + load(e.b + col0 + c);
                std::uint32_t mask = mask_not_le(value, below);
                if (!mask) continue;
                float lanes[kLanes];
                store(lanes, value);
                for (; mask; mask &= mask - 1) {
                    const int lane = __builtin_ctz(mask);
                    list[count[thread]++] = {ordered(lanes[lane]), flat + c + lane};
                }
            }
            for (; c < cols; ++c) {
                const std::int32_t key = ordered(values[c] + e.b[col0 + c]);
                if (key >= least) list[count[thread]++] = {key, flat + c};
            }
        }
    }
};

struct ByPosition {
    bool operator()(const BatchEntry& a, const BatchEntry& b) const { return a.position < b.position; }
};

}  // namespace

CsrResult encode_batchtopk(const Encoder& e, std::int64_t total) {
    const std::int64_t capacity = 2 * total + 2 * kGroupColumns;
    const Scratch entries(e.threads * capacity * static_cast<std::int64_t>(sizeof(BatchEntry)));
    const Scratch count(e.threads * 8);
    std::atomic<std::int32_t> floor{std::numeric_limits<std::int32_t>::min()};
    BatchTopK select{e, total, capacity, entries.as<BatchEntry>(), count.as<std::int64_t>(), &floor};
    std::fill(select.count, select.count + e.threads, std::int64_t{0});
    if (total > 0) encode(e, select);

    std::int64_t nnz = 0;
    const Scratch merged(e.threads * (total + 1) * static_cast<std::int64_t>(sizeof(BatchEntry)));
    BatchEntry* kept = merged.as<BatchEntry>();
    for (int t = 0; t < e.threads; ++t) {
        if (select.count[t] > total) select.prune(t);
        std::copy_n(select.entries + t * capacity, select.count[t], kept + nnz);
        nnz += select.count[t];
    }
    if (nnz > total) {
        std::nth_element(kept, kept + total, kept + nnz);
        nnz = total;
    }
    std::sort(kept, kept + nnz, ByPosition{});

    CsrResult out;
    out.nnz = nnz;
    out.row_offsets.reset(new std::int64_t[e.N + 1]());
    out.indices.reset(new std::int32_t[nnz]);
    out.values.reset(new float[nnz]);
    for (std::int64_t i = 0; i < nnz; ++i) {
        out.row_offsets[kept[i].position / e.F + 1] += 1;
        out.indices[i] = static_cast<std::int32_t>(kept[i].position % e.F);
        out.values[i] = from_ordered(kept[i].key);
    }
    for (std::int64_t n = 0; n < e.N; ++n) out.row_offsets[n + 1] += out.row_offsets[n];
    return out;
}

}  // namespace TB_ISA
}  // namespace tb
