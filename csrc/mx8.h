// MXFP8 (OCP Microscaling Formats 1.0, 2023): blocks of 32 numbers as 32 codes and a scale, and back.
//
// With m the largest magnitude of a block its scale is 2^e, e = floor(log2 m) - 8, plus 1 where m's
// mantissa is above 1.75, so that m <= 448 * 2^e; and at least -110. It is stored as e + 127 (E8M0).
// Codes are x / 2^e, rounded to nearest even, as E4M3: a sign, 4 bits of exponent with bias 7, 3 of
// mantissa; below 2^-6 a number of 2^-9s. Magnitudes above 1.875 * 2^127 count as that: they would be
// rounded to infinity. So code * 2^e is 0 or a normal bfloat16, exactly. A block with Inf or NaN has
// the scale 255, and only NaNs come out of it.
#pragma once
#include <algorithm>
#include <utility>

#include "vec.h"

namespace tb {
namespace TB_ISA {

typedef std::int32_t VecI32 __attribute__((vector_size(4 * kLanes)));
typedef std::int16_t VecI16 __attribute__((vector_size(4 * kLanes)));
typedef std::uint8_t VecU8 __attribute__((vector_size(2 * kLanes)));

// A block in vectors: 32 codes, and 32 numbers as bfloat16.
constexpr int kMxParts = static_cast<int>(kMxBlock) / (2 * kLanes);
struct MxCodes {
    VecU8 part[kMxParts];
};
struct MxNumbers {
    VecI16 part[kMxParts];
};

constexpr std::int32_t kInfinity = 0x7f800000;   // as the bits of a float
constexpr std::int32_t kMxLargest = 0x7f700000;  // 1.875 * 2^127
constexpr std::int32_t kMxSmallestScale = -110 + 127;
constexpr int kMxNaN = 255;

template <class V>
inline V load_as(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
inline V max(V a, V b) { return a > b ? a : b; }
template <class V>
inline V min(V a, V b) { return a < b ? a : b; }

inline bool any(VecU32 found) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)found, (__m512i)found) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)found, (__m256i)found);
#else
    std::uint32_t all = 0;
    for (int i = 0; i < kLanes; ++i) all |= found[i];
    return all != 0;
#endif
}

// Every second lane of a and b, from lane kFirst on.
template <int kFirst, int... kLane>
inline VecU32 every_second(VecU32 a, VecU32 b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (2 * kLane + kFirst)...);
#else
    return __builtin_shuffle(a, b, VecU32{(2 * kLane + kFirst)...});
#endif
}
template <int kFirst>
inline VecU32 every_second(VecU32 a, VecU32 b) {
    return every_second<kFirst>(a, b, std::make_integer_sequence<int, kLanes>{});
}

// ------------------------------------------------------------------ scales

inline VecI32 magnitudes(const float* p) { return (VecI32)(load_as<VecU32>(p) & 0x7fffffffu); }
inline VecI16 magnitudes(const bf16* p) { return load_as<VecI16>(p) & 0x7fff; }

// As floats; of two bfloat16 in a lane the larger one.
inline VecI32 widened(VecI32 magnitude) { return magnitude; }
inline VecI32 widened(VecI16 magnitude) {
    const VecU32 words = (VecU32)magnitude;
    return max((VecI32)(words << 16), (VecI32)(words & 0xffff0000u));
}

// The scales of blocks as they are stored, kLanes at a time. Returns whether all numbers are finite.
template <class T>
inline bool block_scales(const T* from, int blocks, std::uint8_t* scales) {
    using V = decltype(magnitudes(from));
    constexpr int kStep = sizeof(V) / sizeof(T);
    VecI32 bad{};
    for (int first = 0; first < blocks; first += kLanes) {
        V largest[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            const T* block = from + std::min(first + i, blocks - 1) * kMxBlock;
            largest[i] = magnitudes(block);
            for (int j = kStep; j < kMxBlock; j += kStep) largest[i] = max(largest[i], magnitudes(block + j));
        }
        // Neighbouring lanes are merged until each one is a block.
        for (int n = kLanes / 2; n > 0; n /= 2) {
            for (int i = 0; i < n; ++i) {
                const VecU32 a = (VecU32)largest[2 * i], b = (VecU32)largest[2 * i + 1];
                largest[i] = max((V)every_second<0>(a, b), (V)every_second<1>(a, b));
            }
        }
        const VecI32 m = widened(largest[0]), infinite = m >= kInfinity;
        bad |= infinite;
        // The addition reaches the exponent if the mantissa is above 1.75.
        const VecI32 above = (min(m, VecI32{} + kMxLargest) + 0x1fffff) >> 23;
        const VecI32 scale = max(above - 8, VecI32{} + kMxSmallestScale) | (infinite & kMxNaN);
        for (int i = 0; i < kLanes; ++i) scales[first + i] = static_cast<std::uint8_t>(scale[i]);
    }
    return !any((VecU32)bad);
}

