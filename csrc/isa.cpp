#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace tb {

namespace portable { extern const Kernels kernels; }
#if defined(TB_X86)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512bf16 { extern const Kernels kernels; }
#endif

namespace {

struct Build {
    const char* name;
    const Kernels* kernels;
};

std::vector<Build> runnable() {
    std::vector<Build> builds;
#if defined(TB_X86)
    __builtin_cpu_init();
    const bool avx2_ok = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512_ok = avx2_ok && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512_ok && __builtin_cpu_supports("avx512bf16")) builds.push_back({"avx512bf16", &avx512bf16::kernels});
    if (avx512_ok) builds.push_back({"avx512", &avx512::kernels});
    if (avx2_ok) builds.push_back({"avx2", &avx2::kernels});
#endif
    builds.push_back({"portable", &portable::kernels});
    return builds;
}

const std::vector<Build>& builds() {
    static const std::vector<Build> all = runnable();
    return all;
}

std::atomic<std::size_t> chosen{0};

}  // namespace

const Kernels& active_kernels() { return *builds()[chosen.load()].kernels; }

std::string active_isa() { return builds()[chosen.load()].name; }

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Build& build : builds()) names.emplace_back(build.name);
    return names;
}

void set_isa(const std::string& name) {
    for (std::size_t i = 0; i < builds().size(); ++i) {
        if (name == builds()[i].name) {
            chosen.store(i);
            return;
        }
    }
    throw std::invalid_argument("isa='" + name + "': expected one that this processor runs (see isa_names())");
}

}  // namespace tb
