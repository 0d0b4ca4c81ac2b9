// Adam (Kingma & Ba 2015, algorithm 1) in the arithmetic of torch.optim.Adam, a row at a time.
#pragma once
#include "kernels/vec.h"

namespace tb {
namespace TB_ISA {

struct AdamFactors {
    float step_size, inverse_root, one_minus_beta1, beta2, one_minus_beta2, eps;

    explicit AdamFactors(const Adam& a)
        : step_size(static_cast<float>(a.lr / (1 - std::pow(a.beta1, static_cast<double>(a.step))))),
          inverse_root(static_cast<float>(1 / std::sqrt(1 - std::pow(a.beta2, static_cast<double>(a.step))))),
          one_minus_beta1(static_cast<float>(1 - a.beta1)),
          beta2(static_cast<float>(a.beta2)),
          one_minus_beta2(static_cast<float>(1 - a.beta2)),
          eps(static_cast<float>(a.eps)) {}
};

inline float sqrt_of(float value) { return std::sqrt(value); }
inline Vec sqrt_of(Vec value) { return sqrt(value); }

template <class V>
inline V adam_element(V p, V g, V& m, V& v, const AdamFactors& f) {
    m += f.one_minus_beta1 * (g - m);
    v = f.beta2 * v + f.one_minus_beta2 * (g * g);
    return p - f.step_size * m / (sqrt_of(v) * f.inverse_root + f.eps);
}

// Updates d elements with gradient `scale * grad`, or kProjected: `scale * (grad - along * param)` (grad
// null: a gradient of zero); returns the squared norm of the new parameters. Rows are updated in the order of
// memory, and between two of them there is work without traffic: so the next ones come in beside this one.
template <bool kProjected>
float adam_row(float* param, float* m, float* v, const float* grad, float along, float scale, std::int64_t d,
               const AdamFactors& f) {
    auto gradient = [&](auto g, auto p) { return kProjected ? scale * (g - along * p) : scale * g; };
    Vec squares{};
    std::int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) {
        prefetch_ahead(param + i, d);
        prefetch_ahead(m + i, d);
        prefetch_ahead(v + i, d);
        if (grad) prefetch_ahead(grad + i, d);
        Vec p = load(param + i), vm = load(m + i), vv = load(v + i);
        p = adam_element(p, grad ? gradient(load(grad + i), p) : Vec{}, vm, vv, f);
        store(m + i, vm);
        store(v + i, vv);
        store(param + i, p);
        squares += p * p;
    }
    float tail = 0;
    for (; i < d; ++i) {
        param[i] = adam_element(param[i], grad ? gradient(grad[i], param[i]) : 0.0f, m[i], v[i], f);
        tail += param[i] * param[i];
    }
    return sum(squares) + tail;
}

inline void scale_row(float* row, float factor, std::int64_t d) {
    const Vec vf = broadcast(factor);
    std::int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(row + i, load(row + i) * vf);
    for (; i < d; ++i) row[i] *= factor;
}

// A row of zeros has no direction: it stays as it is.
inline void normalize_row(float* row, float squared_norm, std::int64_t d) {
    if (squared_norm > 0) scale_row(row, 1 / std::sqrt(squared_norm), d);
}

// grad -= <grad, row> row: for a unit row, the part of the gradient that would change its length.
inline void project_row(float* grad, const float* row, std::int64_t d) { axpy(-dot(grad, row, d), row, grad, d); }

}  // namespace TB_ISA
}  // namespace tb
