// The arguments of attention_capture: attention, and statistics of every row of its probabilities.
#pragma once
#include "kernels.h"

namespace tb {

// Names and meaning are those of trustbench/ops/attention_capture.py. Query t stands at position
// t + S - T of the keys; query head h reads kv head h / (H / H_kv). Every result is written in full.
struct AttentionCapture {
    const void *q, *k, *v;         // [B, H, T, D], [B, H_kv, S, D] and [B, H_kv, S, D]
    Dtype dtype;                   // of q, k and v
    const float* sinks;            // [H] or null
    const std::int32_t* segments;  // [B, S] or null
    const float* key_bias;         // [B, H, S] or null
    const std::int32_t* targets;   // [B, T, M], each in [-1, S)

    float* out;                             // [B, H, T, D]
    float *lse, *entropy, *distance, *last;  // [B, H, T]
    float* top_p;                           // [B, H, T, top]
    std::int32_t* top_index;                // [B, H, T, top]
    float* mass;                            // [B, H, T, M]

    std::int64_t B, H, H_kv, T, S, D, M;
    bool causal;
    std::int64_t window;  // 0: none
    double scale, softcap;  // softcap 0: none
    std::int64_t top, last_n;
    int threads;
};

}  // namespace tb
