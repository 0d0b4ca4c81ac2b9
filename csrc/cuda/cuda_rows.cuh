// Kernels that move rows into and out of the slots of an activation buffer on a GPU.
//
// A warp moves a row and a launch the rows of up to 32 hook points, so that a put of many of them is
// one launch. A lane reads several times before it writes: slots are anywhere, and only loads in flight
// hide that. Where rows and addresses allow it, it reads and writes 16 bytes at a time (of mx8, the
// codes of 8 numbers), else words or single numbers.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "cuda/cuda_numbers.cuh"
#include "kernels.h"

namespace tb {

constexpr int kLaunchHooks = 32;
constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The rows of one hook point: from row from_slots[i] to row to_slots[i], or i where a list is null.
struct RowMove {
    const char* from;
    char* to;
    const std::int64_t *from_slots, *to_slots;  // on the device
    std::int64_t from_bytes, to_bytes;          // of a row
    std::int64_t d;                             // numbers of a row
    unsigned long long* bad;                    // counts rows that are not finite
};

// An argument of a kernel: at most 4 KB.
struct RowMoves {
    RowMove of_hook[kLaunchHooks];
};

using RowKernel = void (*)(RowMoves, std::int64_t n);

// A kernel, and one hook point's rows for it.
struct PlannedMove {
    RowKernel kernel;
    RowMove rows;
};

// Numbers that a lane reads or writes at once.
template <class T, int kUnit>
struct alignas(std::min<std::size_t>(16, sizeof(T) * kUnit)) Pack {
    T of[kUnit];
};

struct Mx8 {};  // as what numbers are stored

__device__ inline std::int64_t warp_row() {
    return static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
}

__device__ inline const char* source(const RowMove& move, std::int64_t row) {
    return move.from + (move.from_slots ? move.from_slots[row] : row) * move.from_bytes;
}

__device__ inline char* target(const RowMove& move, std::int64_t row) {
    return move.to + (move.to_slots ? move.to_slots[row] : row) * move.to_bytes;
}

// Slot lists, out of host memory. By a kernel, because a copy would queue behind the segments that
// are on their way to the device.
static __global__ void __launch_bounds__(kThreads)
copy_lists(const std::int64_t* from, std::int64_t* to, std::int64_t n) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i < n) to[i] = from[i];
}

// Rows as they are, in words.
template <class Word>
__global__ void __launch_bounds__(kThreads) copy_rows(const __grid_constant__ RowMoves moves, std::int64_t n) {
    const RowMove& move = moves.of_hook[blockIdx.y];
    const std::int64_t row = warp_row();
    if (row >= n) return;
    const auto* from = reinterpret_cast<const Word*>(source(move, row));
    auto* to = reinterpret_cast<Word*>(target(move, row));
    const int words = static_cast<int>(move.from_bytes / static_cast<int>(sizeof(Word)));
    constexpr int kDeep = 4;
    for (int at = threadIdx.x % kWarp; at < words; at += kDeep * kWarp) {
        Word moving[kDeep];
#pragma unroll
        for (int k = 0; k < kDeep; ++k)
            if (at + k * kWarp < words) moving[k] = from[at + k * kWarp];
#pragma unroll
        for (int k = 0; k < kDeep; ++k)
            if (at + k * kWarp < words) to[at + k * kWarp] = moving[k];
    }
}

// kUnit numbers from i on, in the lanes of a warp: writes them where i < d, and returns the largest
// magnitude among them.
template <class To, class From, int kUnit>
__device__ inline std::uint32_t write_numbers(const Pack<From, kUnit>& in, char* to, int i, int d) {
    std::uint32_t largest = 0;
    Pack<To, kUnit> out;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
        const float x = widened(in.of[j]);
        largest = max(largest, magnitude(x));
        narrow(x, out.of[j]);
    }
    if (i < d) reinterpret_cast<Pack<To, kUnit>*>(to)[i / kUnit] = out;
    return largest;
}

// The same for mx8. kMxBlock / kUnit neighbouring lanes have a block; past the row's end they have zeros.
template <class From, int kUnit>
__device__ inline std::uint32_t write_mx8(const Pack<From, kUnit>& in, char* to, int i, int d) {
    float x[kUnit];
    std::uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
        x[j] = widened(in.of[j]);
        largest = max(largest, magnitude(x[j]));
    }
