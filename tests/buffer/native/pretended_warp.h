// The lanes of a pretended GPU: a warp is 32 fibres, and what its lanes do together is done between them.
//
// Every lane runs up to the warp's next collective (a shuffle, a vote) or to its end; then all go on. What
// CUDA leaves undefined, a collective that some lanes do not come to, ends the program with a message.
#pragma once
#include <cuda_runtime.h>

// nvcc's words.
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

inline uint3 blockIdx, threadIdx;

namespace gpu {

inline std::string trying;  // what a message of failure begins with

inline void require(bool held, const char* what) {
    if (held) return;
    std::fprintf(stderr, "%s: failed: %s\n", trying.c_str(), what);
    std::abort();
}

// The lanes of a warp, one warp at a time.
class Warp {
  public:
    static constexpr int kLanes = 32;
    using Values = std::array<std::uint32_t, kLanes>;

    void run(unsigned first_thread, const std::function<void()>& kernel) {
        kernel_ = &kernel;
        first_thread_ = first_thread;
        fibres_ = true;
        start(0);
        go_on(0);
        fibres_ = !ended_[0];  // without a collective in the first lane, there is none: no need of them
        for (std::size_t i = 1; i < kLanes; ++i) {
            if (fibres_) start(i);
            go_on(i);
        }
        while (met()) {
            gathered_ = posted_;
            for (std::size_t i = 0; i < kLanes; ++i) go_on(i);
        }
    }

    // Called in a lane: hands in its value, and returns those of all lanes once they are there.
    const Values& meet(int operation, std::uint32_t value) {
        require(fibres_, "a collective needs all lanes of its warp");
        const std::size_t me = lane_;
        posted_[me] = value;
        operations_[me] = operation;
        swapcontext(&lanes_[me], &scheduler_);
        return gathered_;
    }

    std::size_t lane() const { return lane_; }

  private:
    static constexpr std::size_t kStack = 128 << 10;

    static void enter();

    void start(std::size_t i) {
        getcontext(&lanes_[i]);
        lanes_[i].uc_stack.ss_sp = stacks_.data() + kStack * i;
        lanes_[i].uc_stack.ss_size = kStack;
        lanes_[i].uc_link = &scheduler_;
        makecontext(&lanes_[i], enter, 0);
    }

    // A lane, up to its next collective, or its end.
    void go_on(std::size_t i) {
        lane_ = i;
        threadIdx = {first_thread_ + static_cast<unsigned>(i), 0, 0};
        ended_[i] = false;
        if (fibres_) {
            swapcontext(&scheduler_, &lanes_[i]);
        } else {
            enter();
        }
    }

    // Whether the lanes are in a collective, which must be the same one, rather than at their ends.
    bool met() const {
        const auto ended = std::count(ended_.begin(), ended_.end(), true);
        if (ended == kLanes) return false;
        require(ended == 0, "a collective needs all lanes of its warp");
        const auto same = std::count(operations_.begin(), operations_.end(), operations_[0]);
        require(same == kLanes, "all lanes are in the same collective");
        return true;
    }

    const std::function<void()>* kernel_ = nullptr;
    unsigned first_thread_ = 0;
    bool fibres_ = false;
    std::size_t lane_ = 0;  // which one runs
    ucontext_t scheduler_;
    std::array<ucontext_t, kLanes> lanes_;
    std::array<bool, kLanes> ended_{};
    std::array<int, kLanes> operations_{};
    Values posted_{}, gathered_{};
    std::vector<char> stacks_ = std::vector<char>(kStack * kLanes);
};

inline Warp warp;

inline void Warp::enter() {
    (*warp.kernel_)();
    warp.ended_[warp.lane_] = true;
}

}  // namespace gpu

inline std::uint32_t __shfl_xor_sync(unsigned, std::uint32_t value, int mask) {
    return gpu::warp.meet(mask, value)[gpu::warp.lane() ^ static_cast<std::size_t>(mask)];
}

inline int __any_sync(unsigned, int predicate) {
    const gpu::Warp::Values& all = gpu::warp.meet(-1, predicate != 0);
    return std::count(all.begin(), all.end(), 1u) > 0;
}

inline void atomicAdd(unsigned long long* to, unsigned long long value) { *to += value; }

inline std::uint32_t max(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }
