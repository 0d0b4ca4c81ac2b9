// Numbers as rows store them: conversions that give the same bits on host and device, and on every GPU.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>

namespace tb {

#define TB_BOTH __host__ __device__ __forceinline__

TB_BOTH std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

TB_BOTH float float_of(std::uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// The bits of |x|: they are ordered as the numbers are, with Inf and then NaN above all others.
TB_BOTH std::uint32_t magnitude(float x) { return bits_of(x) & 0x7fffffffu; }

TB_BOTH float widened(float x) { return x; }
TB_BOTH float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
TB_BOTH float widened(__half x) { return __half2float(x); }

TB_BOTH void narrow(float x, float& to) { to = x; }
TB_BOTH void narrow(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
TB_BOTH void narrow(float x, __half& to) { to = __float2half_rn(x); }

// The least magnitude that is not finite once it is stored. Only bf16 is narrower than what comes in:
// half a unit above its largest number rounds to infinity.
template <class To>
constexpr std::uint32_t kNotFinite = 0x7f800000u;
template <>
constexpr std::uint32_t kNotFinite<__nv_bfloat16> = 0x7f7f8000u;

// ---------------------------------------------------------------- mx8 (see csrc/kernels/mx8.h)

constexpr std::uint32_t kMxLargest = 0x7f700000u;  // 1.875 * 2^127; what is above counts as that
constexpr std::uint32_t kMxNaN = 255;              // the scale of a block that is not finite

// The scale byte of a block whose largest magnitude has these bits.
TB_BOTH std::uint32_t mx_scale(std::uint32_t largest) {
    if (largest >= 0x7f800000u) return kMxNaN;
    const std::uint32_t kept = largest < kMxLargest ? largest : kMxLargest;
    const std::uint32_t above = (kept + 0x1fffffu) >> 23;  // one more where the mantissa is above 1.75
    return above > 25 ? above - 8 : 17;
}

// What numbers are multiplied with before they are rounded: 2^-e. Anything for a block that is not finite.
TB_BOTH float mx_factor(std::uint32_t scale) { return float_of((254 - scale) << 23); }

TB_BOTH float mx_kept(float x) {
    const std::uint32_t bits = bits_of(x), size = bits & 0x7fffffffu;
    return float_of((bits & 0x80000000u) | (size < kMxLargest ? size : kMxLargest));
}

// E4M3, to nearest, ties to even, |x| <= 448 (else some byte); by integers.
TB_BOTH std::uint32_t e4m3_portable(float x) {
    const std::uint32_t bits = bits_of(x), size = bits & 0x7fffffffu;
    const std::uint32_t normal = ((size + 0x7ffffu + ((size >> 20) & 1u)) >> 20) - (120u << 3);
    // Below 2^-6 the numbers are 2^-9 apart, as floats are from 2^14 on.
    const std::uint32_t tiny = bits_of(float_of(size) + 0x1p14f) - bits_of(0x1p14f);
    return ((size < 0x3c800000u ? tiny : normal) & 0x7fu) | ((bits >> 24) & 0x80u);
}

// Two numbers, the first in the low byte. Hardware does it from sm_89 on.
TB_BOTH std::uint32_t e4m3_pair(float x, float y) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    return __nv_cvt_float2_to_fp8x2(make_float2(x, y), __NV_SATFINITE, __NV_E4M3);
#else
    return e4m3_portable(x) | (e4m3_portable(y) << 8);
#endif
}

// The bits, as bf16, of a code in a block of this scale: exactly the number.
TB_BOTH std::uint16_t mx_decoded(std::uint32_t code, std::uint32_t scale) {
    // The code's bits as those of a float are the number times 2^-120; the scale's are 2^e, or Inf,
    // which leaves nothing finite of its block.
    const float number = float_of(((code & 0x80u) << 24) | ((code & 0x7fu) << 20)) * 0x1p120f;
    return static_cast<std::uint16_t>(bits_of(number * float_of(scale << 23)) >> 16);
}

}  // namespace tb
