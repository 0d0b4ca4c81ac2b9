// The buffer's back end on the CPU: rows move on the calling thread and its helpers, at once.
#pragma once
#include <memory>
#include <vector>

#include "buffer/backend.h"

namespace tb {

// `kernels` says whose row kernels run (see isa.h).
std::unique_ptr<Backend> host_backend(std::vector<HookRows> hooks, const Kernels& (*kernels)());

}  // namespace tb
