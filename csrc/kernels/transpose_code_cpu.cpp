// Groups a code's entries by feature, rows ascending: a counting sort in three passes.
//
// Each part of the rows counts its features; a scan over (feature, part) gives every part its own
// place in every feature's list; the parts then place their entries without touching each other.
#include <algorithm>

#include "kernels/table.h"
#include "kernels/vec.h"
#include "parallel.h"

namespace tb {
namespace TB_ISA {

void transpose_code(const Code& code, std::int64_t F, std::int64_t* feature_offsets, std::int32_t* rows,
                    std::int32_t* positions, int threads) {
    const std::int64_t parts = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, code.N));
    const std::unique_ptr<std::int64_t[]> place(new std::int64_t[parts * F]());
    const auto first_row = [&](std::int64_t part) { return code.N * part / parts; };

    auto count = [&](std::int64_t part, int) {
        std::int64_t* mine = place.get() + part * F;
        for (std::int64_t p = code.begin(first_row(part)); p < code.begin(first_row(part + 1)); ++p)
            ++mine[code.indices[p]];
    };
    parallel_for(parts, threads, count);

    std::int64_t total = 0;
    for (std::int64_t i = 0; i < F; ++i) {
        feature_offsets[i] = total;
        for (std::int64_t part = 0; part < parts; ++part) {
            const std::int64_t entries = place[part * F + i];
            place[part * F + i] = total;
            total += entries;
        }
    }
    feature_offsets[F] = total;

    auto put = [&](std::int64_t part, int) {
        std::int64_t* mine = place.get() + part * F;
        for (std::int64_t n = first_row(part); n < first_row(part + 1); ++n) {
            for (std::int64_t p = code.begin(n); p < code.begin(n + 1); ++p) {
                const std::int64_t slot = mine[code.indices[p]]++;
                rows[slot] = static_cast<std::int32_t>(n);
                positions[slot] = static_cast<std::int32_t>(p);
            }
        }
    };
    parallel_for(parts, threads, put);
}

}  // namespace TB_ISA
}  // namespace tb
