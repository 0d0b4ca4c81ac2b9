#include "buffer/slots.h"

#include <numeric>
#include <stdexcept>
#include <utility>

namespace tb {
namespace {

std::uint64_t rotated(std::uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }

}  // namespace

Random::Random(std::uint64_t seed) {
    for (std::uint64_t& word : state_) {  // splitmix64
        seed += 0x9e3779b97f4a7c15u;
        std::uint64_t z = seed;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        word = z ^ (z >> 31);
    }
}

std::uint64_t Random::next() {
    const std::uint64_t result = rotated(state_[0] + state_[3], 23) + state_[0];
    const std::uint64_t shifted = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= shifted;
    state_[3] = rotated(state_[3], 45);
    return result;
}

std::uint64_t Random::below(std::uint64_t bound) {
    // The high half of a 32 x 32 bit product; the few low halves that would favour some results are
    // drawn again. 32 bits are enough: a pool has fewer slots.
    const std::uint64_t threshold = (std::uint64_t{1} << 32) % bound;
    for (;;) {
        const std::uint64_t product = (next() >> 32) * bound;
        if ((product & 0xffffffffu) >= threshold) return product >> 32;
    }
}

void Random::set_state(const State& state) {
    if ((state[0] | state[1] | state[2] | state[3]) == 0)
        throw std::invalid_argument("random state: expected four numbers that are not all 0");
    state_ = state;
}

Slots::Slots(std::int64_t capacity, std::uint64_t seed) : random_(seed) {
    if (capacity < 1 || capacity >= (std::int64_t{1} << 32))
        throw std::invalid_argument("capacity: expected 1 to 2^32 - 1 tokens");
    slots_.resize(static_cast<std::size_t>(capacity));
    std::iota(slots_.begin(), slots_.end(), std::int64_t{0});
}

const std::int64_t* Slots::offer(std::int64_t n) const {
    if (n < 0 || n > space()) throw std::invalid_argument("put: more tokens than there is space for");
    return slots_.data() + size_;
}

void Slots::commit(std::int64_t n) {
    offer(n);
    size_ += n;
}

const std::int64_t* Slots::take(std::int64_t n) {
    if (n < 0 || n > size_) throw std::invalid_argument("take: more tokens than there are");
    for (std::int64_t i = 0; i < n; ++i) {
        --size_;
        std::swap(slots_[random_.below(static_cast<std::uint64_t>(size_) + 1)], slots_[size_]);
    }
    return slots_.data() + size_;
}

void Slots::restore(std::int64_t size, const Random::State& random) {
    if (size < 0 || size > capacity()) throw std::invalid_argument("restore: more tokens than the capacity");
    random_.set_state(random);
    std::iota(slots_.begin(), slots_.end(), std::int64_t{0});
    size_ = size;
}

}  // namespace tb
