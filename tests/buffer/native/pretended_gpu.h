// A pretended GPU: as much of CUDA's runtime as csrc/cuda/cuda_backend.cu calls, on the CPU.
//
// Built by a C++ compiler over CUDA's headers, this stands before the .cu file. Whatever a GPU is free to
// do is drawn by chance here, so that what a program forgot to order goes wrong with some seed:
//
//   streams   queues of pieces of work; any of them may run its next one. Only events hold a stream up.
//   pieces    a copy is two of them, and every block of a launch is one: other streams come in between
//   calls     before each, the device runs a few pieces or none
//   lanes     fibres (pretended_warp.h)
//   memory    the host's, and full of rubbish at first; AddressSanitizer sees what becomes of it
//
// A program that breaks a rule of CUDA's ends with a message. Any thread may call: one lock is held during
// every call, and so while pieces run.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#include "pretended_warp.h"

namespace gpu {

// An event's records, counted; whoever uses an event sees to it that they come in their order.
struct Records {
    std::uint64_t asked = 0, reached = 0;
};

// What a stream does next: a piece of work, or to wait for a record of an event.
struct Work {
    std::function<void()> piece;
    std::shared_ptr<Records> awaited;
    std::uint64_t record = 0;

    bool ready() const { return !awaited || awaited->reached >= record; }
};

constexpr int kDevice = 3;  // the only one that anything is on

struct Device {
    std::recursive_mutex lock;
    std::mt19937_64 random;
    std::vector<CUstream_st*> streams;  // in the order they were made
    std::map<const char*, std::size_t> memory, locked;  // addresses and sizes
    int events = 0;
    long allocations = 0;  // so far
    std::uint64_t haste = 0;    // pieces that run before a call, at most
    std::size_t starved = 0;    // the number of the stream that hardly gets on
    bool first_in_use = false;  // whether the process uses device 0
};

inline Device device;
inline thread_local int current = 0;  // device
inline thread_local long waits = 0;   // of this thread for the device

inline std::uint64_t below(std::uint64_t bound) { return device.random() % bound; }

using Held = std::unique_lock<std::recursive_mutex>;

}  // namespace gpu

struct CUstream_st {
    CUstream_st() {
        const gpu::Held held(gpu::device.lock);
        gpu::device.streams.push_back(this);
    }
    CUstream_st(const CUstream_st&) = delete;
    CUstream_st& operator=(const CUstream_st&) = delete;
    ~CUstream_st() {
        const gpu::Held held(gpu::device.lock);
        auto& streams = gpu::device.streams;
        streams.erase(std::find(streams.begin(), streams.end(), this));
    }

    std::deque<gpu::Work> queue;
};

struct CUevent_st {
    std::shared_ptr<gpu::Records> records = std::make_shared<gpu::Records>();
};

namespace gpu {

inline CUstream_st default_stream;

inline CUstream_st& stream_of(cudaStream_t stream) { return stream ? *stream : default_stream; }

// Runs one piece of a stream that has one and is not held up. Returns whether there was any.
inline bool step() {
    std::vector<CUstream_st*> ready;
    for (CUstream_st* stream : device.streams)
        if (!stream->queue.empty() && stream->queue.front().ready()) ready.push_back(stream);
    if (ready.empty()) return false;
    const CUstream_st* starved = device.starved < device.streams.size() ? device.streams[device.starved] : nullptr;
    CUstream_st* drawn = ready[below(ready.size())];
    for (int again = 0; again < 6 && drawn == starved; ++again) drawn = ready[below(ready.size())];
    const Work work = std::move(drawn->queue.front());
    drawn->queue.pop_front();
    if (work.piece) work.piece();
    return true;
}

// The start of a call that needs its device to be current.
inline Held called() {
    Held held(device.lock);
    require(current == kDevice, "the device of a call is current");
    for (std::uint64_t pieces = below(device.haste + 1); pieces > 0 && step(); --pieces) {
    }
    return held;
}

inline void wait_for(const std::function<bool()>& done) {
    ++waits;
    while (!done()) require(step(), "what is waited for comes");
}

// ---------------------------------------------------------------- for tests

inline void begin(std::uint64_t seed) {
    const Held held(device.lock);
    device.random.seed(seed);
    device.haste = below(3) ? 1 + below(11) : 0;
    device.starved = below(8);
    device.first_in_use = below(2);
    current = 0;
}

// Calls that return even if the device does nothing.
template <class Call>
void without_waiting(const Call& call) {
    const long before = waits;
    call();
    require(waits == before, "the host does not wait");
}

// Work of the caller's own.
inline void enqueue(cudaStream_t stream, std::function<void()> piece) {
    const Held held(device.lock);
    stream_of(stream).queue.push_back({std::move(piece), nullptr, 0});
}

inline void run_all() {
    const Held held(device.lock);
    while (step()) {
    }
    for (const CUstream_st* stream : device.streams) require(stream->queue.empty(), "no stream waits for ever");
}

inline void require_freed() {
    const Held held(device.lock);
    require(device.memory.empty() && device.locked.empty(), "all memory is freed");
    require(device.events == 0 && device.streams.size() == 1, "all events and streams are destroyed");
}

// ---------------------------------------------------------------- memory

inline void* allocated(std::map<const char*, std::size_t>& known, std::size_t bytes, int rubbish) {
    ++device.allocations;
    void* memory = nullptr;
    require(posix_memalign(&memory, 64, bytes) == 0, "there is memory");
    std::memset(memory, rubbish, bytes);
    known[static_cast<const char*>(memory)] = bytes;
    return memory;
}

inline void freed(std::map<const char*, std::size_t>& known, void* memory) {
    require(!memory || known.erase(static_cast<const char*>(memory)) == 1, "what is freed was allocated, as such");
    std::free(memory);
}

inline bool is_locked(const void* address, std::size_t bytes) {
    const auto* begin = static_cast<const char*>(address);
    auto after = device.locked.upper_bound(begin);
    if (after == device.locked.begin()) return false;
    const auto& [start, size] = *--after;
    return begin + bytes <= start + size;
}

}  // namespace gpu

