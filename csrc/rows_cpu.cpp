// Rows into and out of the slots of an activation buffer: as fast as memory, checked on the way in.
//
// Slots are anywhere, so the next rows are prefetched by hand; and as neither the pool nor a batch
// fits a cache, they are written past it (a plain store would first read what it overwrites).
#include <algorithm>
#include <atomic>
#include <limits>

#include "parallel.h"
#include "table.h"
#include "vec.h"

namespace tb {
namespace TB_ISA {
namespace {

constexpr std::int64_t kRows = 32;   // of one chunk of work
constexpr std::int64_t kAhead = 2;   // rows prefetched before they are read

// Whether `to` may be written with aligned streaming stores.
inline bool aligned(const void* to) { return reinterpret_cast<std::uintptr_t>(to) % (4 * kLanes) == 0; }

inline void stream(void* to, VecU32 bits) {
#if defined(__AVX512F__)
    _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)bits);
#elif defined(__AVX2__)
    _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)bits);
#else
    std::memcpy(to, &bits, sizeof bits);
#endif
}

inline void fence() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

inline VecU32 load_bits(const void* p) {
    VecU32 bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
}

inline void copy_row(const char* from, char* to, std::int64_t bytes) {
    std::int64_t i = 0;
    if (aligned(to))
        for (; i + 4 * kLanes <= bytes; i += 4 * kLanes) stream(to + i, load_bits(from + i));
    std::memcpy(to + i, from + i, static_cast<std::size_t>(bytes - i));
}

// All ones where the number's exponent is: Inf or NaN.
inline VecU32 not_finite(VecU32 bits) {
    const VecU32 exponent = VecU32{} + 0x7f800000u;
    return (VecU32)((bits & exponent) == exponent);
}

// The same for the two halves of every word, whose exponents `mask` has (bf16 or fp16, twice).
inline VecU32 not_finite_halves(VecU32 bits, std::uint32_t mask) {
    const VecU32 high = VecU32{} + (mask & 0xffff0000u), low = VecU32{} + (mask & 0xffffu);
    return (VecU32)((bits & high) == high) | (VecU32)((bits & low) == low);
}

inline bool any(VecU32 found) {
    std::uint32_t lanes[kLanes], all = 0;
    std::memcpy(lanes, &found, sizeof lanes);
    for (const std::uint32_t lane : lanes) all |= lane;
    return all != 0;
}

bool put_same(const float* from, float* to, std::int64_t d, std::uint32_t) {
    VecU32 bad{};
    bool tail = false;
    std::int64_t i = 0;
    const bool whole = aligned(to);
    for (; i + kLanes <= d; i += kLanes) {
        const VecU32 bits = load_bits(from + i);
        bad |= not_finite(bits);
        if (whole) stream(to + i, bits);
        else std::memcpy(to + i, &bits, sizeof bits);
    }
    for (; i < d; ++i) {
        to[i] = from[i];
        tail |= !(from[i] - from[i] == 0);
    }
    return tail || any(bad);
}

bool put_same(const bf16* from, bf16* to, std::int64_t d, std::uint32_t mask) {
    VecU32 bad{};
    bool tail = false;
    std::int64_t i = 0;
    const bool whole = aligned(to);
    for (; i + 2 * kLanes <= d; i += 2 * kLanes) {
        const VecU32 bits = load_bits(from + i);
        bad |= not_finite_halves(bits, mask);
        if (whole) stream(to + i, bits);
        else std::memcpy(to + i, &bits, sizeof bits);
    }
    for (; i < d; ++i) {
        to[i] = from[i];
        tail |= (from[i] & mask & 0xffffu) == (mask & 0xffffu);
    }
    return tail || any(bad);
}

bool put_narrowed(const float* from, bf16* to, std::int64_t d) {
    VecU32 bad{};
    bool tail = false;
    std::int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
        const VecU32 bits = load_bits(from + i);
        // Rounded to nearest even. What would round up to infinity is caught as well as Inf and NaN.
        const VecU32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
        bad |= not_finite(bits) | not_finite(rounded);
        const VecU16 half = __builtin_convertvector(rounded >> 16, VecU16);
        std::memcpy(to + i, &half, sizeof half);
    }
    for (; i < d; ++i) {
        to[i] = to_bf16(from[i]);
        tail |= (to[i] & 0x7f80u) == 0x7f80u;
    }
    return tail || any(bad);
}

bool put_widened(const bf16* from, float* to, std::int64_t d) {
    VecU32 bad{};
    bool tail = false;
    std::int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
        const Vec v = load(from + i);
        VecU32 bits;
        std::memcpy(&bits, &v, sizeof bits);
        bad |= not_finite(bits);
        store(to + i, v);
    }
    for (; i < d; ++i) {
        to[i] = to_float(from[i]);
        tail |= (from[i] & 0x7f80u) == 0x7f80u;
    }
    return tail || any(bad);
}

bool put_row(const PutRows& p, std::int64_t row) {
    const char* from = static_cast<const char*>(p.from) + row * p.d * (p.from_kind == RowKind::f32 ? 4 : 2);
    char* to = static_cast<char*>(p.pool) + p.slots[row] * p.d * (p.pool_kind == RowKind::f32 ? 4 : 2);
    const auto* wide = reinterpret_cast<const float*>(from);
    const auto* narrow = reinterpret_cast<const bf16*>(from);
    if (p.from_kind == p.pool_kind) {
        if (p.pool_kind == RowKind::f32) return put_same(wide, reinterpret_cast<float*>(to), p.d, 0);
        const std::uint32_t mask = p.pool_kind == RowKind::bf16 ? 0x7f807f80u : 0x7c007c00u;
        return put_same(narrow, reinterpret_cast<bf16*>(to), p.d, mask);
    }
    if (p.from_kind == RowKind::f32) return put_narrowed(wide, reinterpret_cast<bf16*>(to), p.d);
    return put_widened(narrow, reinterpret_cast<float*>(to), p.d);
}

}  // namespace

BadRows put_rows(const PutRows& p) {
    std::atomic<std::int64_t> count{0}, first{std::numeric_limits<std::int64_t>::max()};
    auto body = [&](std::int64_t chunk, int) {
        for (std::int64_t row = chunk * kRows; row < std::min(p.n, (chunk + 1) * kRows); ++row) {
            if (!put_row(p, row)) continue;
            count.fetch_add(1, std::memory_order_relaxed);
            std::int64_t known = first.load(std::memory_order_relaxed);
            while (row < known && !first.compare_exchange_weak(known, row, std::memory_order_relaxed)) {
            }
        }
        fence();
    };
    parallel_for((p.n + kRows - 1) / kRows, p.threads, body);
    return {count.load(), count.load() ? first.load() : -1};
}

void take_rows(const void* pool, const std::int64_t* slots, std::int64_t n, std::int64_t bytes, void* out,
               int threads) {
    const char* from = static_cast<const char*>(pool);
    char* to = static_cast<char*>(out);
    auto body = [&](std::int64_t chunk, int) {
        const std::int64_t end = std::min(n, (chunk + 1) * kRows);
        for (std::int64_t row = chunk * kRows; row < end; ++row) {
            if (row + kAhead < end) prefetch_row(from + slots[row + kAhead] * bytes, bytes);
            copy_row(from + slots[row] * bytes, to + row * bytes, bytes);
        }
        fence();
    };
    parallel_for((n + kRows - 1) / kRows, threads, body);
}

}  // namespace TB_ISA
}  // namespace tb
