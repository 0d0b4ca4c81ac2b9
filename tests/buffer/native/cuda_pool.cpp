// The whole buffer over the back end of a pretended GPU: it hands out what the buffer on the CPU does, byte
// for byte, whatever the GPU's timing and that of the threads which write and read files.
#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "buffer/host_backend.h"
#include "buffer/pool.h"
#include "cuda/cuda_backend.h"
#include "kernels/table.h"
#include "pretended_gpu.h"
#include "stored_rows.h"

namespace {

using gpu::require;
using gpu::without_waiting;
using rows::Memory;
using tb::RowKind;

constexpr std::int64_t kCapacity = 48;

struct Hook {
    std::int64_t d;
    RowKind kind, incoming;

    std::int64_t given_bytes(std::int64_t n) const { return n * tb::row_bytes(incoming, d); }
    std::int64_t taken_bytes(std::int64_t n) const { return n * tb::row_bytes(tb::out_kind(kind), d); }
    std::int64_t stored_bytes(std::int64_t n) const { return n * tb::row_bytes(kind, d); }
};

struct Shape {
    std::vector<Hook> hooks;
    bool one_order;
    std::int64_t host_segments, disk_segments;
};

const tb::Kernels& rows_only() {
    static const tb::Kernels kernels = [] {
        tb::Kernels made{};
        made.put_rows = tb::portable::put_rows;
        made.take_rows = tb::portable::take_rows;
        made.gather_rows = tb::portable::gather_rows;
        made.scatter_rows = tb::portable::scatter_rows;
        return made;
    }();
    return kernels;
}

// A pool and its rows, which outlive it.
struct Buffer {
    Buffer(const Shape& shape, bool on_gpu, const std::string& directory) {
        std::vector<tb::HookRows> hooks;
        for (const Hook& hook : shape.hooks) {
            memory.emplace_back(hook.stored_bytes(kCapacity));
            hooks.push_back({hook.d, hook.kind, memory.back().data()});
        }
        const std::int64_t token = tb::token_bytes(hooks);
        const auto segment = static_cast<std::size_t>(tb::Pool::segment_size(token, kCapacity) * token);
        const auto each = static_cast<std::int64_t>(tb::Tiers::segment_bytes(segment));
        const tb::TierOptions tiers{shape.host_segments * each, 2 * shape.disk_segments * each, directory};
        auto backend = on_gpu ? tb::cuda_backend(hooks, gpu::kDevice, segment) : tb::host_backend(hooks, rows_only);
        const tb::PoolOptions options{kCapacity, 11, shape.one_order, tiers};
        pool = std::make_unique<tb::Pool>(hooks, options, std::move(backend));
    }

    std::vector<Memory> memory;
    std::unique_ptr<tb::Pool> pool;
};

// The same puts and takes for both.
class Pair {
  public:
    Pair(const Shape& shape, std::uint64_t seed, const std::string& directory)
        : shape_(shape), random_(seed), directory_(directory) {
        gpu::begin(seed);
        host_ = std::make_unique<Buffer>(shape, false, directory + "/host");
        cuda_ = std::make_unique<Buffer>(shape, true, directory + "/cuda");
    }

    // Up to so many tokens, as many as there is room for.
    void put(std::int64_t n) {
        tb::Pool& pool = *host_->pool;
        n = std::min({n, pool.most(), pool.limit() - pool.tokens_in() + pool.tokens_out()});
        const cudaStream_t stream = any_stream();
        std::vector<tb::Incoming> incoming;
        std::vector<const Memory*> given;
        for (const Hook& hook : shape_.hooks) {
            buffers_.emplace_back(hook.given_bytes(n));
            given.push_back(&buffers_.back());
            rows::fill_tame(given.back()->data(), hook.incoming, n * hook.d, random_);
            incoming.push_back({given.back()->data(), hook.incoming});
        }
        pool.put(incoming, n, {nullptr, 1});
        without_waiting([&] { cuda_->pool->put(incoming, n, {stream, 1}); });
        for (const Memory* memory : given) gpu::enqueue(stream, [memory] { memory->fill(0x55); });
    }

    // Up to so many tokens, as many as there are.
    void take(std::int64_t n) {
        n = std::min({n, host_->pool->most(), stored()});
        const cudaStream_t stream = any_stream();
        std::vector<void*> expected, out;
        std::vector<std::function<void()>> comparisons;
        for (const Hook& hook : shape_.hooks) {
            const Memory& wanted = buffers_.emplace_back(hook.taken_bytes(n));
            const Memory& got = buffers_.emplace_back(hook.taken_bytes(n));
            expected.push_back(wanted.data());
            out.push_back(got.data());
            comparisons.push_back([&wanted, &got] {
                require(std::memcmp(wanted.data(), got.data(), got.bytes()) == 0, "the batches of both are the same");
            });
        }
        host_->pool->take(n, expected, {nullptr, 1});
        without_waiting([&] { cuda_->pool->take(n, out, {stream, 1}); });
        for (auto& comparison : comparisons) gpu::enqueue(stream, std::move(comparison));
    }

    // The one on the GPU is saved, and a new one goes on where it was.
    void resume() {
        gpu::run_all();  // as torch.cuda.synchronize
        const Saved saved = save(*cuda_);
        cuda_.reset();
        cuda_ = std::make_unique<Buffer>(shape_, true, directory_ + "/cuda");
        restore(*cuda_, saved);
    }

