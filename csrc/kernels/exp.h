// Exponentials and what a softmax needs beside them, of vectors; see vec.h.
#pragma once
#include "kernels/vec.h"

namespace tb {
namespace TB_ISA {

typedef std::int32_t VecI32 __attribute__((vector_size(4 * kLanes)));

// The larger one; b where either is NaN, which is what the x86 instruction does.
inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

// Reductions over the lanes, in registers.
#if defined(__AVX512F__)
inline float total(Vec v) { return _mm512_reduce_add_ps((__m512)v); }
inline float largest(Vec v) { return _mm512_reduce_max_ps((__m512)v); }
#elif defined(__AVX2__)
inline float total(Vec v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vec v) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#else
inline float total(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float largest(Vec v) {
    const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
    return a > b ? a : b;
}
#endif

// 0, 1, 2, ...
inline Vec lane_numbers() {
    Vec v{};
    for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(i);
    return v;
}

constexpr float kExp2Floor = -126;

// 2^x for x in [kExp2Floor, 127], within 1.1 ulp; 0 for x < -125, so that no denormal ever comes up; NaN
// stays NaN. A whole number n gives 2^n exactly.
//
// x = n + f with |f| <= 1/2 is exact. The polynomial is a minimax fit of the relative error (3e-9) with
// its constant term held at 1 and the others rounded to float one after the other.
inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
    const __m512 n = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vec f = x - (Vec)n;
#else
    const Vec magic = broadcast(0x1.8p23f);  // x + magic: rounded to a whole number, in the low bits
    const Vec shifted = x + magic;
    const Vec f = x - (shifted - magic);
#endif
    Vec p = broadcast(0x1.416b6p-13f) * f + 0x1.5f083p-10f;
    p = p * f + 0x1.3b2dep-7f;
    p = p * f + 0x1.c6af7cp-5f;
    p = p * f + 0x1.ebfbdcp-3f;
    p = p * f + 0x1.62e43p-1f;
    p = p * f + 1.0f;
#if defined(__AVX512F__)
    const __mmask16 kept = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-125), _CMP_NLT_UQ);
    return (Vec)_mm512_maskz_scalef_ps(kept, (__m512)p, n);
#else
    VecU32 bits, power;
    std::memcpy(&bits, &p, sizeof bits);
    std::memcpy(&power, &shifted, sizeof power);
    bits += power << 23;
    Vec result;
    std::memcpy(&result, &bits, sizeof result);
    result = x < broadcast(-125) ? Vec{} : result;
    return x == x ? result : x;
#endif
}

// Within 2 ulp: an odd polynomial near 0, where the exponentials of the other form would cancel.
inline Vec tanh(Vec x) {
    const Vec z = x * x;
    Vec p = broadcast(-0.005692296f) * z + 0.020628167f;
    p = p * z - 0.053736515f;
    p = p * z + 0.13331406f;
    p = p * z - 0.3333328f;
    const Vec near = x + x * (z * p);

    const VecU32 sign_bit = VecU32{} + 0x80000000u;
    VecU32 bits;
    std::memcpy(&bits, &x, sizeof bits);
    const VecU32 sign = bits & sign_bit;
    bits &= ~sign_bit;
    Vec size;
    std::memcpy(&size, &bits, sizeof size);
    const Vec e = exp2(larger(broadcast(kExp2Floor), size * -0x1.715476p+1f));  // e^(-2 |x|)
    const Vec ratio = (1.0f - e) / (1.0f + e);
    std::memcpy(&bits, &ratio, sizeof bits);
    bits |= sign;
    Vec far;
    std::memcpy(&far, &bits, sizeof far);
    return size < broadcast(0.625f) ? near : far;
}

}  // namespace TB_ISA
}  // namespace tb
