// How rows are stored and handed out, once more, one number after the other: what the back ends' rows are
// compared with. And memory for them, and numbers to fill it with.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "buffer/slots.h"
#include "cuda/cuda_numbers.cuh"
#include "kernels.h"

namespace rows {

using tb::RowKind;

inline std::int64_t number_bytes(RowKind kind) { return kind == RowKind::f32 ? 4 : 2; }

inline float number(const char* row, RowKind kind, std::int64_t i) {
    const char* at = row + i * number_bytes(kind);
    if (kind == RowKind::f32) {
        float x;
        std::memcpy(&x, at, sizeof x);
        return x;
    }
    if (kind == RowKind::bf16) {
        __nv_bfloat16 x;
        std::memcpy(&x, at, sizeof x);
        return __bfloat162float(x);
    }
    __half x;
    std::memcpy(&x, at, sizeof x);
    return __half2float(x);
}

inline void set_number(char* row, RowKind kind, std::int64_t i, float x) {
    char* at = row + i * number_bytes(kind);
    if (kind == RowKind::f32) {
        std::memcpy(at, &x, sizeof x);
    } else if (kind == RowKind::bf16) {
        const __nv_bfloat16 narrow = __float2bfloat16_rn(x);
        std::memcpy(at, &narrow, sizeof narrow);
    } else {
        const __half narrow = __float2half_rn(x);
        std::memcpy(at, &narrow, sizeof narrow);
    }
}

// Numbers `begin` to `end` of a row, which are a block of mx8. Returns whether they are finite.
inline bool store_block(const char* from, RowKind from_kind, char* to, std::int64_t begin, std::int64_t end,
                        std::int64_t d) {
    std::uint32_t largest = 0;
    for (std::int64_t i = begin; i < end; ++i) largest = std::max(largest, tb::magnitude(number(from, from_kind, i)));
    const std::uint32_t scale = tb::mx_scale(largest);
    for (std::int64_t i = begin; i < end; ++i) {
        const float x = number(from, from_kind, i);
        const float kept = largest > tb::kMxLargest ? tb::mx_kept(x) : x;
        to[i] = static_cast<char>(tb::e4m3_portable(kept * tb::mx_factor(scale)));
    }
    to[d + begin / tb::kMxBlock] = static_cast<char>(scale);
    return scale != tb::kMxNaN;
}

// A row that comes in, as it is stored. Returns whether all its numbers are finite then.
inline bool store(const char* from, RowKind from_kind, char* to, RowKind kind, std::int64_t d) {
    bool finite = true;
    if (kind != RowKind::mx8) {
        for (std::int64_t i = 0; i < d; ++i) {
            set_number(to, kind, i, number(from, from_kind, i));
            finite &= std::isfinite(number(to, kind, i));
        }
        return finite;
    }
    std::memset(to, 0, static_cast<std::size_t>(tb::row_bytes(kind, d)));
    for (std::int64_t begin = 0; begin < d; begin += tb::kMxBlock)
        finite &= store_block(from, from_kind, to, begin, std::min(d, begin + tb::kMxBlock), d);
    return finite;
}

// A stored row as it is handed out.
inline void hand_out(const char* from, RowKind kind, char* to, std::int64_t d) {
    if (kind != RowKind::mx8) {
        std::memcpy(to, from, static_cast<std::size_t>(tb::row_bytes(kind, d)));
        return;
    }
    for (std::int64_t i = 0; i < d; ++i) {
        const auto code = static_cast<std::uint8_t>(from[i]);
        const auto scale = static_cast<std::uint8_t>(from[d + i / tb::kMxBlock]);
        const std::uint16_t bits = tb::mx_decoded(code, scale);
        std::memcpy(to + 2 * i, &bits, sizeof bits);
    }
}

// ---------------------------------------------------------------- memory and numbers

// Exactly so many bytes, `shift` past a multiple of 64: nothing after them may be touched.
class Memory {
  public:
    explicit Memory(std::int64_t bytes, std::int64_t shift = 0)
        : bytes_(static_cast<std::size_t>(bytes)), shift_(static_cast<std::size_t>(shift)) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, shift_ + bytes_) != 0) std::abort();
        memory_.reset(static_cast<char*>(memory));
    }
    char* data() const { return memory_.get() + shift_; }
    std::size_t bytes() const { return bytes_; }
    void fill(int byte) const { std::memset(data(), byte, bytes_); }

  private:
    struct Free {
        void operator()(char* memory) const { std::free(memory); }
    };
    std::size_t bytes_, shift_;
    std::unique_ptr<char[], Free> memory_;
};

// Numbers of one size, finite as whatever they are stored.
inline void fill_tame(char* to, RowKind kind, std::int64_t count, tb::Random& random) {
    const int exponent = kind == RowKind::f16 ? 0 : static_cast<int>(random.below(60)) - 30;
    for (std::int64_t i = 0; i < count; ++i) {
        const float whole = static_cast<float>(static_cast<int>(random.below(2001)) - 1000);
        set_number(to, kind, i, std::ldexp(whole, exponent));
    }
}

// All sorts of bits, mostly of magnitudes below 2, so that rows without Inf and NaN are among them.
inline void fill_wild(char* to, RowKind kind, std::int64_t count, tb::Random& random) {
    // At the limits of what is finite as bf16, of what mx8 tells apart, of what is normal.
    constexpr std::uint32_t kSpecial[] = {0x7f800000, 0x7fc00000, 0x7f7fffff, 0x7f7f8000, 0x7f7f7fff,
                                          0x7f700000, 0x7f700001, 0x7f6fffff, 0x00800000, 0x00000001};
    for (std::int64_t i = 0; i < count; ++i) {
        auto bits = static_cast<std::uint32_t>(random.next());
        if (random.below(400) == 0) {
            bits = kSpecial[random.below(std::size(kSpecial))] | (bits & 0x80000000u);
        } else if (random.below(50) != 0) {
            bits &= 0xbfffffffu;
        }
        set_number(to, kind, i, tb::float_of(bits));
    }
}

}  // namespace rows