    void finish() {
        while (stored() > 0) take(17);
        require(cuda_->pool->bad_rows() == std::vector<std::int64_t>(shape_.hooks.size()), "no row is called bad");
        cuda_->pool->forget();  // else the files that were saved stay
        if (random_.below(2)) gpu::run_all();
        cuda_.reset();
        gpu::run_all();
    }

    std::int64_t stored() const { return host_->pool->tokens_in() - host_->pool->tokens_out(); }
    std::int64_t below(std::uint64_t bound) { return static_cast<std::int64_t>(random_.below(bound)); }

  private:
    cudaStream_t any_stream() {
        const std::int64_t drawn = below(3);
        return drawn == 2 ? nullptr : &streams_[drawn];
    }

    // What a buffer holds in memory: of each hook point, the pool's rows and then those of each segment.
    struct Saved {
        tb::Pool::State state;
        std::vector<std::vector<std::vector<char>>> rows;
    };

    Saved save(Buffer& buffer) const {
        Saved saved{buffer.pool->state(), {}};
        for (std::size_t i = 0; i < shape_.hooks.size(); ++i) {
            saved.rows.push_back({occupied_rows(buffer, i)});
            std::int64_t k = 0;
            for (const tb::Tiers::Entry& entry : saved.state.tiers.segments) {
                if (entry.on_disk) continue;
                const std::int64_t bytes = shape_.hooks[i].stored_bytes(buffer.pool->segment_tokens());
                saved.rows[i].emplace_back(bytes);
                buffer.pool->segment(k++, i, saved.rows[i].back().data(), false);
            }
        }
        buffer.pool->saved();
        return saved;
    }

    void restore(Buffer& buffer, Saved saved) const {
        buffer.pool->restore(saved.state);
        for (std::size_t i = 0; i < shape_.hooks.size(); ++i) {
            const std::vector<char>& pooled = saved.rows[i][0];
            std::copy(pooled.begin(), pooled.end(), buffer.memory[i].data());
            for (std::size_t k = 1; k < saved.rows[i].size(); ++k)
                buffer.pool->segment(static_cast<std::int64_t>(k) - 1, i, saved.rows[i][k].data(), true);
        }
        buffer.pool->restored();
    }

    std::vector<char> occupied_rows(const Buffer& buffer, std::size_t i) const {
        const std::int64_t bytes = shape_.hooks[i].stored_bytes(1);
        std::vector<char> found;
        for (const std::int64_t slot : buffer.pool->occupied(i)) {
            const char* row = buffer.memory[i].data() + slot * bytes;
            found.insert(found.end(), row, row + bytes);
        }
        return found;
    }

    const Shape shape_;
    tb::Random random_;
    const std::string directory_;
    CUstream_st streams_[2];
    std::deque<Memory> buffers_;  // the device may touch them as long as the pair lasts
    std::unique_ptr<Buffer> host_, cuda_;
};

void same_batches(const Shape& shape, std::uint64_t seed, const std::string& directory) {
    Pair pair(shape, seed, directory);
    for (int calls = 0; calls < 90; ++calls) {
        if (calls == 40) pair.resume();
        const std::int64_t n = pair.below(24);
        // It is kept full, then emptied, then filled again.
        const std::int64_t puts_of_8 = calls >= 50 && calls < 65 ? 2 : 6;
        if (pair.below(8) < puts_of_8) {
            pair.put(n);
        } else {
            pair.take(n);
        }
    }
    pair.finish();
}

// Once every call has come, no more memory is taken: the device does nothing during a round, and all of
// it after that.
void steady(const Shape& shape) {
    gpu::trying = "the steady state";
    Pair pair(shape, 5, "");
    gpu::device.haste = 0;
    for (int i = 0; i < 6; ++i) pair.put(16);
    long allocations = 0;
    for (int round = 0; round < 60; ++round) {
        pair.take(16);
        pair.put(16);
        gpu::run_all();
        if (round == 10) allocations = gpu::device.allocations;
    }
    require(gpu::device.allocations == allocations, "calls take no memory any more");
    pair.finish();
}

}  // namespace

void pools_agree(const std::string& directory) {
    const std::vector<Hook> odd{{33, RowKind::f32, RowKind::f32},
                                {100, RowKind::mx8, RowKind::f32},
                                {7, RowKind::bf16, RowKind::f32},
                                {1, RowKind::f16, RowKind::f16}};
    const std::vector<Hook> even{{64, RowKind::mx8, RowKind::bf16},
                                 {264, RowKind::mx8, RowKind::f32},
                                 {16, RowKind::bf16, RowKind::bf16},
                                 {8, RowKind::f32, RowKind::bf16}};
    constexpr std::int64_t kTiers[][2] = {{0, 0}, {6, 0}, {3, 12}, {6, 8}};  // segments in memory, on disk
    std::uint64_t seed = 0;
    for (const auto& hooks : {odd, even})
        for (const bool one_order : {true, false})
            for (const auto& [host, disk] : kTiers) {
                gpu::trying = "pools, seed " + std::to_string(seed);
                same_batches({hooks, one_order, host, disk}, seed++, directory);
                gpu::require_freed();
            }
    steady({odd, false, 0, 0});
    steady({even, true, 6, 0});
}
