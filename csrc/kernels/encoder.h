// The encoder matmul, tile by tile: pre = x W^T + b is handed to a consumer while it is in cache and
// never written out.
//
//   for a superblock of columns (features) whose packed weights fit the last-level cache
//     pack W once                                                       (parallel over panels)
//     for a block of rows (tokens)                                      (parallel)
//       pack x; for a group of columns: multiply into a tile in L2; consumer(tile)
//
// A consumer sees the columns of a row in ascending order, which is what makes "first seen wins"
// the lower index wins.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <new>

#include "kernels/vec.h"
#include "pages.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {

// Registers: MR x 2 accumulators, two vectors of W and one broadcast of x.
#if defined(__AVX512F__)
constexpr int MR = 12;
#else
constexpr int MR = 6;
#endif
constexpr int NR = 2 * kLanes;
constexpr std::int64_t kGroupColumns = 256;         // columns of one tile (a multiple of NR)
constexpr std::int64_t kPackedBytes = 8 << 20;      // packed weights of one superblock
constexpr std::int64_t kRowBlockBytes = 256 << 10;  // packed x of one block of rows
constexpr std::int64_t kDepth = 256;  // multiply steps summed in registers: short sums round less

inline std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

// Aligned scratch memory; large pieces in huge pages where the system gives them.
class Scratch {
  public:
    explicit Scratch(std::int64_t bytes) {
        constexpr std::int64_t kHugePage = 2 << 20;
        const std::int64_t alignment = bytes < kHugePage ? 64 : kHugePage;
        const auto size = static_cast<std::size_t>(round_up(std::max<std::int64_t>(bytes, 1), alignment));
        data_ = std::aligned_alloc(static_cast<std::size_t>(alignment), size);
        if (!data_) throw std::bad_alloc();
        if (alignment == kHugePage) prefer_huge_pages(data_, size);
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    template <class T>
    T* as() const { return static_cast<T*>(data_); }

  private:
    void* data_;
};

// ---------------------------------------------------------------- operand formats
// A packed unit is what one multiply step consumes of one row: a float, or a pair of bfloat16.

struct F32Operand {
    using Unit = float;
    static constexpr int kPerUnit = 1;
    template <class T>
    static void convert(const T* row, std::int64_t n, Unit* out) {
        for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(row[i]);
    }
};

// bfloat16 operands on hardware without a bfloat16 dot product: rounded, then multiplied as floats
// (the products are exact, so only the order of the sums differs).
struct RoundedOperand {
    using Unit = float;
    static constexpr int kPerUnit = 1;
    template <class T>
    static void convert(const T* row, std::int64_t n, Unit* out) {
        for (std::int64_t i = 0; i < n; ++i) out[i] = to_float(to_bf16(to_float(row[i])));
    }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16 for vdpbf16ps. The instruction reads denormals as zero.
struct Bf16Operand {
    using Unit = std::uint32_t;
    static constexpr int kPerUnit = 2;
    static void convert(const float* row, std::int64_t n, Unit* out) {
        std::int64_t i = 0;
        for (; i + 32 <= n; i += 32) {
            const __m512bh pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + i + 16), _mm512_loadu_ps(row + i));
            std::memcpy(out + i / 2, &pairs, sizeof pairs);
        }
        for (; i < n; i += 2)
            out[i / 2] = to_bf16(row[i]) | static_cast<Unit>(i + 1 < n ? to_bf16(row[i + 1]) : 0) << 16;
    }
    static void convert(const bf16* row, std::int64_t n, Unit* out) {
        out[(n - 1) / 2] = 0;
        std::memcpy(out, row, static_cast<std::size_t>(n) * sizeof(bf16));
    }
};
using RoundedMatmul = Bf16Operand;
#else
using RoundedMatmul = RoundedOperand;
#endif

inline Vec multiply_add(Vec acc, float a, const float* b) { return acc + broadcast(a) * load(b); }
#if defined(__AVX512BF16__)
inline Vec multiply_add(Vec acc, std::uint32_t a, const std::uint32_t* b) {
    const __m512i vb = _mm512_loadu_si512(b);
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)vb);
}
#endif

// Packs `rows` rows of a [*, d] matrix as [units][Width], zero-filled to Width rows.
template <class Op, int Width, class T>
void pack_panel(const T* source, std::int64_t rows, std::int64_t d, typename Op::Unit* out) {
    const std::int64_t units = (d + Op::kPerUnit - 1) / Op::kPerUnit;
    constexpr std::int64_t kStep = 16;  // units of every row converted at a time: one pass through L1
    typename Op::Unit block[Width][kStep] = {};
    for (std::int64_t k0 = 0; k0 < units; k0 += kStep) {
        const std::int64_t n = std::min(kStep, units - k0);
        const std::int64_t first = k0 * Op::kPerUnit;
        for (std::int64_t r = 0; r < rows; ++r)
            Op::convert(source + r * d + first, std::min(d - first, kStep * Op::kPerUnit), block[r]);
        for (std::int64_t k = 0; k < n; ++k)
            for (int r = 0; r < Width; ++r) out[(k0 + k) * Width + r] = block[r][k];
    }
}

