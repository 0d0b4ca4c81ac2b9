// Rows into and out of the slots of an activation buffer: as fast as memory, checked on the way in.
//
// Slots are anywhere, so the next rows are prefetched by hand; and as neither the pool nor a batch
// fits a cache, they are written past it (a plain store would first read what it overwrites).
#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "kernels/mx8.h"
#include "kernels/table.h"
#include "kernels/vec.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {
namespace {

constexpr std::int64_t kRows = 32;   // of one chunk of work
constexpr std::int64_t kAhead = 2;   // rows prefetched before they are read

typedef std::uint8_t Bytes16 __attribute__((vector_size(16)));

// The power of two that an address is a multiple of.
inline std::uintptr_t alignment(const void* p) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    return address & (0 - address);
}

// A vector into a row of this alignment, at a multiple of its size: past the caches if that is possible.
template <class V>
inline void write(void* to, const V& v, std::uintptr_t aligned) {
#if defined(__AVX512F__)
    if (sizeof v == 64 && aligned >= 64)
        return _mm512_stream_si512(static_cast<__m512i*>(to), load_as<__m512i>(&v));
#endif
#if defined(__AVX2__)
    if (sizeof v == 32 && aligned >= 32)
        return _mm256_stream_si256(static_cast<__m256i*>(to), load_as<__m256i>(&v));
    if (sizeof v >= 16 && aligned >= 16) {
        __m128i parts[(sizeof v + 15) / 16];
        std::memcpy(parts, &v, sizeof v);
        for (std::size_t i = 0; i < sizeof v / 16; ++i) _mm_stream_si128(static_cast<__m128i*>(to) + i, parts[i]);
        return;
    }
#endif
    (void)aligned;
    std::memcpy(to, &v, sizeof v);
}

inline void fence() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
}

// to[i] = step(from[i]) for W of d numbers at a time, the last ones padded with zeros.
template <int W, class From, class To, class Step>
inline void each(const From* from, To* to, std::int64_t d, Step step) {
    const std::uintptr_t aligned = alignment(to);
    std::int64_t i = 0;
    for (; i + W <= d; i += W) write(to + i, step(from + i), aligned);
    if (i == d) return;
    From rest[W] = {};
    std::copy(from + i, from + d, rest);
    const auto last = step(rest);
    std::memcpy(to + i, &last, static_cast<std::size_t>(d - i) * sizeof(To));
}

inline void copy_row(const char* from, char* to, std::int64_t bytes) {
    if (bytes % (4 * kLanes) == 0) {
        each<4 * kLanes>(from, to, bytes, [](const char* p) { return load_as<VecU32>(p); });
    } else {
        each<16>(from, to, bytes, [](const char* p) { return load_as<Bytes16>(p); });
    }
}

// All ones where the number whose exponent is `mask` is Inf or NaN.
inline VecU32 not_finite(VecU32 bits, std::uint32_t mask) {
    const VecU32 exponent = VecU32{} + mask;
    return (VecU32)((bits & exponent) == exponent);
}

bool put_same(const char* from, char* to, std::int64_t bytes, RowKind kind) {
    // A word is one number, or two.
    const std::uint32_t high = kind == RowKind::f16 ? 0x7c000000u : 0x7f800000u;
    const std::uint32_t low = kind == RowKind::f32 ? high : high >> 16;
    VecU32 bad{};
    each<4 * kLanes>(from, to, bytes, [&](const char* p) {
        const VecU32 bits = load_as<VecU32>(p);
        bad |= not_finite(bits, high) | not_finite(bits, low);
        return bits;
    });
    return any(bad);
}

bool put_narrowed(const float* from, bf16* to, std::int64_t d) {
    VecU32 bad{};
    each<kLanes>(from, to, d, [&](const float* p) {
        const VecU32 bits = load_as<VecU32>(p);
        // Rounded to nearest even. What would round up to infinity is caught as well as Inf and NaN.
        const VecU32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
        bad |= not_finite(bits, 0x7f800000u) | not_finite(rounded, 0x7f800000u);
        return __builtin_convertvector(rounded >> 16, VecU16);
    });
    return any(bad);
}