#pragma unroll
    for (int lanes = 1; lanes < kMxBlock / kUnit; lanes *= 2)
        largest = max(largest, __shfl_xor_sync(kAllLanes, largest, lanes));
    const std::uint32_t scale = mx_scale(largest);
    const float factor = mx_factor(scale);
    if (largest > kMxLargest) {
#pragma unroll
        for (int j = 0; j < kUnit; ++j) x[j] = mx_kept(x[j]);
    }
    auto* codes = reinterpret_cast<std::uint8_t*>(to);
    if (i < d) {
        if constexpr (kUnit == 1) {
            codes[i] = static_cast<std::uint8_t>(e4m3_pair(x[0] * factor, 0));
        } else {
            Pack<std::uint32_t, kUnit / 4> out;
#pragma unroll
            for (int j = 0; j < kUnit; j += 4)
                out.of[j / 4] = e4m3_pair(x[j] * factor, x[j + 1] * factor) |
                                (e4m3_pair(x[j + 2] * factor, x[j + 3] * factor) << 16);
            *reinterpret_cast<Pack<std::uint32_t, kUnit / 4>*>(codes + i) = out;
        }
        if (i % kMxBlock == 0) codes[d + i / kMxBlock] = static_cast<std::uint8_t>(scale);
    }
    return largest;
}

// Rows converted and checked on their way into the pool.
template <class From, class To, int kUnit>
__global__ void __launch_bounds__(kThreads) put_rows(const __grid_constant__ RowMoves moves, std::int64_t n) {
    const RowMove& move = moves.of_hook[blockIdx.y];
    const std::int64_t row = warp_row();
    if (row >= n) return;  // the whole warp
    using In = Pack<From, kUnit>;
    const auto* from = reinterpret_cast<const In*>(source(move, row));
    char* to = target(move, row);
    const int d = static_cast<int>(move.d), lane = threadIdx.x % kWarp;
    constexpr int kDeep = kUnit == 1 ? 4 : 64 / static_cast<int>(sizeof(In));
    std::uint32_t largest = 0;
    for (int begin = 0; begin < d; begin += kDeep * kWarp * kUnit) {
        const int i = begin + lane * kUnit;
        In in[kDeep];
#pragma unroll
        for (int k = 0; k < kDeep; ++k) {
            const int at = i + k * kWarp * kUnit;
            in[k] = at < d ? from[at / kUnit] : In{};
        }
#pragma unroll
        for (int k = 0; k < kDeep; ++k) {
            const int at = i + k * kWarp * kUnit;
            if constexpr (std::is_same_v<To, Mx8>) {
                largest = max(largest, write_mx8(in[k], to, at, d));
            } else {
                largest = max(largest, write_numbers<To>(in[k], to, at, d));
            }
        }
    }
    if constexpr (std::is_same_v<To, Mx8>) {
        const int used = d + (d + static_cast<int>(kMxBlock) - 1) / static_cast<int>(kMxBlock);
        if (used + lane < move.to_bytes) to[used + lane] = 0;  // fewer than 16
    }
    if (__any_sync(kAllLanes, largest >= kNotFinite<To>) && lane == 0) atomicAdd(move.bad, 1ull);
}

// Rows of mx8 as bf16.
template <int kUnit>
__global__ void __launch_bounds__(kThreads) take_mx8(const __grid_constant__ RowMoves moves, std::int64_t n) {
    const RowMove& move = moves.of_hook[blockIdx.y];
    const std::int64_t row = warp_row();
    if (row >= n) return;
    using Codes = Pack<std::uint8_t, kUnit>;
    using Out = Pack<std::uint16_t, kUnit>;
    const char* from = source(move, row);
    auto* to = reinterpret_cast<Out*>(target(move, row));
    const int d = static_cast<int>(move.d);
    const auto* scales = reinterpret_cast<const std::uint8_t*>(from + d);
    constexpr int kDeep = 4;
    for (int i = static_cast<int>(threadIdx.x % kWarp) * kUnit; i < d; i += kDeep * kWarp * kUnit) {
        Codes codes[kDeep];
        std::uint32_t scale[kDeep];
#pragma unroll
        for (int k = 0; k < kDeep; ++k) {
            const int at = i + k * kWarp * kUnit;
            if (at >= d) continue;
            codes[k] = reinterpret_cast<const Codes*>(from)[at / kUnit];
            scale[k] = scales[at / kMxBlock];
        }
#pragma unroll
        for (int k = 0; k < kDeep; ++k) {
            const int at = i + k * kWarp * kUnit;
            if (at >= d) continue;
            Out out;
#pragma unroll
            for (int j = 0; j < kUnit; ++j) out.of[j] = mx_decoded(codes[k].of[j], scale[k]);
            to[at / kUnit] = out;
        }
    }
}

