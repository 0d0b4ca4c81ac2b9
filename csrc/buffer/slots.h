// Which slot of an activation buffer holds what, and which tokens go out next.
//
// The algorithm of the buffer without its memory: every device runs the same one, so the order of the
// tokens depends on the seed and on the sizes of puts and takes, and on nothing else. Incoming tokens
// get free slots; a take draws distinct occupied slots uniformly and frees them. Nothing moves: put
// and take cost time in the tokens they handle.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

namespace tb {

// xoshiro256++ (Blackman and Vigna 2019, arXiv:1805.01407), seeded by splitmix64.
class Random {
  public:
    using State = std::array<std::uint64_t, 4>;

    explicit Random(std::uint64_t seed);
    std::uint64_t next();
    // Uniform in [0, bound), exactly (Lemire 2019, arXiv:1805.10941). bound >= 1.
    std::uint64_t below(std::uint64_t bound);
    const State& state() const { return state_; }
    void set_state(const State& state);  // throws std::invalid_argument for all zeros

  private:
    State state_;
};

class Slots {
  public:
    Slots(std::int64_t capacity, std::uint64_t seed);  // throws std::invalid_argument

    std::int64_t capacity() const { return static_cast<std::int64_t>(slots_.size()); }
    std::int64_t size() const { return size_; }
    std::int64_t space() const { return capacity() - size_; }

    // The slots that the next n tokens will get. They are free until `commit`, so that a put that
    // fails leaves nothing behind.
    const std::int64_t* offer(std::int64_t n) const;
    void commit(std::int64_t n);

    // n distinct occupied slots, uniformly; they are free afterwards, and keep what they hold until
    // the next offer is written to.
    const std::int64_t* take(std::int64_t n);

    // The occupied slots, in the order that draws depend on.
    const std::int64_t* occupied() const { return slots_.data(); }

    // A pool that holds `size` tokens in slots 0 .. size - 1, in the order of `occupied`.
    void restore(std::int64_t size, const Random::State& random);
    const Random::State& random_state() const { return random_.state(); }

  private:
    std::vector<std::int64_t> slots_;  // a permutation: occupied ones first, then the free ones
    std::int64_t size_ = 0;
    Random random_;
};

}  // namespace tb
