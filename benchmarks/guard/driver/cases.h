// What the driver counts: every kernel of csrc/kernels/list.h on small inputs that are the same every time.
//
// Most sizes are no multiples of a vector or a tile, so that tails count; all are large enough for the inner
// loops to be most of it.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "inputs.h"
#include "kernels.h"

namespace guard {

// What is counted: one call of a kernel, on inputs that it keeps alive.
using Run = std::function<void()>;

struct Case {
    std::string name;  // the kernel, and which form of it
    Run run;
};

using Cases = std::vector<Case>;

void encoders(Cases&, const tb::Kernels&);
void codes(Cases&, const tb::Kernels&);
void optimizers(Cases&, const tb::Kernels&);
void attention(Cases&, const tb::Kernels&);
void rows(Cases&, const tb::Kernels&);
void buffers(Cases&, const tb::Kernels&);

}  // namespace guard