// ---------------------------------------------------------------- which kernel

// Whether rows can be moved in words of so many bytes.
inline bool in_words(const RowMove& move, std::int64_t bytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(move.from) | reinterpret_cast<std::uintptr_t>(move.to);
    return (static_cast<std::int64_t>(address % 16) | move.from_bytes | move.to_bytes) % bytes == 0;
}

inline RowKernel copy_kernel(const RowMove& move) {
    if (in_words(move, 16)) return copy_rows<uint4>;
    return in_words(move, 4) ? copy_rows<std::uint32_t> : copy_rows<std::uint16_t>;
}

inline RowKernel put_kernel(const RowMove& move, RowKind from, RowKind to) {
    const bool wide = in_words(move, 16);
    const auto is = [&](RowKind a, RowKind b) { return from == a && to == b; };
    if (is(RowKind::f32, RowKind::f32)) return wide ? put_rows<float, float, 4> : put_rows<float, float, 1>;
    if (is(RowKind::f16, RowKind::f16)) return wide ? put_rows<__half, __half, 8> : put_rows<__half, __half, 1>;
    using bf16 = __nv_bfloat16;
    if (is(RowKind::bf16, RowKind::bf16)) return wide ? put_rows<bf16, bf16, 8> : put_rows<bf16, bf16, 1>;
    if (is(RowKind::f32, RowKind::bf16)) return wide ? put_rows<float, bf16, 8> : put_rows<float, bf16, 1>;
    if (is(RowKind::bf16, RowKind::f32)) return wide ? put_rows<bf16, float, 8> : put_rows<bf16, float, 1>;
    const bool eights = wide && move.d % 8 == 0;  // of codes, that is, which a row need not end with
    if (is(RowKind::f32, RowKind::mx8)) return eights ? put_rows<float, Mx8, 8> : put_rows<float, Mx8, 1>;
    if (is(RowKind::bf16, RowKind::mx8)) return eights ? put_rows<bf16, Mx8, 8> : put_rows<bf16, Mx8, 1>;
    throw std::invalid_argument("put: rows of this kind are not converted here");
}

inline RowKernel take_kernel(const RowMove& move, RowKind kind) {
    if (kind != RowKind::mx8) return copy_kernel(move);
    return in_words(move, 16) ? take_mx8<8> : take_mx8<1>;
}

inline cudaError_t launch_copy_lists(const std::int64_t* from, std::int64_t* to, std::int64_t n,
                                     cudaStream_t stream) {
    void* arguments[] = {&from, &to, &n};
    const dim3 grid(static_cast<unsigned>((n + kThreads - 1) / kThreads));
    return cudaLaunchKernel(copy_lists, grid, dim3(kThreads), arguments, 0, stream);
}

// As few launches as there are kernels, for up to 32 hook points each.
inline cudaError_t launch_moves(const std::vector<PlannedMove>& planned, std::int64_t n, cudaStream_t stream) {
    struct Launch {
        RowKernel kernel;
        unsigned hooks;
        RowMoves moves;
    };
    std::vector<Launch> launches;
    for (const PlannedMove& move : planned) {
        auto found = std::find_if(launches.begin(), launches.end(), [&](const Launch& l) {
            return l.kernel == move.kernel && l.hooks < kLaunchHooks;
        });
        if (found == launches.end()) found = launches.insert(found, Launch{move.kernel, 0, {}});
        found->moves.of_hook[found->hooks++] = move.rows;
    }
    constexpr std::int64_t kRows = kThreads / kWarp;
    for (Launch& l : launches) {
        const dim3 grid(static_cast<unsigned>((n + kRows - 1) / kRows), l.hooks);
        void* arguments[] = {&l.moves, &n};
        const cudaError_t status = cudaLaunchKernel(l.kernel, grid, dim3(kThreads), arguments, 0, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace tb
