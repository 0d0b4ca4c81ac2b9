#include "cases.h"
#include "buffer/host_backend.h"
#include "buffer/pool.h"

namespace guard {
namespace {

constexpr std::int64_t kCapacity = 1600, kTake = 400, kD = 96;

const tb::Kernels* chosen = nullptr;
const tb::Kernels& row_kernels() { return *chosen; }

// A buffer of two hook points, an order each, that holds so many tokens; with host memory below it, or
// without.
struct Buffer {
    Array<float> incoming = floats(kTake * kD, 1);
    Array<std::uint16_t> narrow{kCapacity * kD}, out{kTake * kD};
    Array<char> small{kCapacity * tb::row_bytes(tb::RowKind::mx8, kD)};
    std::unique_ptr<tb::Pool> pool;

    Buffer(std::int64_t tokens, std::int64_t host_bytes) {
        const std::vector<tb::HookRows> hooks{{kD, tb::RowKind::bf16, narrow.data()},
                                              {kD, tb::RowKind::mx8, small.data()}};
        pool = std::make_unique<tb::Pool>(hooks, tb::PoolOptions{kCapacity, 7, false, {host_bytes, 0, ""}},
                                          tb::host_backend(hooks, row_kernels));
        for (; tokens > 0; tokens -= kTake) put();
    }
    void put() { pool->put({2, {incoming.data(), tb::RowKind::f32}}, kTake, {nullptr, 1}); }
    void take() { pool->take(kTake, {out.data(), out.data()}, {nullptr, 1}); }
};

}  // namespace

void buffers(Cases& cases, const tb::Kernels& kernels) {
    chosen = &kernels;
    const auto full = std::make_shared<Buffer>(kCapacity, 0);
    const auto space = std::make_shared<Buffer>(kCapacity - kTake, 0);
    const auto spilled = std::make_shared<Buffer>(kCapacity + kTake, std::int64_t{1} << 20);
    cases.push_back({"buffer put", [=] { space->put(); }});
    cases.push_back({"buffer take", [=] { full->take(); }});
    cases.push_back({"buffer take and put over host memory", [=] {
        spilled->take();
        spilled->put();
    }});
}

}  // namespace guard
