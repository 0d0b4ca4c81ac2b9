// The numbers of csrc/cuda/cuda_numbers.cuh, for Python to compare with torch's.
#include "cuda/cuda_numbers.cuh"

#include "stored_rows.h"

using tb::RowKind;

extern "C" {

// |x| <= 448.
void to_e4m3(const float* x, std::uint8_t* codes, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(tb::e4m3_portable(x[i]));
}

// Also whether the kernels call each of them finite.
void to_bf16(const float* x, __nv_bfloat16* narrow, bool* finite, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) {
        tb::narrow(x[i], narrow[i]);
        finite[i] = tb::magnitude(x[i]) < tb::kNotFinite<__nv_bfloat16>;
    }
}

// Rows of d numbers, as mx8. `finite`: of each row, whether its numbers are.
void to_mx8(const float* x, char* stored, bool* finite, std::int64_t n, std::int64_t d) {
    for (std::int64_t i = 0; i < n; ++i) {
        const char* from = reinterpret_cast<const char*>(x + i * d);
        char* to = stored + i * tb::row_bytes(RowKind::mx8, d);
        finite[i] = rows::store(from, RowKind::f32, to, RowKind::mx8, d);
    }
}

void from_mx8(const char* stored, std::uint16_t* numbers, std::int64_t n, std::int64_t d) {
    for (std::int64_t i = 0; i < n; ++i) {
        const char* from = stored + i * tb::row_bytes(RowKind::mx8, d);
        rows::hand_out(from, RowKind::mx8, reinterpret_cast<char*>(numbers + i * d), d);
    }
}

}  // extern "C"
