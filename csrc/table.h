// What every csrc/*_cpu.cpp defines for the instruction set it is compiled for.
#pragma once
#include "kernels.h"

namespace tb {
namespace TB_ISA {

void encode_topk(const Encoder&, std::int64_t k, float* values, std::int32_t* indices);
CsrResult encode_relu(const Encoder&, const float* threshold);
CsrResult encode_batchtopk(const Encoder&, std::int64_t total);
void decode(const float* values, const Code&, const Matrix& W, std::int64_t d, float* out, int threads);
void code_grad(const float* grad, const Code&, const Matrix& W, std::int64_t d, float* out, int threads);
void transpose_code(const Code&, std::int64_t F, std::int64_t* feature_offsets, std::int32_t* rows,
                    std::int32_t* positions, int threads);
void weight_grad(const float* coefs, const FeatureCode&, const Matrix& source, std::int64_t F,
                 std::int64_t d, float* dW, float* db, int threads);
void adam(const Moments&, const float* grad, std::int64_t rows, std::int64_t d, const Adam&, int threads);
void sparse_adam(const SparseStep&, const Adam&, float* db_dec);
double sparse_grad_norm(const SparseStep&, bool unit_norm, float* db_dec);
void attention_capture(const AttentionCapture&);
BadRows put_rows(const PutRows&);
void take_rows(const TakeRows&);
void gather_rows(const void* pool, const std::int64_t* slots, std::int64_t n, std::int64_t bytes, void* out,
                 int threads);
void scatter_rows(const void* from, const std::int64_t* slots, std::int64_t n, std::int64_t bytes, void* pool,
                  int threads);

}  // namespace TB_ISA
}  // namespace tb
