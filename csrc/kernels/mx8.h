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

#include "kernels/vec.h"

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

constexpr std::int16_t kInfinity = 0x7f80;   // as the bits of a bfloat16
constexpr std::int16_t kMxLargest = 0x7f70;  // 1.875 * 2^127
constexpr int kMxSmallestScale = -110 + 127;
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

// As bfloat16, what is cut off leaving its mark in the last bit: rounded once more, to fewer bits, the
// number comes out as if it had been rounded once (rounding to odd; Boldo and Melquiond 2008).
inline VecU16 to_odd(const float* from) {
    const VecU32 bits = load_as<VecU32>(from);
    return __builtin_convertvector((bits | ((bits & 0xffffu) + 0xffffu)) >> 16, VecU16);
}

// The scales of blocks as they are stored, kLanes at a time. Returns whether all numbers are finite.
inline bool block_scales(const bf16* from, int blocks, std::uint8_t* scales) {
    VecI32 bad{};
    for (int first = 0; first < blocks; first += kLanes) {
        VecI16 largest[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            const bf16* block = from + std::min(first + i, blocks - 1) * kMxBlock;
            largest[i] = load_as<VecI16>(block) & 0x7fff;
            for (int j = 1; j < kMxParts; ++j)
                largest[i] = max(largest[i], load_as<VecI16>(block + 2 * kLanes * j) & 0x7fff);
        }
        // Neighbouring lanes are merged until each one is a block.
        for (int n = kLanes / 2; n > 0; n /= 2) {
            for (int i = 0; i < n; ++i) {
                const VecU32 a = (VecU32)largest[2 * i], b = (VecU32)largest[2 * i + 1];
                largest[i] = max((VecI16)every_second<0>(a, b), (VecI16)every_second<1>(a, b));
            }
        }
        const VecI32 pairs = (VecI32)largest[0], m = max(pairs & 0xffff, pairs >> 16);
        const VecI32 infinite = m >= kInfinity;
        bad |= infinite;
        // The addition reaches the exponent if the mantissa is above 1.75.
        const VecI32 above = (min(m, VecI32{} + kMxLargest) + 0x1f) >> 7;
        const VecI32 scale = max(above - 8, VecI32{} + kMxSmallestScale) | (infinite & kMxNaN);
        for (int i = 0; i < kLanes; ++i) scales[first + i] = static_cast<std::uint8_t>(scale[i]);
    }
    return !any((VecU32)bad);
}

// From 2^-6 * 2^e on, a code is the upper part of a bfloat16's bits, rounded. Returns whether all numbers
// but 0 are so large, as they are in most blocks.
inline bool encode_normal(const bf16* from, int scale, MxCodes& codes) {
    const VecI16 offset = VecI16{} + static_cast<std::int16_t>((7 - scale) * (1 << 7));
    VecI16 below{};
    for (int i = 0; i < kMxParts; ++i) {
        const VecI16 bits = load_as<VecI16>(from + 2 * kLanes * i);
        const VecI16 kept = min(bits & 0x7fff, VecI16{} + kMxLargest), x = kept + offset;
        below |= (x < 128) & (kept != 0);
        const VecI16 code = (max(x, VecI16{}) + 7 + (x >> 4 & 1)) >> 4;
        codes.part[i] = __builtin_convertvector(code | (bits >> 8 & 0x80), VecU8);
    }
    return !any((VecU32)below);
}

// Any block. From 2^-6 * 2^e on, codes grow as a bfloat16's bits do. Below they grow as the numbers do, in every
// binade half as fast as in the next: lines that meet where binades do, and of which the highest one
// counts. They are in 256ths of a code; 2^-10 * 2^e, where they begin, is rounded to 0.
inline MxCodes encode_block(const bf16* from, int scale) {
    MxCodes codes;
    if (__builtin_expect(encode_normal(from, scale, codes), 1)) return codes;
    const VecI16 offset = VecI16{} + static_cast<std::int16_t>((11 - scale) * (1 << 7));
    for (int i = 0; i < kMxParts; ++i) {
        const VecI16 bits = load_as<VecI16>(from + 2 * kLanes * i);
        const VecI16 kept = min(bits & 0x7fff, VecI16{} + kMxLargest);
        const VecI16 x = max(kept + offset, VecI16{});
        const VecI16 low = max(max(x, (x - 128) * 2), max((x - 256) * 4, (x - 384) * 8));
        const VecI16 line = max(low, (x - 512) * 16);
        const VecI16 code = (line + 127 + (line >> 8 & 1)) >> 8;
        codes.part[i] = __builtin_convertvector(code | (bits >> 8 & 0x80), VecU8);
    }
    return codes;
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