bool put_widened(const bf16* from, float* to, std::int64_t d) {
    VecU32 bad{};
    each<kLanes>(from, to, d, [&](const bf16* p) {
        const Vec v = load(p);
        bad |= not_finite((VecU32)v, 0x7f800000u);
        return v;
    });
    return any(bad);
}

constexpr std::int64_t kTile = 64;            // blocks: in the caches from the first look to the second
constexpr std::int64_t kAheadNumbers = 2048;  // prefetched one by one, as their block takes a while

// n numbers as encode_block reads them, in `room` if they are not so already.
inline const bf16* in_halves(const bf16* from, std::int64_t, bf16*) { return from; }
inline const bf16* in_halves(const float* from, std::int64_t n, bf16* room) {
    for (std::int64_t i = 0; i < n; i += kLanes) {
        const VecU16 halves = to_odd(from + i);
        std::memcpy(room + i, &halves, sizeof halves);
    }
    return room;
}

inline void write(std::uint8_t* to, const MxCodes& codes, std::uintptr_t aligned) {
    for (int i = 0; i < kMxParts; ++i) write(to + 2 * kLanes * i, codes.part[i], aligned);
}

// `end` has room for the row's end, which are its scales and zeros, and for kLanes bytes more: they are
// written last, as any other store between those past the caches makes these slow.
template <class T>
bool put_mx8(const T* from, std::uint8_t* to, std::int64_t d, std::uint8_t* end) {
    const std::int64_t blocks = d / kMxBlock, end_bytes = row_bytes(RowKind::mx8, d) - d;
    const std::uintptr_t aligned = alignment(to);
    bf16 room[kTile * kMxBlock];
    bool finite = true;
    for (std::int64_t first = 0; first < blocks; first += kTile) {
        const int n = static_cast<int>(std::min(kTile, blocks - first));
        const bf16* halves = in_halves(from + first * kMxBlock, n * kMxBlock, room);
        finite &= block_scales(halves, n, end + first);
        for (int i = 0; i < n; ++i) {
            const std::int64_t at = (first + i) * kMxBlock;
            prefetch_row(from + at + kAheadNumbers, kMxBlock);
            write(to + at, encode_block(halves + i * kMxBlock, end[first + i]), aligned);
        }
    }
    std::int64_t used = blocks;
    if (const std::int64_t left = d % kMxBlock) {
        T rest[kMxBlock] = {};
        std::copy(from + d - left, from + d, rest);
        const bf16* halves = in_halves(rest, kMxBlock, room);
        finite &= block_scales(halves, 1, end + blocks);
        const MxCodes codes = encode_block(halves, end[blocks]);
        std::memcpy(to + d - left, &codes, static_cast<std::size_t>(left));
        ++used;
    }
    std::fill(end + used, end + end_bytes, std::uint8_t{0});
    copy_row(reinterpret_cast<char*>(end), reinterpret_cast<char*>(to) + d, end_bytes);
    return !finite;
}

void take_mx8(const std::uint8_t* from, bf16* to, std::int64_t d) {
    const std::uint8_t* scales = from + d;
    const std::uintptr_t aligned = alignment(to);
    const std::int64_t left = d % kMxBlock;
    for (std::int64_t i = 0; i + kMxBlock <= d; i += kMxBlock) {
        const MxNumbers numbers = decode_block(from + i, *scales++);
        for (int j = 0; j < kMxParts; ++j) write(to + i + 2 * kLanes * j, numbers.part[j], aligned);
    }
    if (left == 0) return;
    std::uint8_t rest[kMxBlock] = {};
    std::copy(from + d - left, from + d, rest);
    const MxNumbers numbers = decode_block(rest, *scales);
    std::memcpy(to + d - left, &numbers, static_cast<std::size_t>(left) * sizeof(bf16));
}

