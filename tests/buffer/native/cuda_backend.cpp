// The buffer's back end on a GPU (csrc/cuda/cuda_backend.cu) on a pretended one.
//
//     cuda_backend calls FIRST LAST    for these seeds: its calls, against a sequential model
//     cuda_backend pools DIRECTORY     the whole buffer, against the one on the CPU (cuda_pool.cpp)
//
// A seed is a buffer of random hook points and random calls on several streams. What is expected of a call
// is noted when it is made; what came of it is compared when the device has done everything. Exit status
// 0: all held.
#include "pretended_gpu.h"

#include "cuda/cuda_backend.cu"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "stored_rows.h"

void pools_agree(const std::string& directory);  // cuda_pool.cpp

namespace {

using gpu::require;
using gpu::without_waiting;
using rows::Memory;
using tb::RowKind;

constexpr std::size_t kOffset = 4096;  // of rows in a segment's memory

struct Hook {
    std::int64_t d;
    RowKind kind;
    Memory memory;
    std::vector<char> model;

    std::int64_t row() const { return tb::row_bytes(kind, d); }
    char* model_row(std::int64_t slot) { return model.data() + slot * row(); }
};

// A segment's memory, and what it should hold: n tokens, none before the first spill.
struct Segment {
    std::unique_ptr<tb::HostMemory> memory;
    std::vector<char> model;
    std::int64_t n = 0;
};

struct Batch {
    std::vector<char> got, expected;
};

// The slots of one call. The lists are the caller's: what is in them afterwards is of no use.
struct Picked {
    ~Picked() {
        for (auto& list : lists) std::fill(list.begin(), list.end(), std::int64_t{1} << 50);
    }
    const std::vector<std::int64_t>& of(std::size_t hook) const { return lists[lists.size() == 1 ? 0 : hook]; }
    tb::SlotLists given() const {
        tb::SlotLists slots{{}, n};
        for (std::size_t i = 0; i < hooks; ++i) slots.of_hook.push_back(of(i).data());
        return slots;
    }

    std::size_t hooks;
    std::int64_t n;
    std::vector<std::vector<std::int64_t>> lists;
};

class Trial {
  public:
    explicit Trial(std::uint64_t seed) : random_(seed) {
        gpu::begin(seed);
        capacity_ = 20 + below(40);
        segment_ = 1 + below(9);
        one_order_ = below(2);
        mostly_tiers_ = below(2);
        make_hooks();
        std::vector<tb::HookRows> pool;
        for (const Hook& hook : hooks_) pool.push_back({hook.d, hook.kind, hook.memory.data()});
        backend_ = tb::cuda_backend(pool, gpu::kDevice, segment_bytes());
        device_is_left();
    }

    void run() {
        for (std::int64_t calls = 10 + below(30); calls > 0; --calls) {
            call();
            device_is_left();
        }
        destroy();
        gpu::run_all();
        for (const Hook& hook : hooks_)
            require(std::equal(hook.model.begin(), hook.model.end(), hook.memory.data()), "the pool is as modelled");
        for (const Batch& batch : batches_) require(batch.got == batch.expected, "batches are as modelled");
    }

  private:
    std::int64_t below(std::int64_t bound) {
        return static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(bound)));
    }

    void make_hooks() {
        constexpr std::int64_t kWidths[] = {1,  2,   7,   8,   16,  31,  32,  33,   40,  64,
                                            96, 100, 104, 250, 264, 300, 1032, 1040, 2056};
        const bool many = below(12) == 0;  // more than one launch holds
        const std::int64_t count = many ? 33 + below(8) : 1 + below(5);
        const RowKind same = any_kind();
        const bool mixed = below(2);
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t d = kWidths[below(many ? 9 : std::size(kWidths))];
            const RowKind kind = mixed ? any_kind() : same;
            const std::int64_t bytes = capacity_ * tb::row_bytes(kind, d);
            const std::int64_t shift = below(4) ? 0 : rows::number_bytes(kind) * below(9);
            hooks_.push_back({d, kind, Memory(bytes, shift), {}});
            Hook& hook = hooks_.back();
            for (std::int64_t k = 0; k < bytes; ++k) hook.model.push_back(static_cast<char>(random_.next()));
            std::copy(hook.model.begin(), hook.model.end(), hook.memory.data());
        }
        bad_.resize(hooks_.size());
    }

    RowKind any_kind() { return static_cast<RowKind>(below(4)); }

    std::size_t segment_bytes() const {
        std::int64_t bytes = 0;
        for (const Hook& hook : hooks_) bytes += segment_ * hook.row();
        return static_cast<std::size_t>(bytes);
    }

    // Another device is the caller's again, but one that the process does not use is never set up.
    void device_is_left() {
        require(gpu::current == 0 || !gpu::device.first_in_use, "the caller's device is current again");
        gpu::current = 0;
    }

    void call() {
        const std::int64_t drawn = mostly_tiers_ && below(5) ? 6 + below(3) : below(10);
        if (drawn < 3) return put();
        if (drawn < 6) return take();
        if (drawn == 6) return spill();
        if (drawn == 7) return fetch();
        if (drawn == 8) return load();
        const std::int64_t other = below(6);
        if (other == 0) return count_bad();
        if (other == 1) return read();
        if (other == 2) return overwrite();
        if (other == 3) return drop();
        refuse();
    }

    // ------------------------------------------------------------ tokens

    cudaStream_t any_stream() {
        const std::int64_t drawn = below(4);
        return drawn == 3 ? nullptr : &streams_[drawn];
    }

    Picked pick(std::int64_t n) {
        Picked picked{hooks_.size(), n, {}};
        for (std::size_t i = 0; i < (one_order_ ? 1 : hooks_.size()); ++i) {
            std::vector<std::int64_t> all(static_cast<std::size_t>(capacity_));
            std::iota(all.begin(), all.end(), 0);
            for (std::int64_t k = 0; k < n; ++k) std::swap(all[k], all[k + below(capacity_ - k)]);
            all.resize(static_cast<std::size_t>(n) + 1);  // one that is not asked for
            picked.lists.push_back(std::move(all));
        }
        return picked;
    }

    // Memory of the caller's, that the device may touch as long as the trial lasts.
    const Memory& buffer(std::int64_t numbers, RowKind kind) {
        const std::int64_t bytes = rows::number_bytes(kind);
        buffers_.emplace_back(numbers * bytes, below(5) ? 0 : bytes * below(5));
        return buffers_.back();
    }

    void put() {
        const Picked slots = pick(below(std::min<std::int64_t>(capacity_, 25)));
        const cudaStream_t stream = any_stream();
        std::vector<tb::Incoming> incoming;
        std::vector<const Memory*> given;
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            const RowKind kind = hooks_[i].kind == RowKind::f16 ? RowKind::f16 : static_cast<RowKind>(below(2));
            given.push_back(&buffer(slots.n * hooks_[i].d, kind));
            incoming.push_back({given.back()->data(), kind});
            fill_and_model(i, kind, given.back()->data(), slots);
        }
        without_waiting([&] {
            for (const tb::BadRows& bad : backend_->put(incoming, slots.given(), {stream, 1}))
                require(bad.count == 0 && bad.first == -1, "a put tells of no bad rows");
        });
        for (const Memory* memory : given) gpu::enqueue(stream, [memory] { memory->fill(0x55); });
    }

    void fill_and_model(std::size_t i, RowKind kind, char* given, const Picked& slots) {
        Hook& hook = hooks_[i];
        const auto fill = below(4) ? rows::fill_tame : rows::fill_wild;
        fill(given, kind, slots.n * hook.d, random_);
        for (std::int64_t k = 0; k < slots.n; ++k) {
            const char* row = given + k * hook.d * rows::number_bytes(kind);
            bad_[i] += !rows::store(row, kind, hook.model_row(slots.of(i)[k]), hook.kind, hook.d);
        }
    }

    void take() {
        const Picked slots = pick(below(std::min<std::int64_t>(capacity_, 25)));
        const cudaStream_t stream = any_stream();
        std::vector<void*> out;
        std::vector<std::function<void()>> readings;
        for (std::size_t i = 0; i < hooks_.size(); ++i) {
            Hook& hook = hooks_[i];
            const Memory& memory = buffer(slots.n * hook.d, tb::out_kind(hook.kind));
            gpu::enqueue(stream, [&memory] { memory.fill(0xff); });
            out.push_back(memory.data());
            batches_.emplace_back();
            Batch& batch = batches_.back();
            batch.expected.resize(memory.bytes());
            const std::int64_t bytes = tb::row_bytes(tb::out_kind(hook.kind), hook.d);
            for (std::int64_t k = 0; k < slots.n; ++k)
                rows::hand_out(hook.model_row(slots.of(i)[k]), hook.kind, batch.expected.data() + k * bytes, hook.d);
            readings.push_back([&memory, &batch] { batch.got.assign(memory.data(), memory.data() + memory.bytes()); });
        }
        without_waiting([&] { backend_->take(slots.given(), out, {stream, 1}); });
        for (auto& reading : readings) gpu::enqueue(stream, std::move(reading));
    }

    // ------------------------------------------------------------ segments

    Segment& any_segment() { return segments_[static_cast<std::size_t>(below(segments_.size()))]; }

    void spill() {
        if (segments_.size() < 3) {
            segments_.push_back({backend_->host_memory(kOffset + segment_bytes()), {}, 0});
            device_is_left();
            require(reinterpret_cast<std::uintptr_t>(segments_.back().memory->data()) % 4096 == 0, "whole pages");
        }
        Segment& segment = any_segment();
        const Picked slots = pick(below(3) ? segment_ : below(segment_ + 1));
        if (slots.n > 0) {
            segment.n = slots.n;
            segment.model.clear();
            for (std::size_t i = 0; i < hooks_.size(); ++i)
                for (std::int64_t k = 0; k < slots.n; ++k) {
                    const char* row = hooks_[i].model_row(slots.of(i)[k]);
                    segment.model.insert(segment.model.end(), row, row + hooks_[i].row());
                }
            if (segment.memory.get() == fetched_) fetched_ = nullptr;
        }
        without_waiting([&] { backend_->spill(slots.given(), *segment.memory, kOffset, {any_stream(), 1}); });
    }

    void fetch() {
        if (segments_.empty()) return;
        Segment& segment = any_segment();
        if (segment.n == 0) return;
        fetched_ = segment.memory.get();
        without_waiting([&] { backend_->fetch(*segment.memory, kOffset); });
    }

    // Mostly what was fetched, else something else.
    void load() {
        if (segments_.empty()) return;
        Segment* segment = &any_segment();
        if (fetched_ && below(2))
            for (Segment& other : segments_)
                if (other.memory.get() == fetched_) segment = &other;
        if (segment->n == 0) return;
        const Picked slots = pick(segment->n);
        const char* from = segment->model.data();
        for (std::size_t i = 0; i < hooks_.size(); ++i)
            for (std::int64_t k = 0; k < slots.n; ++k, from += hooks_[i].row())
                std::copy(from, from + hooks_[i].row(), hooks_[i].model_row(slots.of(i)[k]));
        fetched_ = nullptr;
        without_waiting([&] { backend_->load(*segment->memory, kOffset, slots.given(), {any_stream(), 1}); });
    }

    // As what writes it to a file does.
    void read() {
        if (segments_.empty()) return;
        Segment& segment = any_segment();
        segment.memory->wait();
        const char* rows = segment.memory->data() + kOffset;
        require(std::equal(segment.model.begin(), segment.model.end(), rows), "a segment is as modelled");
    }

    // As what reads it from a file does; never into what is fetched.
    void overwrite() {
        if (segments_.empty()) return;
        Segment& segment = any_segment();
        if (segment.memory.get() == fetched_) return;
        segment.memory->wait();
        for (char& byte : segment.model) byte = static_cast<char>(random_.next());
        std::copy(segment.model.begin(), segment.model.end(), segment.memory->data() + kOffset);
    }

    void drop() {
        if (segments_.empty()) return;
        const auto at = segments_.begin() + below(segments_.size());
        if (at->memory.get() == fetched_) fetched_ = nullptr;
        segments_.erase(at);
    }

    // ------------------------------------------------------------ the rest

    void count_bad() {
        require(backend_->bad_rows() == bad_, "rows that are not finite are counted");
        std::fill(bad_.begin(), bad_.end(), 0);
    }

    // What is refused changes nothing.
    void refuse() {
        const bool rows = segments_.empty() || below(2);
        const Picked slots = pick(rows ? 1 : segment_ + 1);
        const tb::Caller caller{any_stream(), 1};
        try {
            if (rows) {
                const tb::Incoming stored{hooks_[0].memory.data(), RowKind::mx8};
                backend_->put(std::vector<tb::Incoming>(hooks_.size(), stored), slots.given(), caller);
            } else {
                backend_->spill(slots.given(), *any_segment().memory, kOffset, caller);
            }
        } catch (const std::invalid_argument&) {
            return;
        }
        require(false, "rows as stored, and more tokens than a segment's, are refused");
    }

    void destroy() {
        const std::int64_t order = below(3);
        if (order == 0) gpu::run_all();
        if (order == 1) backend_.reset();
        device_is_left();
        segments_.clear();
        device_is_left();
        backend_.reset();
        device_is_left();
    }

    tb::Random random_;
    std::int64_t capacity_, segment_;  // tokens
    bool one_order_, mostly_tiers_;
    CUstream_st streams_[3];
    std::deque<Memory> buffers_;
    std::deque<Batch> batches_;
    std::vector<Hook> hooks_;
    std::vector<std::int64_t> bad_;  // rows that are not finite, of each hook point
    std::unique_ptr<tb::Backend> backend_;
    std::vector<Segment> segments_;
    const tb::HostMemory* fetched_ = nullptr;
};

void calls_hold(std::uint64_t first, std::uint64_t last) {
    for (std::uint64_t seed = first; seed <= last; ++seed) {
        gpu::trying = "seed " + std::to_string(seed);
        Trial(seed).run();
        gpu::require_freed();
    }
}

}  // namespace

int main(int count, char** arguments) {
    const std::string what = count > 1 ? arguments[1] : "";
    if (what == "calls" && count == 4) {
        calls_hold(std::strtoull(arguments[2], nullptr, 10), std::strtoull(arguments[3], nullptr, 10));
    } else if (what == "pools" && count == 3) {
        pools_agree(arguments[2]);
    } else {
        return 2;
    }
    std::puts("held");
    return 0;
}
