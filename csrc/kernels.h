// The CPU kernels, as one table of function pointers for every instruction set they are built for.
//
// The sources kernels/*_cpu.cpp are compiled once per instruction set, each time into a namespace of its
// own (TB_ISA); isa.cpp picks a table at run time. Shapes and names are those of trustbench/ops:
// N tokens, d = d_in, F = d_sae, k active features; arrays are row-major and contiguous.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace tb {

enum class Dtype : int { f32 = 0, bf16 = 1 };

// A matrix stored as float32 or bfloat16.
struct Matrix {
    const void* data;
    Dtype dtype;
};

// The encoder's pre-activations: pre = x W^T + b. `bf16_matmul` rounds the operands to bfloat16;
// sums are float32 either way.
struct Encoder {
    Matrix x;         // [N, d]
    Matrix W;         // [F, d]
    const float* b;   // [F]
    std::int64_t N, d, F;
    bool bf16_matmul;
    int threads;
};

// A sparse code: k entries a row, or CSR when row_offsets is given.
struct Code {
    const std::int32_t* indices;
    const std::int64_t* row_offsets;  // [N + 1] or null
    std::int64_t N, k;

    std::int64_t begin(std::int64_t row) const { return row_offsets ? row_offsets[row] : row * k; }
};

// A code grouped by feature (see transpose_code).
struct FeatureCode {
    const std::int64_t* offsets;     // [F + 1]
    const std::int32_t* rows;        // [nnz]
    const std::int32_t* positions;   // [nnz]
};

struct CsrResult {
    std::int64_t nnz = 0;
    std::unique_ptr<std::int64_t[]> row_offsets;  // [N + 1]
    std::unique_ptr<std::int32_t[]> indices;      // [nnz]
    std::unique_ptr<float[]> values;              // [nnz]
};

struct Adam {
    std::int64_t step;  // 1 for the first update
    double lr, beta1, beta2, eps;
    bool unit_norm;  // project the gradient along each row, renormalise the row afterwards
};

// One parameter with its two Adam moments.
struct Moments {
    float *param, *m, *v;
};

struct SparseStep {
    Moments enc, dec, bias;   // [F, d_in], [F, d_out], [F]
    const float* values;      // [nnz] code
    const float* push;        // [nnz] d penalty / d value of every entry, in l1's place; null: none
    FeatureCode code;
    const float* x;           // [rows, d_in]
    const float* grad;        // [rows, d_out], dL/dx_hat
    std::int64_t F, d_in, d_out;
    float l1;                 // weight of sum(values) in the loss (times ||W_dec,i|| where asked)
    bool decoder_norm;        // the penalty is of value times ||W_dec,i||
    float clip_scale;         // every gradient is multiplied by it before Adam
    int threads;
};

// How rows of activations are stored. mx8 is MXFP8 (OCP Microscaling Formats 1.0, 2023): E4M3 numbers
// with one power of two (E8M0) for every 32 of them; here a block's largest magnitude is never cut off.
enum class RowKind : int { f32 = 0, bf16 = 1, f16 = 2, mx8 = 3 };

constexpr std::int64_t kMxBlock = 32;

// Bytes of a stored row. mx8: d numbers, the scales of their blocks, zeros up to a multiple of 16.
constexpr std::int64_t row_bytes(RowKind kind, std::int64_t d) {
    if (kind == RowKind::mx8) return (d + (d + kMxBlock - 1) / kMxBlock + 15) / 16 * 16;
    return d * (kind == RowKind::f32 ? 4 : 2);
}

// Rows are handed out as they are stored; mx8 as bf16, which holds all its numbers exactly.
constexpr RowKind out_kind(RowKind kind) { return kind == RowKind::mx8 ? RowKind::bf16 : kind; }

// n rows of d numbers into slots of a pool. Kinds are equal, or from f32 or bf16 to f32, bf16 or mx8.
struct PutRows {
    const void* from;
    RowKind from_kind;
    void* pool;
    RowKind pool_kind;
    const std::int64_t* slots;  // [n]
    std::int64_t n, d;
    int threads;
};

// out[i] = pool[slots[i]], as rows are handed out.
struct TakeRows {
    const void* pool;
    RowKind pool_kind;
    const std::int64_t* slots;  // [n]
    std::int64_t n, d;
    void* out;
    int threads;
};

// Rows that hold Inf or NaN, as stored: how many, and the first of them (-1 for none).
struct BadRows {
    std::int64_t count, first;
};

struct AttentionCapture;  // see attention.h

struct Kernels {
#define KERNEL(result, name, arguments) result(*name) arguments;
#include "kernels/list.h"
#undef KERNEL
};

}  // namespace tb
