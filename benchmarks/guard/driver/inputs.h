// Arrays of made-up numbers, the same on every machine.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "kernels.h"

namespace guard {

// Memory that copies share. Aligned to a page: a kernel may look at an address's alignment.
template <class T>
class Array {
  public:
    explicit Array(std::int64_t n, T value = T{}) : n_(n) {
        const std::size_t bytes = (static_cast<std::size_t>(n) * sizeof(T) + 4095) / 4096 * 4096;
        data_.reset(static_cast<T*>(std::aligned_alloc(4096, std::max<std::size_t>(bytes, 4096))), std::free);
        if (!data_) throw std::bad_alloc();
        std::fill_n(data_.get(), n, value);
    }
    T* data() const { return data_.get(); }
    std::int64_t size() const { return n_; }
    T& operator[](std::int64_t i) const { return data_.get()[i]; }

  private:
    std::int64_t n_;
    std::shared_ptr<T> data_;
};

// splitmix64 (Steele, Lea and Flood 2014), seeded by what it is for.
class Numbers {
  public:
    explicit Numbers(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    std::int64_t below(std::int64_t bound) {
        return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(bound));
    }
    float uniform() { return static_cast<float>(next() >> 40) / (1 << 24); }

  private:
    std::uint64_t state_;
};

// Uniform in [low, high).
inline Array<float> floats(std::int64_t n, std::uint64_t seed, float low = -1, float high = 1) {
    Array<float> made(n);
    Numbers numbers(seed);
    for (std::int64_t i = 0; i < n; ++i) made[i] = low + (high - low) * numbers.uniform();
    return made;
}

inline Array<std::uint16_t> as_bf16(const Array<float>& from) {
    Array<std::uint16_t> made(from.size());
    for (std::int64_t i = 0; i < from.size(); ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, &from[i], sizeof bits);
        made[i] = static_cast<std::uint16_t>(bits >> 16);
    }
    return made;
}

// A matrix in both of its forms.
struct Both {
    Array<float> wide;
    Array<std::uint16_t> narrow;

    Both(std::int64_t n, std::uint64_t seed) : wide(floats(n, seed)), narrow(as_bf16(wide)) {}
    tb::Matrix as(tb::Dtype dtype) const {
        if (dtype == tb::Dtype::f32) return {wide.data(), dtype};
        return {narrow.data(), dtype};
    }
};

}  // namespace guard
