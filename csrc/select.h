// Exact selection of the largest pre-activations, with the tie rule of the project: of equal values
// the lower index is first, and a NaN is larger than every number.
#pragma once
#include <algorithm>
#include <limits>

#include "vec.h"

namespace tb {
namespace TB_ISA {

// Order-preserving map of floats to unsigned integers (-0 equals +0, NaN is the largest).
inline std::uint32_t ordered_bits(float value) {
    if (value != value) return 0xffffffffu;
    value += 0.0f;
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

inline float from_ordered_bits(std::uint32_t key) {
    if (key == 0xffffffffu) return std::numeric_limits<float>::quiet_NaN();
    const std::uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// One pre-activation of a row as a single integer: larger is better, ties to the lower column.
struct RowEntry {
    std::uint64_t key;

    RowEntry() = default;
    RowEntry(float value, std::uint32_t column)
        : key(static_cast<std::uint64_t>(ordered_bits(value)) << 32 | (0xffffffffu - column)) {}
    float value() const { return from_ordered_bits(static_cast<std::uint32_t>(key >> 32)); }
    std::int32_t column() const {
        return static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(key));
    }
    bool operator<(const RowEntry& other) const { return key > other.key; }  // best first
};

// One positive pre-activation of a batch; `flat` is row * F + column.
struct BatchEntry {
    std::uint32_t bits;
    std::int64_t flat;

    bool operator<(const BatchEntry& other) const {  // best first
        return bits != other.bits ? bits > other.bits : flat < other.flat;
    }
};

}  // namespace TB_ISA
}  // namespace tb
