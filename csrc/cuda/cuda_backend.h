// The buffer's back end on a GPU: streams and events, and no waiting for the device.
#pragma once
#include <cstddef>
#include <memory>
#include <vector>

#include "buffer/backend.h"

namespace tb {

// The hook points' memory is on `device`. `segment_bytes`: of a segment's rows, at most; four times
// that is taken on the device with the first `host_memory`. One thread at a time may call the back
// end; HostMemory::wait is for any.
std::unique_ptr<Backend> cuda_backend(std::vector<HookRows> hooks, int device, std::size_t segment_bytes);

}  // namespace tb
