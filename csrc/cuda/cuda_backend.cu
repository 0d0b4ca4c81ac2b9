// The buffer's back end on a GPU.
//
// Nothing here waits for the device but `bad_rows`, HostMemory::wait and destructors. The pool's memory
// is one resource: a move of rows makes its stream wait for the event after the move before it, so moves
// come one after the other whatever streams they are on. Segments go through staging on the device,
// twice over in each direction, so that a copy runs while the caller's stream goes on with other work:
//
//   spill   caller's stream: rows into staging   |  stream `out`: staging to host memory
//   load    stream `in`: host memory to staging  |  caller's stream: staging into rows
#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "cuda/cuda_handles.cuh"
#include "cuda/cuda_rows.cuh"

namespace tb {
namespace {

class CudaMemory final : public HostMemory {
  public:
    // `serial`: a back end gives every one another number, from 1.
    CudaMemory(std::size_t bytes, int device, std::uint64_t serial)
        : bytes(bytes),
          serial(serial),
          device_(device),
          memory_(locked_memory<char>(bytes + kPage)),
          copied_(std::make_unique<Event>(cudaEventBlockingSync)) {  // a thread that waits sleeps
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
        data_ = memory_.get() + (kPage - address % kPage) % kPage;
    }
    ~CudaMemory() override {
        try {
            const OnDevice current(device_);
            copied_->wait();
            memory_.reset();
            copied_.reset();
        } catch (const std::exception&) {  // a device that failed copies nothing any more
        }
    }

    char* data() override { return data_; }

    void wait() override {
        const OnDevice current(device_);
        copied_->wait();
    }

    // Copies from it and to it come one after the other, whatever stream each is on.
    void copy_from(const void* device, std::size_t offset, std::size_t size, cudaStream_t stream) {
        copied_->hold(stream);
        copy_async(data_ + offset, device, size, cudaMemcpyDeviceToHost, stream);
        copied_->record(stream);
    }
    void copy_to(void* device, std::size_t offset, std::size_t size, cudaStream_t stream) {
        copied_->hold(stream);
        copy_async(device, data_ + offset, size, cudaMemcpyHostToDevice, stream);
        copied_->record(stream);
    }

    const std::size_t bytes;
    const std::uint64_t serial;

  private:
    static constexpr std::size_t kPage = 4096;

    const int device_;
    LockedMemory<char> memory_;
    std::unique_ptr<Event> copied_;
    char* data_;
};

// The slot lists of one call: where they leave for the device, and where they arrive.
struct Lists {
    explicit Lists(std::size_t count)
        : count(count), host(locked_memory<std::int64_t>(count)), device(device_memory<std::int64_t>(count)) {}

    const std::size_t count;
    LockedMemory<std::int64_t> host;
    DeviceMemory<std::int64_t> device;
    Event used;  // by the kernels of the call
};

struct Staging {
    DeviceMemory<char> memory;
    Event full, empty;
};

// What is made and freed with the device current.
struct Handles {
    explicit Handles(std::size_t hooks) : bad(device_memory<unsigned long long>(hooks)) {}

    Stream in, out;
    Event moved;  // the pool's memory is at rest
    Staging incoming[2], outgoing[2];
    DeviceMemory<unsigned long long> bad;      // rows that were not finite, of each hook point
    std::deque<std::unique_ptr<Lists>> lists;  // in the order of their last use
};

class CudaBackend final : public Backend {
  public:
    CudaBackend(std::vector<HookRows> hooks, int device, std::size_t segment_bytes)
        : hooks_(std::move(hooks)), device_(device), segment_bytes_(segment_bytes) {
        for (const HookRows& hook : hooks_) token_bytes_ += static_cast<std::size_t>(row_bytes(hook.kind, hook.d));
        const OnDevice current(device_);
        handles_ = std::make_unique<Handles>(hooks_.size());
        clear_bad(handles_->in);
        handles_->in.wait();
    }
    ~CudaBackend() override {
        try {
            const OnDevice current(device_);
            handles_->moved.wait();
            handles_->in.wait();
            handles_->out.wait();
            handles_.reset();
        } catch (const std::exception&) {
        }
    }

    std::size_t staging_bytes() const override { return 4 * segment_bytes_; }

    // Staging is taken here, before any token has left the pool.
    std::unique_ptr<HostMemory> host_memory(std::size_t bytes) override {
        const OnDevice current(device_);
        for (Staging* staging : {handles_->incoming, handles_->outgoing})
            for (int i = 0; i < 2; ++i)
                if (!staging[i].memory) staging[i].memory = device_memory<char>(segment_bytes_);
        return std::make_unique<CudaMemory>(bytes, device_, ++serial_);
    }

    std::vector<BadRows> put(const std::vector<Incoming>& incoming, const SlotLists& slots,
                             const Caller& caller) override {
        move(slots, caller, [&](std::size_t i, const std::int64_t* list) {
            RowMove rows = into_pool(i, incoming[i].rows, list);
            rows.from_bytes = row_bytes(incoming[i].kind, rows.d);
            return PlannedMove{put_kernel(rows, incoming[i].kind, hooks_[i].kind), rows};
        });
        return std::vector<BadRows>(hooks_.size(), BadRows{0, -1});
    }

    void take(const SlotLists& slots, const std::vector<void*>& out, const Caller& caller) override {
        move(slots, caller, [&](std::size_t i, const std::int64_t* list) {
            RowMove rows = out_of_pool(i, out[i], list);
            rows.to_bytes = row_bytes(out_kind(hooks_[i].kind), rows.d);
            return PlannedMove{take_kernel(rows, hooks_[i].kind), rows};
        });
    }

    void spill(const SlotLists& slots, HostMemory& memory, std::size_t offset, const Caller& caller) override {
        if (slots.n == 0) return;
        auto& to = static_cast<CudaMemory&>(memory);
        const std::size_t bytes = segment_size(slots.n, to, offset);
        const OnDevice current(device_);
        const auto stream = static_cast<cudaStream_t>(caller.stream);
        Staging& staging = handles_->outgoing[spills_++ % 2];
        if (fetched_ == to.serial) fetched_ = 0;  // that was another segment
        staging.empty.hold(stream);
        std::int64_t at = 0;
        move(slots, caller, [&](std::size_t i, const std::int64_t* list) {
            const RowMove rows = out_of_pool(i, staging.memory.get() + at, list);
            at += slots.n * rows.to_bytes;
            return PlannedMove{copy_kernel(rows), rows};
        });
        staging.full.record(stream);
        staging.full.hold(handles_->out);
        to.copy_from(staging.memory.get(), offset, bytes, handles_->out);
        staging.empty.record(handles_->out);
    }

    void fetch(HostMemory& memory, std::size_t offset) override {
        auto& from = static_cast<CudaMemory&>(memory);
        const OnDevice current(device_);
        bring(from, offset, std::min(segment_bytes_, from.bytes - offset));
        fetched_ = from.serial;
        fetched_at_ = offset;
    }

    void load(HostMemory& memory, std::size_t offset, const SlotLists& slots, const Caller& caller) override {
        if (slots.n == 0) return;
        auto& from = static_cast<CudaMemory&>(memory);
        const std::size_t bytes = segment_size(slots.n, from, offset);
        const OnDevice current(device_);
        const auto stream = static_cast<cudaStream_t>(caller.stream);
        if (fetched_ != from.serial || fetched_at_ != offset) bring(from, offset, bytes);
        fetched_ = 0;
        Staging& staging = handles_->incoming[loads_++ % 2];
        staging.full.hold(stream);
        std::int64_t at = 0;
        move(slots, caller, [&](std::size_t i, const std::int64_t* list) {
            const RowMove rows = into_pool(i, staging.memory.get() + at, list);
            at += slots.n * rows.from_bytes;
            return PlannedMove{copy_kernel(rows), rows};
        });
        staging.empty.record(stream);
    }

    std::vector<std::int64_t> bad_rows() override {
        const OnDevice current(device_);
        std::vector<std::int64_t> counts(hooks_.size());
        handles_->moved.hold(handles_->out);
        copy_async(counts.data(), handles_->bad.get(), counts.size() * sizeof counts[0], cudaMemcpyDeviceToHost,
                   handles_->out);
        clear_bad(handles_->out);
        handles_->out.wait();
        return counts;
    }

  private:
    // Queues one move of the rows of all hook points on the caller's stream. `plan` says what becomes
    // of those of the i-th, whose slots will be at an address on the device.
    template <class Plan>
    void move(const SlotLists& slots, const Caller& caller, const Plan& plan) {
        if (slots.n == 0) return;
        const OnDevice current(device_);
        const auto stream = static_cast<cudaStream_t>(caller.stream);
        const auto n = static_cast<std::size_t>(slots.n);
        std::vector<const std::int64_t*> distinct;
        for (const std::int64_t* list : slots.of_hook)
            if (std::find(distinct.begin(), distinct.end(), list) == distinct.end()) distinct.push_back(list);
        std::unique_ptr<Lists> lists = free_lists(distinct.size() * n);
        for (std::size_t k = 0; k < distinct.size(); ++k)
            std::memcpy(lists->host.get() + k * n, distinct[k], n * sizeof(std::int64_t));
        std::vector<PlannedMove> planned;
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            const auto k = std::find(distinct.begin(), distinct.end(), slots.of_hook[i]) - distinct.begin();
            planned.push_back(plan(i, lists->device.get() + static_cast<std::size_t>(k) * n));
        }
        handles_->moved.hold(stream);
        const auto numbers = static_cast<std::int64_t>(distinct.size() * n);
        check(launch_copy_lists(lists->host.get(), lists->device.get(), numbers, stream), "cudaLaunchKernel");
        check(launch_moves(planned, slots.n, stream), "cudaLaunchKernel");
        lists->used.record(stream);
        handles_->moved.record(stream);
        handles_->lists.push_back(std::move(lists));
    }

    RowMove into_pool(std::size_t i, const void* from, const std::int64_t* list) const {
        const HookRows& hook = hooks_[i];
        const std::int64_t bytes = row_bytes(hook.kind, hook.d);
        return {static_cast<const char*>(from), static_cast<char*>(hook.rows), nullptr, list, bytes, bytes, hook.d,
                handles_->bad.get() + i};
    }

    RowMove out_of_pool(std::size_t i, void* to, const std::int64_t* list) const {
        const HookRows& hook = hooks_[i];
        const std::int64_t bytes = row_bytes(hook.kind, hook.d);
        return {static_cast<const char*>(hook.rows), static_cast<char*>(to), list, nullptr, bytes, bytes, hook.d,
                nullptr};
    }

    // Lists that nothing uses any more, or new ones: the host never waits for the device.
    std::unique_ptr<Lists> free_lists(std::size_t count) {
        auto& all = handles_->lists;
        const auto found =
            std::find_if(all.begin(), all.end(), [&](const auto& lists) { return lists->count >= count; });
        // Moves end in their order: where this one has not, no later one has.
        if (found != all.end() && (*found)->used.done()) {
            std::unique_ptr<Lists> lists = std::move(*found);
            all.erase(found);
            return lists;
        }
        std::size_t room = 1024;
        while (room < count) room *= 2;
        return std::make_unique<Lists>(room);
    }

    // A segment to staging, for the next `load`.
    void bring(CudaMemory& from, std::size_t offset, std::size_t bytes) {
        Staging& staging = handles_->incoming[loads_ % 2];
        staging.empty.hold(handles_->in);
        from.copy_to(staging.memory.get(), offset, bytes, handles_->in);
        staging.full.record(handles_->in);
    }

    std::size_t segment_size(std::int64_t n, const CudaMemory& memory, std::size_t offset) const {
        const std::size_t bytes = static_cast<std::size_t>(n) * token_bytes_;
        if (bytes > segment_bytes_ || offset > memory.bytes || bytes > memory.bytes - offset)
            throw std::invalid_argument("segment: more tokens than it has room for");
        return bytes;
    }

    void clear_bad(cudaStream_t stream) {
        check(cudaMemsetAsync(handles_->bad.get(), 0, hooks_.size() * sizeof(unsigned long long), stream),
              "cudaMemsetAsync");
    }

    const std::vector<HookRows> hooks_;
    const int device_;
    const std::size_t segment_bytes_;
    std::size_t token_bytes_ = 0;  // of a token's rows
    std::unique_ptr<Handles> handles_;
    std::uint64_t serial_ = 0, spills_ = 0, loads_ = 0;
    std::uint64_t fetched_ = 0;  // whose segment is on its way for the next `load`; 0 for none
    std::size_t fetched_at_ = 0;
};

}  // namespace

std::unique_ptr<Backend> cuda_backend(std::vector<HookRows> hooks, int device, std::size_t segment_bytes) {
    return std::make_unique<CudaBackend>(std::move(hooks), device, segment_bytes);
}

}  // namespace tb
