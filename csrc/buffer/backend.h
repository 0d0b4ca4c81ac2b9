// What the buffer's core (pool.h) asks of a device. The core decides which rows go where; a back end
// moves them: host_backend.cpp on the CPU, cuda_backend.cu on a GPU.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace tb {

// The pool's memory of one hook point: [capacity, row_bytes(kind, d)].
struct HookRows {
    std::int64_t d;
    RowKind kind;
    void* rows;
};

// Tokens that come in, of one hook point: [n, d].
struct Incoming {
    const void* rows;
    RowKind kind;
};

// n slots a hook point; the same list for all of them where they share one order.
struct SlotLists {
    std::vector<const std::int64_t*> of_hook;
    std::int64_t n;
};

// How the caller runs: the CUDA stream that its own work is on, its number of CPU threads.
struct Caller {
    void* stream;
    int threads;
};

// Host memory that segments lie in; aligned to pages, page-locked where a device copies from it.
class HostMemory {
  public:
    virtual ~HostMemory() = default;
    virtual char* data() = 0;
    // Returns when no copy between it and the device is under way. Any thread may call it.
    virtual void wait() = 0;
};

// A segment holds n tokens of all hook points: hook point after hook point, n stored rows each.
class Backend {
  public:
    virtual ~Backend() = default;

    virtual std::unique_ptr<HostMemory> host_memory(std::size_t bytes) = 0;
    // Memory that the back end itself takes once segments move.
    virtual std::size_t staging_bytes() const = 0;

    // Converts, checks and writes rows into slots. A device that is not waited for returns no bad
    // rows here and counts them for `bad_rows`.
    virtual std::vector<BadRows> put(const std::vector<Incoming>&, const SlotLists&, const Caller&) = 0;
    // Rows of slots as they are handed out: [n, d] of every hook point.
    virtual void take(const SlotLists&, const std::vector<void*>& out, const Caller&) = 0;

    // Stored rows of slots into a segment at `offset` of the memory.
    virtual void spill(const SlotLists&, HostMemory&, std::size_t offset, const Caller&) = 0;
    // The segment is what `load` will be asked for next, as it is now: its copy to the device may begin.
    virtual void fetch(HostMemory&, std::size_t offset) = 0;
    // A segment's rows into slots.
    virtual void load(HostMemory&, std::size_t offset, const SlotLists&, const Caller&) = 0;

    // Rows that were not finite since the last call, by hook point. Waits for the device.
    virtual std::vector<std::int64_t> bad_rows() = 0;
};

}  // namespace tb