// tile[MR, NR] (+)= a [units][MR] times b [units][NR]
template <class Unit>
inline void micro_kernel(const Unit* a, const Unit* b, std::int64_t units, float* tile,
                         std::int64_t stride, bool accumulate) {
    Vec acc[MR][2];
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) acc[r][0] = acc[r][1] = Vec{};
    for (std::int64_t k = 0; k < units; ++k) {
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) {
            acc[r][0] = multiply_add(acc[r][0], a[r], b);
            acc[r][1] = multiply_add(acc[r][1], a[r], b + kLanes);
        }
        a += MR;
        b += NR;
    }
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
        float* row = tile + r * stride;
        if (accumulate) {
            acc[r][0] += load(row);
            acc[r][1] += load(row + kLanes);
        }
        store(row, acc[r][0]);
        store(row + kLanes, acc[r][1]);
    }
}

// Consumer::tile(thread, row0, rows, col0, cols, pre, stride): pre[r * stride + c] is the
// pre-activation, without bias, of token row0 + r and feature col0 + c; readable up to the next
// multiple of kLanes past cols.
template <class Op, class XT, class WT, class Consumer>
void run_encoder(const Encoder& e, Consumer& consumer) {
    using Unit = typename Op::Unit;
    const XT* x = static_cast<const XT*>(e.x.data);
    const WT* W = static_cast<const WT*>(e.W.data);
    const std::int64_t units = (e.d + Op::kPerUnit - 1) / Op::kPerUnit;
    const std::int64_t panel = units * NR;  // units in one packed panel of W
    const std::int64_t unit_bytes = sizeof(Unit);

    const std::int64_t columns = std::min(
        round_up(e.F, NR),
        std::max(kGroupColumns, kPackedBytes / (units * unit_bytes) / kGroupColumns * kGroupColumns));
    // Blocks of rows: at most what fits half of L2, and a number that divides among the threads.
    const std::int64_t most = std::max<std::int64_t>(2, std::min<std::int64_t>(16, kRowBlockBytes / (MR * units * unit_bytes))) * MR;
    const std::int64_t waves = (e.N + most * e.threads - 1) / (most * e.threads);
    const std::int64_t block_rows = round_up((e.N + waves * e.threads - 1) / (waves * e.threads), MR);
    const std::int64_t blocks = (e.N + block_rows - 1) / block_rows;

    const Scratch packed_W(columns * units * unit_bytes);
    const std::int64_t thread_x = round_up(block_rows * units * unit_bytes, 4096);
    const std::int64_t thread_tile = round_up(block_rows * kGroupColumns * 4, 4096);
    const Scratch local(e.threads * (thread_x + thread_tile));

    for (std::int64_t first = 0; first < e.F; first += columns) {
        const std::int64_t width = std::min(columns, e.F - first);
        const std::int64_t panels = (width + NR - 1) / NR;
        auto pack = [&](std::int64_t p, int) {
            const std::int64_t column = first + p * NR;
            pack_panel<Op, NR>(W + column * e.d, std::min<std::int64_t>(NR, e.F - column), e.d,
                               packed_W.as<Unit>() + p * panel);
        };
        parallel_for(panels, e.threads, pack);

        auto multiply = [&](std::int64_t block, int thread) {
            char* mine = local.as<char>() + thread * (thread_x + thread_tile);
            Unit* packed_x = reinterpret_cast<Unit*>(mine);
            float* tile = reinterpret_cast<float*>(mine + thread_x);
            const std::int64_t row0 = block * block_rows;
            const std::int64_t rows = std::min(block_rows, e.N - row0);
            for (std::int64_t r = 0; r < rows; r += MR)
                pack_panel<Op, MR>(x + (row0 + r) * e.d, std::min<std::int64_t>(MR, rows - r), e.d,
                                   packed_x + r * units);
            for (std::int64_t p0 = 0; p0 < panels; p0 += kGroupColumns / NR) {
                const std::int64_t p1 = std::min(panels, p0 + kGroupColumns / NR);
                for (std::int64_t p = p0; p < p1; ++p)
                    for (std::int64_t k = 0; k < units; k += kDepth)
                        for (std::int64_t r = 0; r < rows; r += MR)
                            micro_kernel(packed_x + r * units + k * MR,
                                         packed_W.as<Unit>() + p * panel + k * NR,
                                         std::min(kDepth, units - k),
                                         tile + r * kGroupColumns + (p - p0) * NR, kGroupColumns, k > 0);
                consumer.tile(thread, row0, rows, first + p0 * NR,
                              std::min(width - p0 * NR, (p1 - p0) * NR), tile, kGroupColumns);
            }
        };
        parallel_for(blocks, e.threads, multiply);
    }
}

template <class Op, class Consumer>
void run_encoder_stored(const Encoder& e, Consumer& consumer) {
    if (e.x.dtype == Dtype::f32) {
        run_encoder<Op, float, float>(e, consumer);
    } else {
        run_encoder<Op, bf16, bf16>(e, consumer);
    }
}

// x and W have one dtype (the binding checks it).
template <class Consumer>
void encode(const Encoder& e, Consumer& consumer) {
    if (e.N == 0) return;
    if (e.bf16_matmul) {
        run_encoder_stored<RoundedMatmul>(e, consumer);
    } else {
        run_encoder_stored<F32Operand>(e, consumer);
    }
}

}  // namespace TB_ISA
}  // namespace tb