// ------------------------------------------------------------------ codes

// 2 * kLanes numbers as the bits of floats: those of even and those of odd place.
struct Pairs {
    VecU32 even, odd;
};

inline Pairs load_pairs(const float* p) {
    const VecU32 a = load_as<VecU32>(p), b = load_as<VecU32>(p + kLanes);
    return {every_second<0>(a, b), every_second<1>(a, b)};
}
inline Pairs load_pairs(const bf16* p) {
    const VecU32 words = load_as<VecU32>(p);
    return {words << 16, words & 0xffff0000u};
}

template <class T>
inline MxCodes encode_block(const T* from, int scale) {
    const VecI32 e = VecI32{} + (scale << 23);
    const VecI32 least = e - (6 << 23), inverse = (254 << 23) - e, up = (147 << 23) + 0x18 - e;
    // To y = x / 2^e is added 2^20 times its power of two (that of 2^-6 where y is smaller), which
    // leaves y rounded in the last bits of the sum, as a number of that power's eighths. These and the
    // sum's exponent make the code when they are added at the right distance, but for a constant that
    // comes to 0 with the 0x18.
    auto encode = [&](VecI32 x) {
        const VecI32 power = (max(x, least) & kInfinity) + up;
        const VecI32 sum = (VecI32)((Vec)min(x, VecI32{} + kMxLargest) * (Vec)inverse + (Vec)power);
        return (VecU32)(sum + (sum >> 20));
    };
    MxCodes codes;
    for (int i = 0; i < kMxParts; ++i) {
        const Pairs x = load_pairs(from + 2 * kLanes * i);
        const VecU32 low = encode((VecI32)(x.even & 0x7fffffffu)), high = encode((VecI32)(x.odd & 0x7fffffffu));
        const VecU32 code = ((low & 0xffffu) | high << 16) & 0x7f007fu;
        const VecU32 sign = (x.even >> 24 & 0x80u) | (x.odd >> 8 & 0x800000u);
        codes.part[i] = __builtin_convertvector((VecI16)(code | sign), VecU8);
    }
    return codes;
}

// The same in half as many bits, for blocks without numbers below 2^-6 * 2^e other than 0; returns
// whether this is one.
inline bool encode_normal(const bf16* from, int scale, MxCodes& codes) {
    const VecI16 to_code = VecI16{} + static_cast<std::int16_t>((7 - scale) * (1 << 7));
    VecI16 below{};
    for (int i = 0; i < kMxParts; ++i) {
        const VecI16 bits = load_as<VecI16>(from + 2 * kLanes * i);
        const VecI16 x = min(bits & 0x7fff, VecI16{} + static_cast<std::int16_t>(kMxLargest >> 16));
        const VecI16 y = x + to_code;  // with 7 bits of mantissa, of which 3 stay
        below |= (y < 1 << 7) & (x != 0);
        const VecI16 code = (max(y, VecI16{}) + 7 + (x >> 4 & 1)) >> 4;
        codes.part[i] = __builtin_convertvector(code | (bits >> 8 & 0x80), VecU8);
    }
    return !any((VecU32)below);
}

inline MxNumbers decode_block(const std::uint8_t* codes, int scale) {
    MxNumbers numbers;
    if (scale == kMxNaN) {
        for (VecI16& part : numbers.part) part = VecI16{} + 0x7fc0;
        return numbers;
    }
    const VecI16 from_code = VecI16{} + static_cast<std::int16_t>((scale - 7) * (1 << 7));
    for (int i = 0; i < kMxParts; ++i) {
        const VecI16 code = __builtin_convertvector(load_as<VecU8>(codes + 2 * kLanes * i), VecI16);
        // From 8 on, a bfloat16's bits grow as the code does. Below, 4 to 7, 2 to 3 and 1 are binades of
        // their own, in which they grow 2, 4 and 8 times as fast: lines that meet where binades do.
        const VecI16 x = code & 0x7f, y = x - 4;
        const VecI16 line = min(min(x, y * 2), min(y * 4, y * 8 + 8));
        numbers.part[i] = (((line << 4) + from_code) & (x != 0)) | (code & 0x80) << 8;
    }
    return numbers;
}

}  // namespace TB_ISA
}  // namespace tb
