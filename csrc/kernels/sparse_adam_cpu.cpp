// The fused backward and optimiser step, feature-stationary: one pass over the features, and the
// gradient of a feature's two rows lives in cache from its first token to its Adam update.
//
// For feature i with entries (row n, value a), g = dL/dx_hat:
//   da    = <g[n], W_dec,i> + l1 [||W_dec,i||]          dpre = da where a > 0, else 0
//   dW_dec,i = sum a g[n] + l1 (sum a) W_dec,i / ||W_dec,i||     (second term: decoder-norm form)
// With a penalty that is not linear every entry has its own push = d penalty / da in the place of l1
// [||W_dec,i||], and the second term is (sum push a) W_dec,i / ||W_dec,i||^2.
//   dW_enc,i = sum dpre x[n]        db_i = sum dpre
// then the projection, Adam, the renormalisation. A feature without entries has gradient zero, and
// its moments decay as torch.optim.Adam has it.
#include "kernels/adam.h"

#include <algorithm>

#include "kernels/table.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {
namespace {

// The number of parts that db_dec is summed in: fixed, so that the sum does not depend on threads.
constexpr std::int64_t kParts = 64;

struct Gradient {
    std::unique_ptr<float[]> enc, dec;  // [d_in], [d_out]
    float bias = 0;

    explicit Gradient(const SparseStep& s) : enc(new float[s.d_in]), dec(new float[s.d_out]) {}
};

// Fills the gradient of feature i; false when the feature has no entries (gradient zero). kPlain: one width and no
// pushes, compiled apart: with the rest it would execute 3 % more instructions.
template <bool kPlain>
bool feature_gradient(const SparseStep& s, std::int64_t i, bool unit_norm, Gradient& g) {
    const std::int64_t begin = s.code.offsets[i], end = s.code.offsets[i + 1];
    if (begin == end) return false;
    const std::int64_t d_in = s.d_in, d_out = kPlain ? d_in : s.d_out;
    const float* pushes = kPlain ? nullptr : s.push;
    const float* W_dec = s.dec.param + i * d_out;
    const bool weighted = s.decoder_norm && (pushes || s.l1 != 0);
    const float norm = weighted ? std::sqrt(dot(W_dec, W_dec, d_out)) : 1.0f;
    std::fill_n(g.enc.get(), d_in, 0.0f);
    std::fill_n(g.dec.get(), d_out, 0.0f);
    g.bias = 0;
    float mass = 0;
    for (std::int64_t q = begin; q < end; ++q) {
        if (q + 1 < end) {
            prefetch_row(s.grad + s.code.rows[q + 1] * d_out, d_out);
            prefetch_row(s.x + s.code.rows[q + 1] * d_in, d_in);
        }
        const float value = s.values[s.code.positions[q]];
        if (!(value > 0)) continue;
        const float* grad = s.grad + s.code.rows[q] * d_out;
        const float push = pushes ? pushes[s.code.positions[q]] : 0.0f;
        const float da = dot(grad, W_dec, d_out);
        const float dpre = pushes ? da + push : da + s.l1 * norm;
        axpy(value, grad, g.dec.get(), d_out);
        axpy(dpre, s.x + s.code.rows[q] * d_in, g.enc.get(), d_in);
        g.bias += dpre;
        mass += pushes ? push * value : value;
    }
    if (weighted && norm > 0)
        axpy(pushes ? mass / (norm * norm) : s.l1 * mass / norm, W_dec, g.dec.get(), d_out);
    if (unit_norm) project_row(g.dec.get(), W_dec, d_out);
    return true;
}

// Runs body(i, has_gradient, gradient, db_dec part, part) over all features, and sums db_dec.
template <class Body>
void for_features(const SparseStep& s, bool unit_norm, float* db_dec, Body& body) {
    const std::int64_t parts = std::min(kParts, s.F);
    const std::int64_t d = s.d_in;
    const bool plain = s.d_in == s.d_out && !s.push;
    const std::unique_ptr<float[]> partial(new float[parts * d]());
    auto run = [&](std::int64_t part, int) {
        Gradient gradient(s);
        for (std::int64_t i = s.F * part / parts; i < s.F * (part + 1) / parts; ++i) {
            const bool any = plain ? feature_gradient<true>(s, i, unit_norm, gradient)
                                   : feature_gradient<false>(s, i, unit_norm, gradient);
            if (any) axpy(-gradient.bias, s.enc.param + i * d, partial.get() + part * d, d);
            body(i, any, gradient, part);
        }
    };
    parallel_for(parts, s.threads, run);
    std::fill_n(db_dec, d, 0.0f);
    for (std::int64_t part = 0; part < parts; ++part) axpy(1.0f, partial.get() + part * d, db_dec, d);
}

}  // namespace

void sparse_adam(const SparseStep& s, const Adam& options, float* db_dec) {
    const AdamFactors f(options);
    auto update = [&](std::int64_t i, bool any, Gradient& g, std::int64_t) {
        const std::int64_t at = i * s.d_in, to = i * s.d_out;
        const float *enc = any ? g.enc.get() : nullptr, *dec = any ? g.dec.get() : nullptr;  // projected already
        adam_row<false>(s.enc.param + at, s.enc.m + at, s.enc.v + at, enc, 0.0f, s.clip_scale, s.d_in, f);
        const float squared =
            adam_row<false>(s.dec.param + to, s.dec.m + to, s.dec.v + to, dec, 0.0f, s.clip_scale, s.d_out, f);
        if (options.unit_norm) normalize_row(s.dec.param + to, squared, s.d_out);
        s.bias.param[i] = adam_element(s.bias.param[i], any ? s.clip_scale * g.bias : 0.0f, s.bias.m[i], s.bias.v[i], f);
    };
    for_features(s, options.unit_norm, db_dec, update);
}

double sparse_grad_norm(const SparseStep& s, bool unit_norm, float* db_dec) {
    double partial[kParts] = {};
    auto accumulate = [&](std::int64_t, bool any, Gradient& g, std::int64_t part) {
        if (!any) return;
        partial[part] += static_cast<double>(dot(g.enc.get(), g.enc.get(), s.d_in)) +
                         static_cast<double>(dot(g.dec.get(), g.dec.get(), s.d_out)) +
                         static_cast<double>(g.bias) * g.bias;
    };
    for_features(s, unit_norm, db_dec, accumulate);
    double total = 0;
    for (const double part : partial) total += part;
    return total;
}

}  // namespace TB_ISA
}  // namespace tb
