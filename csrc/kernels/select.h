// Exact selection of the largest pre-activations, with the tie rule of the project: of equal values
// the lower index is first, and a NaN is larger than every number.
#pragma once
#include <algorithm>
#include <limits>

#include "kernels/vec.h"

namespace tb {
namespace TB_ISA {

// Order-preserving map of floats to integers (-0 equals +0, NaN is the largest).
inline std::int32_t ordered(float value) {
    if (value != value) return std::numeric_limits<std::int32_t>::max();
    value += 0.0f;
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline float from_ordered(std::int32_t key) {
    if (key == std::numeric_limits<std::int32_t>::max()) return std::numeric_limits<float>::quiet_NaN();
    const std::int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A candidate: its ordered value, and its column in a row or its place row * F + column in a batch.
template <class Position>
struct Candidate {
    std::int32_t key;
    Position position;

    bool operator<(const Candidate& other) const {  // best first
        return key != other.key ? key > other.key : position < other.position;
    }
};

}  // namespace TB_ISA
}  // namespace tb
