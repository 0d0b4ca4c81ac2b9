// What attention_capture_cpu.cpp does with a chunk of keys and MR rows of their scores, one step at a time.
#pragma once
#include "kernels/encoder.h"

namespace tb {
namespace TB_ISA {

constexpr std::int64_t kMostKeys = 512;           // of a chunk
constexpr std::int64_t kStride = kMostKeys + 16;  // not a power of two: rows fall into different cache sets

// Keys [lo, hi), counted from the first one of a chunk or of all.
struct Range {
    std::int64_t lo, hi;
    bool empty() const { return lo >= hi; }
};

// acc[r] = acc[r] · shrink[r] + Σ_j p[r, j] v[j] for MR rows and V vectors of columns.
template <int V>
void add_values(const float* p, const float* v, std::int64_t keys, const float* shrink, float* acc,
                std::int64_t stride) {
    Vec sums[MR][V];
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < V; ++c) sums[r][c] = Vec{};
    for (std::int64_t j = 0; j < keys; ++j, ++p, v += V * kLanes) {
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
            for (int c = 0; c < V; ++c) sums[r][c] = multiply_add(sums[r][c], p[r * kStride], v + c * kLanes);
    }
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int c = 0; c < V; ++c) {
            float* to = acc + r * stride + c * kLanes;
            store(to, load(to) * broadcast(shrink[r]) + sums[r][c]);
        }
}

// Keys as panels of NR, transposed and zero-filled.
template <class T>
void pack_keys(const T* k, std::int64_t keys, std::int64_t D, float* panel) {
    for (std::int64_t j = 0; j < NR; j += 4) {
        std::int64_t i = 0;
        for (; j + 4 <= keys && i + 4 <= D; i += 4) {
            float rows[4][4];
            for (int r = 0; r < 4; ++r)
                for (int c = 0; c < 4; ++c) rows[r][c] = to_float(k[(j + r) * D + i + c]);
            for (int c = 0; c < 4; ++c)
                for (int r = 0; r < 4; ++r) panel[(i + c) * NR + j + r] = rows[r][c];
        }
        for (; i < D; ++i)
            for (int r = 0; r < 4; ++r) panel[i * NR + j + r] = j + r < keys ? to_float(k[(j + r) * D + i]) : 0;
    }
}

// Values as panels of NR columns (the last one of kLanes where that is enough), zero-filled.
template <class T>
void pack_values(const T* v, Range keys, std::int64_t D, float* packed) {
    for (std::int64_t column = 0; column < D; column += NR, packed += NR * kMostKeys) {
        const std::int64_t width = D - column <= kLanes ? kLanes : NR;
        for (std::int64_t j = keys.lo; j < keys.hi; ++j) {
            for (std::int64_t i = 0; i < width; i += kLanes) {
                const T* from = v + j * D + column + i;
                float* to = packed + j * width + i;
                if (column + i + kLanes <= D) {
                    store(to, load(from));
                } else {
                    for (std::int64_t c = 0; c < kLanes; ++c) to[c] = column + i + c < D ? to_float(from[c]) : 0;
                }
            }
        }
    }
}

// Where a row's maximum stands first.
inline std::int64_t find(const float* s, Range keys, float max) {
    std::int64_t j = keys.lo / kLanes * kLanes;
    for (;; j += kLanes) {
        const std::uint32_t below = mask_not_le(broadcast(max), load(s + j));
        if (below != (1ull << kLanes) - 1) return j + __builtin_ctz(~below);
    }
}

// Puts the scores above the least of a row's `top` into it; of equals the lower key stays first.
inline void keep_largest(const float* s, Range keys, std::int64_t first, std::int64_t top, float* best,
                         std::int32_t* index) {
    for (std::int64_t j0 = keys.lo / kLanes * kLanes; j0 < keys.hi; j0 += kLanes) {
        std::uint32_t mask = mask_not_le(load(s + j0), broadcast(best[top - 1]));
        for (; mask; mask &= mask - 1) {
            const std::int64_t j = j0 + __builtin_ctz(mask);
            const float score = s[j];
            if (!(score > best[top - 1])) continue;  // the list has grown since, or a NaN
            std::int64_t i = top - 1;
            for (; i > 0 && best[i - 1] < score; --i) {
                best[i] = best[i - 1];
                index[i] = index[i - 1];
            }
            best[i] = score;
            index[i] = static_cast<std::int32_t>(first + j);
        }
    }
}

}  // namespace TB_ISA
}  // namespace tb
