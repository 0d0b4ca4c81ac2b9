// Runs every case once and prints how many instructions it executed, a line a case.
//
// It is linked with the kernels of one instruction set, whose assembly counts itself (see ../blocks.py);
// libc and libstdc++ do not, so neither does what they choose for the processor at hand.
#include <cinttypes>
#include <cstdio>

#include "cases.h"

extern "C" std::uint64_t guard_instructions;
std::uint64_t guard_instructions = 0;

namespace tb::TB_ISA {
extern const Kernels kernels;
}

int main() {
    guard::Cases cases;
    for (const auto fill : {guard::encoders, guard::codes, guard::optimizers, guard::attention, guard::rows,
                            guard::buffers})
        fill(cases, tb::TB_ISA::kernels);
    for (const guard::Case& one : cases) {
        const std::uint64_t before = guard_instructions;
        one.run();
        std::printf("%s\t%" PRIu64 "\n", one.name.c_str(), guard_instructions - before);
    }
}
