// The buffer's C++ core under a sanitizer: every token once, rows intact, many threads.
//
// A consumer thread and the main thread share one buffer behind a lock, as two Python threads do;
// copies run outside of the lock on the pool of parallel.cpp. Exit status 0: all held.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "slots.h"
#include "table.h"

namespace {

void check(bool held, const char* what) {
    if (held) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

struct Buffer {
    Buffer(std::int64_t capacity, std::int64_t d)
        : slots(capacity, 7), pool(static_cast<std::size_t>(capacity * d)), width(d) {}

    tb::Slots slots;
    std::vector<float> pool;
    std::int64_t width;
    std::mutex lock;
};

std::int64_t put(Buffer& buffer, std::int64_t first, std::int64_t n) {
    std::vector<float> rows(static_cast<std::size_t>(n * buffer.width));
    for (std::int64_t i = 0; i < n * buffer.width; ++i)
        rows[static_cast<std::size_t>(i)] = static_cast<float>(first + i / buffer.width);
    const std::lock_guard<std::mutex> held(buffer.lock);
    if (buffer.slots.space() < n) return 0;
    const tb::PutRows p{rows.data(), tb::RowKind::f32, buffer.pool.data(), tb::RowKind::f32, buffer.slots.offer(n),
                        n, buffer.width, 4};
    check(tb::portable::put_rows(p).count == 0, "finite rows");
    buffer.slots.commit(n);
    return n;
}

void take(Buffer& buffer, std::int64_t n, std::vector<int>& seen) {
    std::vector<float> out(static_cast<std::size_t>(n * buffer.width));
    const std::lock_guard<std::mutex> held(buffer.lock);
    n = std::min(n, buffer.slots.size());
    const std::int64_t* places = buffer.slots.take(n);
    tb::portable::take_rows(buffer.pool.data(), places, n, buffer.width * 4, out.data(), 4);
    for (std::int64_t i = 0; i < n; ++i) {
        const float token = out[static_cast<std::size_t>(i * buffer.width)];
        for (std::int64_t j = 1; j < buffer.width; ++j)
            check(out[static_cast<std::size_t>(i * buffer.width + j)] == token, "a whole row");
        ++seen[static_cast<std::size_t>(token)];
    }
}

void stream(std::int64_t capacity, std::int64_t d, std::int64_t total) {
    Buffer buffer(capacity, d);
    std::vector<int> seen(static_cast<std::size_t>(total));
    std::thread consumer([&] {
        for (std::int64_t taken = 0; taken < total;) {
            take(buffer, 37, seen);
            taken = 0;
            for (const int count : seen) taken += count;
            std::this_thread::yield();
        }
    });
    for (std::int64_t done = 0; done < total;) {
        done += put(buffer, done, std::min<std::int64_t>(53, total - done));
        std::this_thread::yield();
    }
    consumer.join();
    for (const int count : seen) check(count == 1, "every token once");
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

int main() {
    stream(256, 33, 4000);
    stream(64, 1, 2000);
    stream(53, 130, 1000);
    tb::Slots slots(8, 0);
    refused([&] { slots.commit(9); }, "more than the space");
    refused([&] { slots.take(1); }, "more than there is");
    refused([&] { slots.restore(9, slots.random_state()); }, "more than the capacity");
    refused([] { tb::Slots(0, 0); }, "no capacity");
    std::puts("held");
    return 0;
}
