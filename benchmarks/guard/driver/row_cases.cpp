#include "cases.h"

namespace guard {
namespace {

using Kind = tb::RowKind;

constexpr std::int64_t kRows = 200, kSlots = 300, kD = 512;

const char* name_of(Kind kind) {
    constexpr const char* names[] = {"fp32", "bf16", "fp16", "mx8"};
    return names[static_cast<int>(kind)];
}

}  // namespace

void rows(Cases& cases, const tb::Kernels& kernels) {
    const Both numbers(kRows * kD, 1);
    const Array<char> pool(kSlots * kD * 4), out(kRows * kD * 4);
    const Array<std::int64_t> slots(kRows);
    for (std::int64_t i = 0; i < kRows; ++i) slots[i] = i * 7 % kSlots;
    const Array<std::uint16_t> halves(kRows * kD, 0x3c00);

    const auto in = [=](Kind kind) -> const void* {
        if (kind == Kind::f32) return numbers.wide.data();
        return kind == Kind::bf16 ? numbers.narrow.data() : halves.data();
    };

    struct Way {
        Kind from, to;
    };
    for (const Way way : {Way{Kind::f32, Kind::f32}, Way{Kind::bf16, Kind::bf16}, Way{Kind::f16, Kind::f16},
                          Way{Kind::f32, Kind::bf16}, Way{Kind::bf16, Kind::f32}, Way{Kind::f32, Kind::mx8},
                          Way{Kind::bf16, Kind::mx8}}) {
        cases.push_back({std::string("put_rows ") + name_of(way.from) + " to " + name_of(way.to), [=] {
            kernels.put_rows({in(way.from), way.from, pool.data(), way.to, slots.data(), kRows, kD, 1});
        }});
    }
    for (const Kind kind : {Kind::f32, Kind::bf16, Kind::f16, Kind::mx8}) {
        cases.push_back({std::string("take_rows ") + name_of(kind), [=] {
            kernels.take_rows({pool.data(), kind, slots.data(), kRows, kD, out.data(), 1});
        }});
    }
    constexpr std::int64_t bytes = tb::row_bytes(Kind::mx8, kD);
    cases.push_back({"gather_rows", [=] {
        kernels.gather_rows(pool.data(), slots.data(), kRows, bytes, out.data(), 1);
    }});
    cases.push_back({"scatter_rows", [=] {
        kernels.scatter_rows(out.data(), slots.data(), kRows, bytes, pool.data(), 1);
    }});
}

}  // namespace guard
