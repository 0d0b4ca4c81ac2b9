#include "cases.h"
#include "kernels/attention.h"

namespace guard {
namespace {

// More keys than one chunk has; two query heads read one kv head.
constexpr std::int64_t kT = 600, kHeads = 2, kD = 64, kTargets = 2, kTop = 4;

struct Inputs {
    Both q{kHeads * kT * kD, 1}, k{kT * kD, 2}, v{kT * kD, 3};
    Array<float> sinks = floats(kHeads, 4), key_bias{kHeads * kT};
    Array<std::int32_t> segments{kT}, targets{kT * kTargets};
    Array<float> out{kHeads * kT * kD}, rows{4 * kHeads * kT};
    Array<float> top_p{kHeads * kT * kTop}, mass{kHeads * kT * kTargets};
    Array<std::int32_t> top_index{kHeads * kT * kTop};

    Inputs() {
        for (std::int64_t t = 0; t < kT; ++t) {
            segments[t] = static_cast<std::int32_t>(t / 250);
            for (std::int64_t m = 0; m < kTargets; ++m) targets[t * kTargets + m] = static_cast<std::int32_t>(t - m);
        }
        targets[1] = -1;
        for (std::int64_t i = 0; i < kHeads * kT; ++i) key_bias[i] = 0.25f * static_cast<float>(i % kT);
    }

    tb::AttentionCapture causal(tb::Dtype dtype) const {
        constexpr std::int64_t n = kHeads * kT;
        tb::AttentionCapture a{};
        a.q = q.as(dtype).data;
        a.k = k.as(dtype).data;
        a.v = v.as(dtype).data;
        a.dtype = dtype;
        a.targets = targets.data();
        a.out = out.data();
        a.lse = rows.data();
        a.entropy = rows.data() + n;
        a.distance = rows.data() + 2 * n;
        a.last = rows.data() + 3 * n;
        a.top_p = top_p.data();
        a.top_index = top_index.data();
        a.mass = mass.data();
        a.B = a.H_kv = 1;
        a.H = kHeads;
        a.T = a.S = kT;
        a.D = kD;
        a.M = kTargets;
        a.causal = true;
        a.scale = 0.125;
        a.top = kTop;
        a.last_n = 16;
        a.threads = 1;
        return a;
    }

    tb::AttentionCapture biased() const {
        tb::AttentionCapture a = causal(tb::Dtype::f32);
        a.key_bias = key_bias.data();
        return a;
    }

    // With everything else that a row of scores can go through.
    tb::AttentionCapture masked() const {
        tb::AttentionCapture a = causal(tb::Dtype::f32);
        a.sinks = sinks.data();
        a.segments = segments.data();
        a.window = 200;
        a.softcap = 20;
        return a;
    }
};

}  // namespace

void attention(Cases& cases, const tb::Kernels& kernels) {
    const Inputs in;
    cases.push_back({"attention_capture fp32", [=] { kernels.attention_capture(in.causal(tb::Dtype::f32)); }});
    cases.push_back({"attention_capture bf16", [=] { kernels.attention_capture(in.causal(tb::Dtype::bf16)); }});
    cases.push_back({"attention_capture with a bias", [=] { kernels.attention_capture(in.biased()); }});
    cases.push_back({"attention_capture with window, segments, soft cap, sinks",
                     [=] { kernels.attention_capture(in.masked()); }});
}

}  // namespace guard
