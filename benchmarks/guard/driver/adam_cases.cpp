#include "cases.h"
#include "codes.h"

namespace guard {
namespace {

// A parameter and its moments.
struct Parameter {
    Array<float> param, m, v;

    Parameter(std::int64_t n, std::uint64_t seed)
        : param(floats(n, seed)), m(floats(n, seed + 1)), v(floats(n, seed + 2, 0, 1)) {}
    tb::Moments moments() const { return {param.data(), m.data(), v.data()}; }
};

constexpr tb::Adam adam(bool unit_norm) { return {10, 1e-3, 0.9, 0.999, 1e-8, unit_norm}; }

}  // namespace

void optimizers(Cases& cases, const tb::Kernels& kernels) {
    const MadeCode made;
    const Parameter enc(kFeatures * kWidth, 1), dec(kFeatures * kWidth, 4), bias(kFeatures, 7);
    const Array<float> x = floats(kTokens * kWidth, 10), grad = floats(kTokens * kWidth, 11);
    const Array<float> dense = floats(kFeatures * kWidth, 12), db_dec(kWidth);
    auto step = [=](float l1, bool decoder_norm, const float* push = nullptr) {
        return tb::SparseStep{enc.moments(), dec.moments(), bias.moments(), made.values.data(), push,
                              made.by_feature(), x.data(), grad.data(), kFeatures, kWidth, kWidth, l1,
                              decoder_norm, 0.5f, 1};
    };
    for (const bool unit_norm : {false, true}) {
        const std::string name = unit_norm ? " with unit norm" : "";
        cases.push_back({"adam" + name, [=] {
            kernels.adam(dec.moments(), dense.data(), kFeatures, kWidth, adam(unit_norm), 1);
        }});
        cases.push_back({"sparse_adam" + name, [=] {
            kernels.sparse_adam(step(0, false), adam(unit_norm), db_dec.data());
        }});
        cases.push_back({"sparse_grad_norm" + name, [=] {
            kernels.sparse_grad_norm(step(0, false), unit_norm, db_dec.data());
        }});
    }
    cases.push_back({"sparse_adam with L1 times the decoder's norms", [=] {
        kernels.sparse_adam(step(0.1f, true), adam(false), db_dec.data());
    }});
    cases.push_back({"sparse_adam with a push an entry", [=] {
        kernels.sparse_adam(step(0, false, made.values.data()), adam(true), db_dec.data());
    }});
}

}  // namespace guard