bool put_row(const PutRows& p, std::int64_t row, std::uint8_t* end) {
    const std::int64_t bytes = row_bytes(p.pool_kind, p.d);
    const char* from = static_cast<const char*>(p.from) + row * row_bytes(p.from_kind, p.d);
    char* to = static_cast<char*>(p.pool) + p.slots[row] * bytes;
    if (p.from_kind == p.pool_kind) return put_same(from, to, bytes, p.pool_kind);
    const auto* wide = reinterpret_cast<const float*>(from);
    const auto* narrow = reinterpret_cast<const bf16*>(from);
    const bool is_wide = p.from_kind == RowKind::f32;
    if (p.pool_kind == RowKind::mx8) {
        auto* codes = reinterpret_cast<std::uint8_t*>(to);
        return is_wide ? put_mx8(wide, codes, p.d, end) : put_mx8(narrow, codes, p.d, end);
    }
    return is_wide ? put_narrowed(wide, reinterpret_cast<bf16*>(to), p.d)
                   : put_widened(narrow, reinterpret_cast<float*>(to), p.d);
}

// body(row, end of its chunk, thread) for n rows.
template <class Body>
void each_row(std::int64_t n, int threads, Body body) {
    auto chunk_body = [&](std::int64_t chunk, int thread) {
        const std::int64_t end = std::min(n, (chunk + 1) * kRows);
        for (std::int64_t row = chunk * kRows; row < end; ++row) body(row, end, thread);
        fence();
    };
    parallel_for((n + kRows - 1) / kRows, threads, chunk_body);
}

}  // namespace

BadRows put_rows(const PutRows& p) {
    std::atomic<std::int64_t> count{0}, first{std::numeric_limits<std::int64_t>::max()};
    const std::int64_t end = p.pool_kind == RowKind::mx8 ? row_bytes(RowKind::mx8, p.d) - p.d + kLanes : 0;
    std::vector<std::uint8_t> ends(static_cast<std::size_t>(std::max(1, p.threads) * end));
    each_row(p.n, p.threads, [&](std::int64_t row, std::int64_t, int thread) {
        if (!put_row(p, row, ends.data() + thread * end)) return;
        count.fetch_add(1, std::memory_order_relaxed);
        std::int64_t known = first.load(std::memory_order_relaxed);
        while (row < known && !first.compare_exchange_weak(known, row, std::memory_order_relaxed)) {
        }
    });
    return {count.load(), count.load() ? first.load() : -1};
}

void gather_rows(const void* pool, const std::int64_t* slots, std::int64_t n, std::int64_t bytes, void* out,
                 int threads) {
    const char* from = static_cast<const char*>(pool);
    char* to = static_cast<char*>(out);
    each_row(n, threads, [&](std::int64_t row, std::int64_t end, int) {
        if (row + kAhead < end) prefetch_row(from + slots[row + kAhead] * bytes, bytes);
        copy_row(from + slots[row] * bytes, to + row * bytes, bytes);
    });
}

void scatter_rows(const void* from, const std::int64_t* slots, std::int64_t n, std::int64_t bytes, void* pool,
                  int threads) {
    each_row(n, threads, [&](std::int64_t row, std::int64_t, int) {
        const char* source = static_cast<const char*>(from) + row * bytes;
        copy_row(source, static_cast<char*>(pool) + slots[row] * bytes, bytes);
    });
}

void take_rows(const TakeRows& t) {
    const std::int64_t bytes = row_bytes(t.pool_kind, t.d);
    if (t.pool_kind != RowKind::mx8) return gather_rows(t.pool, t.slots, t.n, bytes, t.out, t.threads);
    const auto* from = static_cast<const std::uint8_t*>(t.pool);
    each_row(t.n, t.threads, [&](std::int64_t row, std::int64_t end, int) {
        if (row + kAhead < end) prefetch_row(from + t.slots[row + kAhead] * bytes, bytes);
        take_mx8(from + t.slots[row] * bytes, static_cast<bf16*>(t.out) + row * t.d, t.d);
    });
}

}  // namespace TB_ISA
}  // namespace tb