// ---------------------------------------------------------------- the runtime

extern "C" {

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

inline cudaError_t cudaGetDevice(int* device) {
    *device = gpu::current;
    return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
    gpu::current = device;
    return cudaSuccess;
}

// The driver's cuDevicePrimaryCtxGetState, the only function of it that is asked for.
inline int pretended_context_state(int device, unsigned* flags, int* active) {
    const gpu::Held held(gpu::device.lock);
    *flags = 0;
    *active = device != 0 || gpu::device.first_in_use;
    return 0;
}

inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
    gpu::require(std::strcmp(name, "cuDevicePrimaryCtxGetState") == 0, "a known function of the driver");
    *entry = reinterpret_cast<void*>(pretended_context_state);
    *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    const gpu::Held held = gpu::called();
    ++gpu::device.events;
    *event = new CUevent_st;
    return cudaSuccess;
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    const gpu::Held held = gpu::called();
    --gpu::device.events;
    delete event;  // streams may still wait for it: they have its records
    return cudaSuccess;
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    const gpu::Held held = gpu::called();
    gpu::enqueue(stream, [records = event->records, record = ++event->records->asked] {
        gpu::require(records->reached < record, "records of an event come in their order");
        records->reached = record;
    });
    return cudaSuccess;
}

inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const gpu::Held held = gpu::called();
    gpu::stream_of(stream).queue.push_back({{}, event->records, event->records->asked});
    return cudaSuccess;
}

inline cudaError_t cudaEventQuery(cudaEvent_t event) {
    const gpu::Held held = gpu::called();
    return event->records->reached < event->records->asked ? cudaErrorNotReady : cudaSuccess;
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const gpu::Held held = gpu::called();
    gpu::wait_for([event, asked = event->records->asked] { return event->records->reached >= asked; });
    return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    const gpu::Held held = gpu::called();
    gpu::require(flags == cudaStreamNonBlocking, "a stream is not held up by the default stream");
    *stream = new CUstream_st;
    return cudaSuccess;
}

inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    const gpu::Held held = gpu::called();
    gpu::require(stream->queue.empty(), "a stream has nothing to do any more when it is destroyed");
    delete stream;
    return cudaSuccess;
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    const gpu::Held held = gpu::called();
    gpu::wait_for([stream] { return gpu::stream_of(stream).queue.empty(); });
    return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    const gpu::Held held = gpu::called();
    *memory = gpu::allocated(gpu::device.memory, bytes, 0xee);
    return cudaSuccess;
}

inline cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
    const gpu::Held held = gpu::called();
    *memory = gpu::allocated(gpu::device.locked, bytes, 0xdd);
    return cudaSuccess;
}

inline cudaError_t cudaFree(void* memory) {
    const gpu::Held held = gpu::called();
    gpu::freed(gpu::device.memory, memory);
    return cudaSuccess;
}

inline cudaError_t cudaFreeHost(void* memory) {
    const gpu::Held held = gpu::called();
    gpu::freed(gpu::device.locked, memory);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    const gpu::Held held = gpu::called();
    const void* host = kind == cudaMemcpyHostToDevice ? from : to;
    if (!gpu::is_locked(host, bytes)) ++gpu::waits;  // CUDA waits for such a copy
    const std::size_t half = bytes / 2;
    gpu::enqueue(stream, [=] { std::memcpy(to, from, half); });
    gpu::enqueue(stream, [=] {
        std::memcpy(static_cast<char*>(to) + half, static_cast<const char*>(from) + half, bytes - half);
    });
    return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
    const gpu::Held held = gpu::called();
    gpu::enqueue(stream, [=] { std::memset(to, value, bytes); });
    return cudaSuccess;
}

}  // extern "C"

namespace gpu {

// A kernel with its arguments, which are copied as it is launched.
template <class... Arguments, std::size_t... i>
std::function<void()> bound(void (*kernel)(Arguments...), void** given, std::index_sequence<i...>) {
    using All = std::tuple<Arguments...>;
    const auto arguments = std::make_shared<All>(*static_cast<std::tuple_element_t<i, All>*>(given[i])...);
    return [=] { std::apply(kernel, *arguments); };
}

}  // namespace gpu

template <class... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** arguments, std::size_t,
                             cudaStream_t stream) {
    const gpu::Held held = gpu::called();
    gpu::require(grid.x > 0 && grid.y > 0 && grid.y < 65536, "a grid that CUDA launches");
    const auto lane = gpu::bound(kernel, arguments, std::index_sequence_for<Arguments...>());
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x)
            gpu::enqueue(stream, [=] {
                blockIdx = {x, y, 0};
                for (unsigned first = 0; first < block.x; first += gpu::Warp::kLanes) gpu::warp.run(first, lane);
            });
    return cudaSuccess;
}
