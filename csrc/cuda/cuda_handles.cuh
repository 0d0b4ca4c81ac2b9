// CUDA's handles as objects that free themselves, and its errors as exceptions.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>

namespace tb {

inline void check(cudaError_t status, const char* call) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // else whoever asks next, torch for one, is told of it again
    throw std::runtime_error(std::string(call) + ": " + cudaGetErrorString(status));
}

// Makes a device current, for as long as this object lives.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "cudaGetDevice");
        changed_ = before_ != device;
        if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    // To go back to a device that the process does not use would set it up there, with half a gigabyte
    // of its memory: a thread that only waits for another device is on device 0 before.
    ~OnDevice() {
        if (changed_ && in_use(before_)) cudaSetDevice(before_);
    }

  private:
    // Asked of the driver through the runtime: the module must load where there is no driver.
    static bool in_use(int device) {
        int (*state)(int device, unsigned* flags, int* active) = nullptr;
        void* entry = nullptr;
        cudaDriverEntryPointQueryResult found{};
        const cudaError_t status = cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &entry, 7000,
                                                                    cudaEnableDefault, &found);
        if (status != cudaSuccess || found != cudaDriverEntryPointSuccess) return true;
        state = reinterpret_cast<decltype(state)>(entry);
        unsigned flags = 0;
        int active = 0;
        return state(device, &flags, &active) != 0 || active != 0;
    }

    int before_ = 0;
    bool changed_ = false;
};

class Event {
  public:
    explicit Event(unsigned flags = 0) {
        check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | flags), "cudaEventCreateWithFlags");
    }
    Event(const Event&) = delete;
    Event& operator=(const Event&) = delete;
    ~Event() { cudaEventDestroy(event_); }

    void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
    // The stream waits, not the caller. For nothing when the event was never recorded.
    void hold(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent"); }
    void wait() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
    bool done() const {
        const cudaError_t status = cudaEventQuery(event_);
        if (status == cudaErrorNotReady) {
            cudaGetLastError();  // it is kept as an error
            return false;
        }
        check(status, "cudaEventQuery");
        return true;
    }

  private:
    cudaEvent_t event_ = nullptr;
};

// Of its own order: not even the default stream holds it up.
class Stream {
  public:
    Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
    ~Stream() { cudaStreamDestroy(stream_); }
    operator cudaStream_t() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

  private:
    cudaStream_t stream_ = nullptr;
};

struct FreeDevice {
    void operator()(void* memory) const { cudaFree(memory); }
};
struct FreeLocked {
    void operator()(void* memory) const { cudaFreeHost(memory); }
};
template <class T>
using DeviceMemory = std::unique_ptr<T[], FreeDevice>;
template <class T>
using LockedMemory = std::unique_ptr<T[], FreeLocked>;

template <class T>
DeviceMemory<T> device_memory(std::size_t count) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, count * sizeof(T)), "cudaMalloc");
    return DeviceMemory<T>(static_cast<T*>(memory));
}

// Page-locked, so that a copy between it and the device does not wait.
template <class T>
LockedMemory<T> locked_memory(std::size_t count) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocDefault), "cudaHostAlloc");
    return LockedMemory<T>(static_cast<T*>(memory));
}

inline void copy_async(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    check(cudaMemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
}

}  // namespace tb
