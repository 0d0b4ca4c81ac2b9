#include "cases.h"

namespace guard {
namespace {

constexpr std::int64_t kN = 100, kD = 200, kF = 1000, kK = 16;

struct Inputs {
    Both x{kN * kD, 1}, W{kF * kD, 2};
    Array<float> b = floats(kF, 3), threshold = floats(kF, 4, 5, 10);
    Array<float> values{kN * kK};
    Array<std::int32_t> indices{kN * kK};

    tb::Encoder encoder(tb::Dtype stored, bool bf16_matmul) const {
        return {x.as(stored), W.as(stored), b.data(), kN, kD, kF, bf16_matmul, 1};
    }
};

}  // namespace

void encoders(Cases& cases, const tb::Kernels& kernels) {
    const Inputs in;
    struct Form {
        const char* name;
        tb::Dtype stored;
        bool bf16_matmul;
    };
    for (const Form form : {Form{"fp32", tb::Dtype::f32, false}, Form{"bf16", tb::Dtype::bf16, true},
                            Form{"fp32 in a bf16 matmul", tb::Dtype::f32, true}}) {
        const std::string name = form.name;
        const tb::Encoder e = in.encoder(form.stored, form.bf16_matmul);
        cases.push_back({"encode_topk " + name, [=] {
            kernels.encode_topk(e, kK, in.values.data(), in.indices.data());
        }});
        cases.push_back({"encode_batchtopk " + name, [=] { kernels.encode_batchtopk(e, kN * kK); }});
        cases.push_back({"encode_relu " + name, [=] { kernels.encode_relu(e, nullptr); }});
        cases.push_back({"encode_relu with thresholds " + name, [=] {
            kernels.encode_relu(e, in.threshold.data());
        }});
    }
}

}  // namespace guard
