#include "cases.h"
#include "codes.h"

namespace guard {

void codes(Cases& cases, const tb::Kernels& kernels) {
    const MadeCode made;
    const Both W(kFeatures * kWidth, 1), source(kTokens * kWidth, 2);
    const Array<float> grad = floats(kTokens * kWidth, 3), out(kTokens * kWidth), entries(kTokens * kActive);
    const Array<float> dW(kFeatures * kWidth), db(kFeatures);
    for (const tb::Dtype dtype : {tb::Dtype::f32, tb::Dtype::bf16}) {
        const std::string name = dtype == tb::Dtype::f32 ? "fp32" : "bf16";
        cases.push_back({"decode " + name, [=] {
            kernels.decode(made.values.data(), made.code(), W.as(dtype), kWidth, out.data(), 1);
        }});
        cases.push_back({"code_grad " + name, [=] {
            kernels.code_grad(grad.data(), made.code(), W.as(dtype), kWidth, entries.data(), 1);
        }});
        cases.push_back({"weight_grad " + name, [=] {
            kernels.weight_grad(made.values.data(), made.by_feature(), source.as(dtype), kFeatures, kWidth, dW.data(),
                                db.data(), 1);
        }});
    }
    cases.push_back({"decode fp32 CSR", [=] {
        kernels.decode(made.values.data(), made.csr(), W.as(tb::Dtype::f32), kWidth, out.data(), 1);
    }});
    const Array<std::int64_t> offsets(kFeatures + 1);
    const Array<std::int32_t> rows(kTokens * kActive), positions(kTokens * kActive);
    for (const bool csr : {false, true}) {
        cases.push_back({csr ? "transpose_code CSR" : "transpose_code", [=] {
            kernels.transpose_code(csr ? made.csr() : made.code(), kFeatures, offsets.data(), rows.data(),
                                   positions.data(), 1);
        }});
    }
}

}  // namespace guard
