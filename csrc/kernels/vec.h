// Vectors of floats in the widest registers of the instruction set this file is compiled for.
//
// GCC/Clang vector extensions give one source for every set; intrinsics stand only where the
// extensions have no word for the instruction (mask of a comparison, square root).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"

#ifndef TB_ISA
#error "compile with -DTB_ISA=<name of the instruction set>"
#endif

namespace tb {
namespace TB_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t VecU32 __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t VecU16 __attribute__((vector_size(2 * kLanes)));

using bf16 = std::uint16_t;

inline Vec broadcast(float value) { return Vec{} + value; }

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline Vec load(const bf16* p) {
    VecU16 half;
    std::memcpy(&half, p, sizeof half);
    const VecU32 bits = __builtin_convertvector(half, VecU32) << 16;
    Vec v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline float to_float(float value) { return value; }
inline float to_float(bf16 value) {
    const std::uint32_t bits = static_cast<std::uint32_t>(value) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Round to nearest even, as torch does; a NaN stays a NaN.
inline bf16 to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<bf16>((bits >> 16) | 0x40u);
    return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float sum(Vec v) {
    // Pairwise, so that the order (and so the result) is the same however it is compiled.
    float lanes[kLanes];
    store(lanes, v);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    return lanes[0];
}

inline Vec sqrt(Vec v) {
#if defined(__AVX512F__)
    return (Vec)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (Vec)_mm256_sqrt_ps((__m256)v);
#else
    for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
    return v;
#endif
}

// Bit i is set where not (a[i] <= b[i]): larger, or either is NaN.
inline std::uint32_t mask_not_le(Vec a, Vec b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLE_UQ);
#elif defined(__AVX2__)
    return static_cast<std::uint32_t>(
        _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLE_UQ)));
#else
    std::uint32_t mask = 0;
    for (int i = 0; i < kLanes; ++i) mask |= static_cast<std::uint32_t>(!(a[i] <= b[i])) << i;
    return mask;
#endif
}

// y += a * x over d elements.
template <class T>
inline void axpy(float a, const T* x, float* y, std::int64_t d) {
    const Vec va = broadcast(a);
    std::int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(y + i, load(y + i) + va * load(x + i));
    for (; i < d; ++i) y[i] += a * to_float(x[i]);
}

// <x, y>, in four partial sums that hide the latency of the additions.
template <class T>
inline float dot(const float* x, const T* y, std::int64_t d) {
    Vec s0{}, s1{}, s2{}, s3{};
    std::int64_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
        s0 += load(x + i) * load(y + i);
        s1 += load(x + i + kLanes) * load(y + i + kLanes);
        s2 += load(x + i + 2 * kLanes) * load(y + i + 2 * kLanes);
        s3 += load(x + i + 3 * kLanes) * load(y + i + 3 * kLanes);
    }
    for (; i + kLanes <= d; i += kLanes) s0 += load(x + i) * load(y + i);
    float tail = 0;
    for (; i < d; ++i) tail += x[i] * to_float(y[i]);
    return sum((s0 + s1) + (s2 + s3)) + tail;
}

template <class T>
inline void prefetch_row(const T* row, std::int64_t d) {
    const char* p = reinterpret_cast<const char*>(row);
    const char* end = reinterpret_cast<const char*>(row + d);
    for (; p < end; p += 64) __builtin_prefetch(p);
}

// What stands so many floats further on; it may be beyond the end.
inline void prefetch_ahead(const float* p, std::int64_t floats) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(p) + sizeof(float) * floats));
}

}  // namespace TB_ISA
}  // namespace tb
