#include "parallel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace tb {
namespace {

struct Job {
    Job(ChunkFunction fn, void* context, std::int64_t chunks) : fn(fn), context(context), chunks(chunks) {}

    ChunkFunction fn;
    void* context;
    std::int64_t chunks;
    std::atomic<std::int64_t> next{0};
    std::atomic<int> joined{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    std::mutex error_mutex;

    // Called once by every thread that takes part.
    void run() {
        const int thread = joined.fetch_add(1, std::memory_order_relaxed);
        for (;;) {
            const std::int64_t chunk = next.fetch_add(1, std::memory_order_relaxed);
            if (chunk >= chunks || failed.load(std::memory_order_relaxed)) return;
            try {
                fn(context, chunk, thread);
            } catch (...) {
                const std::lock_guard<std::mutex> lock(error_mutex);
                if (!failed.exchange(true)) error = std::current_exception();
            }
        }
    }
};

class Pool {
  public:
    ~Pool() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    void run(Job& job, int threads) {
        // One job at a time: a second Python thread waits here for its turn.
        const std::lock_guard<std::mutex> turn(turn_);
        const int helpers = threads - 1;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < helpers) {
                const int index = static_cast<int>(workers_.size());
                workers_.emplace_back([this, index, seen = generation_] { loop(index, seen); });
            }
            job_ = &job;
            helpers_ = helpers;
            running_ = helpers;
            ++generation_;
        }
        wake_.notify_all();
        job.run();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        job_ = nullptr;
    }

  private:
    void loop(int index, std::uint64_t seen) {
        for (;;) {
            Job* job;
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
                if (stopping_) return;
                seen = generation_;
                if (index >= helpers_) continue;
                job = job_;
            }
            job->run();
            const std::lock_guard<std::mutex> lock(mutex_);
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    int helpers_ = 0, running_ = 0;
    std::uint64_t generation_ = 0;
    bool stopping_ = false;
};

// A forked child inherits the pool's memory but none of its threads: it gets a pool of its own,
// and the parent's is leaked on purpose (joining threads that do not exist would hang).
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    const std::lock_guard<std::mutex> lock(mutex);
    if (owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

// torch brings an OpenMP runtime whose threads keep spinning for a while after each of its ops. A
// second pool would fight them for the cores, so the kernels join that runtime when it is there:
// GOMP_parallel is the stable entry point of GNU's and of LLVM's and Intel's runtimes. OpenMP does not
// survive fork(), so a forked child uses the pool above.
using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

OpenMpParallel openmp() {
    static const OpenMpParallel found =
        reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    static const pid_t owner = getpid();
    return owner == getpid() ? found : nullptr;
}

}  // namespace

void parallel_for_raw(std::int64_t chunks, int threads, ChunkFunction fn, void* context) {
    if (chunks <= 0) return;
    Job job(fn, context, chunks);
    if (threads > chunks) threads = static_cast<int>(chunks);
    if (threads <= 1) {
        job.run();
    } else if (const OpenMpParallel run = openmp()) {
        run([](void* shared) { static_cast<Job*>(shared)->run(); }, &job, static_cast<unsigned>(threads), 0);
    } else {
        pool().run(job, threads);
    }
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace tb
