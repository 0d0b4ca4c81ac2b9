// The buffer's C++ core under a sanitizer: every token once, rows intact, many threads, all tiers.
//
//     stress DIRECTORY
//
// A producer and a consumer share one pool, while its files are written and read beside them. Exit
// status 0: all held.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "buffer/host_backend.h"
#include "buffer/pool.h"
#include "kernels/table.h"

namespace {

void check(bool held, const char* what) {
    if (held) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

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

constexpr tb::Caller kCaller{nullptr, 4};

struct Buffer {
    Buffer(std::int64_t capacity, std::int64_t d, const tb::TierOptions& tiers)
        : width(d), wide(static_cast<std::size_t>(capacity * d)),
          small(static_cast<std::size_t>(capacity * tb::row_bytes(tb::RowKind::mx8, d))) {
        std::vector<tb::HookRows> hooks{{d, tb::RowKind::f32, wide.data()}, {d, tb::RowKind::mx8, small.data()}};
        auto backend = tb::host_backend(hooks, rows_only);
        pool = std::make_unique<tb::Pool>(hooks, tb::PoolOptions{capacity, 7, true, tiers}, std::move(backend));
    }

    std::int64_t width;
    std::vector<float> wide;
    std::vector<char> small;
    std::unique_ptr<tb::Pool> pool;
};

std::int64_t put(Buffer& buffer, std::int64_t first, std::int64_t n) {
    std::vector<float> rows(static_cast<std::size_t>(n * buffer.width));
    for (std::int64_t i = 0; i < n * buffer.width; ++i)
        rows[static_cast<std::size_t>(i)] = static_cast<float>(first + i / buffer.width);
    try {
        const std::vector<tb::Incoming> incoming(2, {rows.data(), tb::RowKind::f32});
        for (const tb::BadRows& bad : buffer.pool->put(incoming, n, kCaller)) check(bad.count == 0, "finite rows");
    } catch (const std::invalid_argument&) {
        return 0;  // no space now
    }
    return n;
}

std::int64_t take(Buffer& buffer, std::int64_t n, std::vector<int>& seen) {
    n = std::min(n, buffer.pool->tokens_in() - buffer.pool->tokens_out());
    std::vector<float> out(static_cast<std::size_t>(n * buffer.width));
    std::vector<std::uint16_t> narrow(out.size());
    buffer.pool->take(n, {out.data(), narrow.data()}, kCaller);
    for (std::int64_t i = 0; i < n; ++i) {
        const float token = out[static_cast<std::size_t>(i * buffer.width)];
        for (std::int64_t j = 1; j < buffer.width; ++j)
            check(out[static_cast<std::size_t>(i * buffer.width + j)] == token, "a whole row");
        ++seen[static_cast<std::size_t>(token)];
    }
    return n;
}

void stream(std::int64_t capacity, std::int64_t d, std::int64_t total, const tb::TierOptions& tiers = {}) {
    Buffer buffer(capacity, d, tiers);
    std::vector<int> seen(static_cast<std::size_t>(total));
    std::thread consumer([&] {
        for (std::int64_t taken = 0, n = 37; taken < total;) {
            taken += take(buffer, n, seen);
            std::this_thread::yield();
        }
    });
    for (std::int64_t done = 0; done < total;) {
        done += put(buffer, done, std::min<std::int64_t>(41, total - done));
        std::this_thread::yield();
    }
    consumer.join();
    for (const int count : seen) check(count == 1, "every token once");
}

// Saved in the middle, with tiers half full, and continued by another pool.
void resume(const tb::TierOptions& tiers) {
    constexpr std::int64_t kTotal = 400, kWidth = 5;
    std::vector<int> seen(kTotal);
    tb::Pool::State state;
    std::vector<std::vector<char>> pools, segments;
    {
        Buffer buffer(64, kWidth, tiers);
        for (std::int64_t done = 0; done < 110;) done += put(buffer, done, 10);
        take(buffer, 30, seen);
        state = buffer.pool->state();
        for (const std::int64_t slot : buffer.pool->occupied(0)) {
            const char* row = reinterpret_cast<const char*>(buffer.wide.data() + slot * kWidth);
            pools.emplace_back(row, row + kWidth * 4);
        }
        const auto bytes = static_cast<std::size_t>(buffer.pool->segment_tokens() * kWidth * 4);
        std::int64_t i = 0;
        for (const tb::Tiers::Entry& entry : state.tiers.segments) {
            if (entry.on_disk) continue;
            segments.emplace_back(bytes);
            buffer.pool->segment(i++, 0, segments.back().data(), false);
        }
        buffer.pool->saved();
    }
    Buffer buffer(64, kWidth, tiers);
    buffer.pool->restore(state);
    for (std::size_t i = 0; i < pools.size(); ++i)
        std::copy(pools[i].begin(), pools[i].end(),
                  reinterpret_cast<char*>(buffer.wide.data() + static_cast<std::int64_t>(i) * kWidth));
    for (std::size_t i = 0; i < segments.size(); ++i)
        buffer.pool->segment(static_cast<std::int64_t>(i), 0, segments[i].data(), true);
    buffer.pool->restored();
    for (std::int64_t done = 110; done < kTotal;) {
        done += put(buffer, done, std::min<std::int64_t>(10, kTotal - done));
        take(buffer, 7, seen);
    }
    while (take(buffer, 7, seen) > 0) {
    }
    for (const int count : seen) check(count == 1, "every token once, over two pools");
}

template <class Call>
void refused(Call call, const char* what) {
    try {
        call();
    } catch (const std::exception&) {
        return;
    }
    check(false, what);
}

}  // namespace

int main(int, char** arguments) {
    const std::string directory = arguments[1];
    constexpr std::int64_t kMegabyte = 1 << 20;
    stream(256, 33, 4000);
    stream(64, 1, 2000);
    stream(64, 33, 3000, {kMegabyte / 8, 0, ""});
    stream(64, 33, 3000, {3 * 8192, kMegabyte / 4, directory});
    stream(256, 130, 3000, {kMegabyte / 4, kMegabyte, directory});
    resume({kMegabyte / 8, 0, ""});
    resume({3 * 8192, kMegabyte / 8, directory});
    resume({5 * 8192, kMegabyte / 8, directory});
    tb::Slots slots(8, 0);
    refused([&] { slots.commit(9); }, "more than the space");
    refused([&] { slots.take(1); }, "more than there is");
    refused([&] { slots.restore(9, slots.random_state()); }, "more than the capacity");
    refused([] { tb::Slots(0, 0); }, "no capacity");
    check(tb::crc32c("123456789", 9) == 0xe3069283u, "the published check value of CRC-32C");
    std::puts("held");
    return 0;
}
