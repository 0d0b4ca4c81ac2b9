// Every CPU kernel: KERNEL(result, name, arguments). Whoever includes this file says what KERNEL makes of it.
// A new kernel stands here, where it is defined (NAME_cpu.cpp) and where Python calls it (bindings.cpp).
KERNEL(void, encode_topk, (const Encoder&, std::int64_t k, float* values, std::int32_t* indices))
KERNEL(CsrResult, encode_relu, (const Encoder&, const float* threshold))
KERNEL(CsrResult, encode_batchtopk, (const Encoder&, std::int64_t total))
KERNEL(void, decode, (const float* values, const Code&, const Matrix& W, std::int64_t d, float* out, int threads))
KERNEL(void, code_grad, (const float* grad, const Code&, const Matrix& W, std::int64_t d, float* out, int threads))
KERNEL(void, transpose_code, (const Code&, std::int64_t F, std::int64_t* feature_offsets, std::int32_t* rows,
                              std::int32_t* positions, int threads))
KERNEL(void, weight_grad, (const float* coefs, const FeatureCode&, const Matrix& source, std::int64_t F,
                           std::int64_t d, float* dW, float* db, int threads))
KERNEL(void, adam, (const Moments&, const float* grad, std::int64_t rows, std::int64_t d, const Adam&, int threads))
// Both return, in db_dec [d], -(sum_i db_enc_i W_enc_i), with the weights before the update.
KERNEL(void, sparse_adam, (const SparseStep&, const Adam&, float* db_dec))
KERNEL(double, sparse_grad_norm, (const SparseStep&, bool unit_norm, float* db_dec))
KERNEL(void, attention_capture, (const AttentionCapture&))
KERNEL(BadRows, put_rows, (const PutRows&))
KERNEL(void, take_rows, (const TakeRows&))
// Rows of `bytes`, as they are: out[i] = pool[slots[i]] and pool[slots[i]] = from[i].
KERNEL(void, gather_rows, (const void* pool, const std::int64_t* slots, std::int64_t n, std::int64_t bytes,
                           void* out, int threads))
KERNEL(void, scatter_rows, (const void* from, const std::int64_t* slots, std::int64_t n, std::int64_t bytes,
                            void* pool, int threads))
