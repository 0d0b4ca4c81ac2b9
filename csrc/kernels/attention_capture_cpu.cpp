// Attention of grouped queries with statistics of every row, by the online softmax (Milakov and
// Gimelshein 2018, arXiv:1805.02867): the scores of a few rows and a few hundred keys are in L1 while
// they are looked at, and are never written out.
//
//   for a kv head and a block of rows (a row is one query of one of its query heads)     (parallel)
//     for a chunk of keys that some row sees: pack keys and values, which then stay in L2
//       for MR rows: scores = q kᵀ; maximum, largest, targets; exp, sums; out = out · shrink + p v
//
// A score s is kept as it comes out of the matmul (or as its tanh) and scaled as late as can be: p =
// 2^(unit (s - max)), unit = scale · log2 e. So keys whose products tie do tie, and the maximum's p is 1.
// A key's bias is added relative to the row's own, whose difference is exact where p is not small.
//
// A row's results depend on the chunks, which begin at fixed keys, and never on blocks or threads: the MR
// rows it is computed with are the same whatever they are, and keys it does not see add exact zeros.
#include "kernels/attention.h"

#include <limits>

#include "kernels/attention_tile.h"
#include "kernels/exp.h"
#include "kernels/table.h"

namespace tb {
namespace TB_ISA {
namespace {

constexpr std::int64_t kBlockFloats = 128 << 10, kMostRows = 2048;  // of queries in a block
constexpr std::int64_t kDepthOfSum = 128;  // products summed in one go: short sums round less
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

// One query of one head. Sums are of p over the keys so far.
struct Row {
    std::int64_t token, query;  // its place in [B, T] and in [B, H, T]
    std::int64_t lo, hi;        // keys it may see; none: 0, 0
    std::int64_t at;            // its own position
    std::int32_t segment;
    float max;
    double sum, weighted, distance, last;  // Σ p, Σ p log2 p, Σ p (at - j), Σ p over the last keys
};

float exp2_of(double x) {
    return exp2(larger(broadcast(kExp2Floor), broadcast(static_cast<float>(x))))[0];
}

template <class T, bool kBiased>
class Attention {
  public:
    explicit Attention(const AttentionCapture& a)
        : a_(a), group_(a.H / a.H_kv), rows_(a.T * group_), keys_(a.D > 128 ? kMostKeys / 2 : kMostKeys),
          stride_(round_up(a.D, kLanes)), window_(a.window ? std::min(a.window, a.S) : a.S),
          last_n_(std::min(a.last_n, a.S)), unit_((a.softcap > 0 ? a.softcap : a.scale) * kLog2E),
          // Large, as every block packs its keys anew; small enough for threads to share the uneven work.
          block_rows_(round_up(std::min({kBlockFloats / a.D, kMostRows,
                                         std::max<std::int64_t>(16 * MR, a.B * a.H_kv * rows_ / (8 * a.threads))}),
                               MR)) {}

    void run() {
        const std::int64_t heads = a_.B * a_.H_kv, blocks = (rows_ + block_rows_ - 1) / block_rows_;
        const std::int64_t size = carve(nullptr).size;
        const Scratch scratch(a_.threads * size);
        auto body = [&](std::int64_t item, int thread) {
            Local local = carve(scratch.as<char>() + thread * size);
            // The last rows see the most keys: they are begun first.
            block(local, item % heads, (blocks - 1 - item / heads) * block_rows_);
        };
        parallel_for(heads * blocks, a_.threads, body);
    }

  private:
    // A thread's memory: its block's queries, results and rows, and one chunk of keys.
    struct Local {
        float *q, *k, *v, *scores, *acc;
        Row* rows;
        std::int32_t* segments;
        std::int64_t size;
    };

    // The pieces of `base`; of a null one, their size alone.
    Local carve(char* base) const {
        std::int64_t size = 0;
        auto take = [&](std::int64_t bytes) {
            char* piece = base ? base + size : nullptr;
            size += round_up(bytes, 64);
            return piece;
        };
        Local local;
        local.q = reinterpret_cast<float*>(take(block_rows_ * a_.D * 4));
        local.k = reinterpret_cast<float*>(take(keys_ * a_.D * 4));
        local.v = reinterpret_cast<float*>(take(kMostKeys * round_up(a_.D, NR) * 4));
        local.scores = reinterpret_cast<float*>(take(MR * kStride * 4));
        local.acc = reinterpret_cast<float*>(take(block_rows_ * stride_ * 4));
        local.rows = reinterpret_cast<Row*>(take(block_rows_ * static_cast<std::int64_t>(sizeof(Row))));
        local.segments = reinterpret_cast<std::int32_t*>(take(round_up(kMostKeys, NR) * 4));
        local.size = round_up(size, 4096);
        return local;
    }

    void block(Local& local, std::int64_t head, std::int64_t row0) const {
        const std::int64_t rows = std::min(block_rows_, rows_ - row0), padded = round_up(rows, MR);
        start(local, head, row0, rows);
        Range seen = range(local.rows, padded, {0, a_.S});
        std::fill(local.acc, local.acc + padded * stride_, 0.0f);
        const T* k = static_cast<const T*>(a_.k) + head * a_.S * a_.D;
        const T* v = static_cast<const T*>(a_.v) + head * a_.S * a_.D;
        for (std::int64_t first = seen.lo / keys_ * keys_; first < seen.hi; first += keys_) {
            Range keys{std::max<std::int64_t>(seen.lo - first, 0), std::min(seen.hi - first, keys_)};
            if (a_.segments) {
                const std::int32_t* ids = a_.segments + head / a_.H_kv * a_.S + first;
                std::copy(ids, ids + keys.hi, local.segments);
                std::fill(local.segments + keys.hi, local.segments + round_up(keys.hi, NR), -1);
                keys = trim(local, local.rows, padded, keys);
            }
            if (keys.empty()) continue;
            for (std::int64_t j = keys.lo / NR * NR; j < keys.hi; j += NR)
                pack_keys(k + (first + j) * a_.D, std::min<std::int64_t>(NR, a_.S - first - j), a_.D,
                          local.k + j * a_.D);
            pack_values(v + first * a_.D, keys, a_.D, local.v);
            for (std::int64_t r = 0; r < padded; r += MR) {
                Range here = range(local.rows + r, MR, {first + keys.lo, first + keys.hi});
                here = {here.lo - first, here.hi - first};
                if (a_.segments) here = trim(local, local.rows + r, MR, here);
                if (!here.empty()) tile(local, r, first, here);
            }
        }
        for (std::int64_t r = 0; r < rows; ++r) finish(local.rows[r], local.acc + r * stride_);
    }

    // Packs the queries and sets everything a row adds to.
    void start(Local& local, std::int64_t head, std::int64_t row0, std::int64_t rows) const {
        const std::int64_t batch = head / a_.H_kv;
        for (std::int64_t r = 0; r < round_up(rows, MR); ++r) {
            float* q = local.q + r / MR * MR * a_.D + r % MR;
            Row& row = local.rows[r] = Row{};
            row.segment = -1;
            row.max = -kInfinity;
            if (r >= rows) {
                for (std::int64_t i = 0; i < a_.D; ++i) q[i * MR] = 0;
                continue;
            }
            const std::int64_t t = (row0 + r) / group_;
            row.token = batch * a_.T + t;
            row.query = (head * group_ + (row0 + r) % group_) * a_.T + t;
            row.at = t + a_.S - a_.T;
            if (a_.segments) row.segment = a_.segments[batch * a_.S + row.at];
            if (!a_.segments || row.segment >= 0) {
                row.lo = std::max<std::int64_t>(row.at - window_ + 1, 0);
                row.hi = std::min(row.at + (a_.causal ? 1 : window_), a_.S);
            }
            const T* from = static_cast<const T*>(a_.q) + row.query * a_.D;
            for (std::int64_t i = 0; i < a_.D; ++i) q[i * MR] = to_float(from[i]);
            // Scores until the row is finished.
            std::fill_n(a_.mass + row.query * a_.M, a_.M, -kInfinity);
            std::fill_n(a_.top_p + row.query * a_.top, a_.top, -kInfinity);
            std::fill_n(a_.top_index + row.query * a_.top, a_.top, -1);
        }
    }

    // The keys within `keys` that some row may see.
    static Range range(const Row* rows, std::int64_t n, Range keys) {
        Range found{keys.hi, keys.lo};
        for (std::int64_t r = 0; r < n; ++r) {
            if (rows[r].lo >= rows[r].hi) continue;
            found = {std::min(found.lo, rows[r].lo), std::max(found.hi, rows[r].hi)};
        }
        return {std::max(found.lo, keys.lo), std::min(found.hi, keys.hi)};
    }

    // Keys without those at both ends whose segment no row can have: packed documents cost only theirs.
    static Range trim(const Local& local, const Row* rows, std::int64_t n, Range keys) {
        std::int32_t least = std::numeric_limits<std::int32_t>::max(), most = -1;
        for (std::int64_t r = 0; r < n; ++r) {
            if (rows[r].segment < 0) continue;
            least = std::min(least, rows[r].segment);
            most = std::max(most, rows[r].segment);
        }
        auto outside = [&](std::int64_t j) { return local.segments[j] < least || local.segments[j] > most; };
        while (!keys.empty() && outside(keys.lo)) ++keys.lo;
        while (!keys.empty() && outside(keys.hi - 1)) --keys.hi;
        return keys;
    }

    // MR rows and the keys first + [keys.lo, keys.hi) of one chunk.
    void tile(Local& local, std::int64_t r0, std::int64_t first, Range keys) const {
        for (std::int64_t j = keys.lo / NR * NR; j < keys.hi; j += NR)
            for (std::int64_t i = 0; i < a_.D; i += kDepthOfSum)
                micro_kernel(local.q + r0 * a_.D + i * MR, local.k + j * a_.D + i * NR,
                             std::min(kDepthOfSum, a_.D - i), local.scores + j, kStride, i > 0);
        float shift[round_up_lanes(MR)] = {}, shrink[round_up_lanes(MR)];
        Range seen[MR];
        std::int64_t best[MR] = {};
        for (int r = 0; r < MR; ++r) {
            Row& row = local.rows[r0 + r];
            seen[r] = {std::max(row.lo - first, keys.lo), std::min(row.hi - first, keys.hi)};
            const float before = row.max;
            if (!seen[r].empty()) best[r] = look(local, row, local.scores + r * kStride, first, keys, seen[r]);
            if (before > -kInfinity) shift[r] = (before - row.max) * static_cast<float>(unit_);
        }
        for (int r = 0; r < MR; r += kLanes)
            store(shrink + r, exp2(larger(broadcast(kExp2Floor), load(shift + r))));
        for (int r = 0; r < MR; ++r) {
            float* s = local.scores + r * kStride;
            if (seen[r].empty()) {
                std::fill(s + keys.lo, s + keys.hi, 0.0f);
            } else {
                add(local.rows[r0 + r], s, first, keys, seen[r], best[r], shift[r], shrink[r]);
            }
        }
        const float *p = local.scores + keys.lo, *v = local.v;
        float* acc = local.acc + r0 * stride_;
        for (std::int64_t column = 0; column < a_.D; column += NR, v += NR * kMostKeys) {
            if (a_.D - column <= kLanes) {
                add_values<1>(p, v + keys.lo * kLanes, keys.hi - keys.lo, shrink, acc + column, stride_);
            } else {
                add_values<2>(p, v + keys.lo * NR, keys.hi - keys.lo, shrink, acc + column, stride_);
            }
        }
    }

    static constexpr int round_up_lanes(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

    // Caps and masks a row's scores, and finds the largest and the targets'. Returns where the row's
    // maximum stands in this chunk, or -1.
    std::int64_t look(const Local& local, Row& row, float* s, std::int64_t first, Range keys, Range seen) const {
        const std::int64_t begin = keys.lo / kLanes * kLanes, end = round_up(keys.hi, kLanes);
        if (a_.softcap > 0) {
            const float factor = static_cast<float>(a_.scale / a_.softcap);
            for (std::int64_t j = begin; j < end; j += kLanes) store(s + j, tanh(factor * load(s + j)));
        }
        if constexpr (kBiased) {
            const float* bias = a_.key_bias + row.query / a_.T * a_.S + first;
            const float own = bias[row.at - first], per = static_cast<float>(kLog2E / unit_);
            const std::int64_t there = std::min(end, (a_.S - first) / kLanes * kLanes);
            std::int64_t j = begin;
            for (; j < there; j += kLanes) store(s + j, load(s + j) + per * (load(bias + j) - own));
            for (; j < keys.hi; ++j) s[j] += per * (bias[j] - own);
        }
        if (a_.segments) {
            const VecI32 mine = VecI32{} + row.segment;
            for (std::int64_t j = begin; j < end; j += kLanes) {
                VecI32 ids;
                std::memcpy(&ids, local.segments + j, sizeof ids);
                store(s + j, ids == mine ? load(s + j) : broadcast(-kInfinity));
            }
        }
        std::fill(s + begin, s + seen.lo, -kInfinity);
        std::fill(s + seen.hi, s + end, -kInfinity);
        Vec most = broadcast(-kInfinity), other = most;
        std::int64_t j = begin;
        for (; j + kLanes < end; j += 2 * kLanes) {
            most = larger(load(s + j), most);
            other = larger(load(s + j + kLanes), other);
        }
        if (j < end) most = larger(load(s + j), most);
        const float max = largest(larger(most, other));
        std::int64_t at = -1;
        if (max >= row.max && max > -kInfinity) {
            row.max = max;
            at = find(s, seen, max);
        }
        const std::int32_t* target = a_.targets + row.token * a_.M;
        for (std::int64_t m = 0; m < a_.M; ++m) {
            const std::int64_t key = target[m] - first;
            if (key >= seen.lo && key < seen.hi) a_.mass[row.query * a_.M + m] = s[key];
        }
        if (a_.top == 0) return at;
        float* best = a_.top_p + row.query * a_.top;
        std::int32_t* index = a_.top_index + row.query * a_.top;
        if (max > best[a_.top - 1]) {
            if (a_.top > 1) {
                keep_largest(s, seen, first, a_.top, best, index);
            } else {
                *best = max;
                *index = static_cast<std::int32_t>(first + at);
            }
        }
        return at;
    }

    // Turns a row's scores into p, and adds them to its sums.
    void add(Row& row, float* s, std::int64_t first, Range keys, Range seen, std::int64_t best, float shift,
             float shrink) const {
        if (shift != 0) {
            row.weighted = shrink * (row.weighted + shift * row.sum);
            row.sum *= shrink;
            row.distance *= shrink;
            row.last *= shrink;
        }
        const std::int64_t begin = keys.lo / kLanes * kLanes, end = round_up(keys.hi, kLanes);
        const Vec max = broadcast(row.max > -kInfinity ? row.max : 0);
        const Vec unit = broadcast(static_cast<float>(unit_));
        Vec away = broadcast(static_cast<float>(row.at - first - begin)) - lane_numbers();
        // The maximum, whose p is 1, is added apart: next to it the tail of a sharp row, which is all there
        // is to its entropy, would be rounded away.
        if (best >= 0) s[best] = -kInfinity;
        Vec tail{}, weighted{}, distance{};
        for (std::int64_t j = begin; j < end; j += kLanes) {
            const Vec x = larger(broadcast(kExp2Floor), (load(s + j) - max) * unit);
            const Vec p = exp2(x);
            store(s + j, p);
            tail += p;
            weighted += p * x;
            distance += p * away;
            away -= kLanes;
        }
        row.sum += total(tail);
        row.weighted += total(weighted);
        row.distance += total(distance);
        if (best >= 0) {
            s[best] = 1 + (row.max - row.max);  // NaN where a score is infinite
            row.sum += s[best];
            row.distance += static_cast<double>(row.at - first - best);
        }
        std::int64_t j = std::max(seen.lo, row.at + 1 - last_n_ - first);
        const std::int64_t stop = std::min(seen.hi, row.at + 1 - first);
        Vec last{};
        for (; j + kLanes <= stop; j += kLanes) last += load(s + j);
        float rest = 0;
        for (; j < stop; ++j) rest += s[j];
        row.last += total(last) + rest;
    }

    void finish(const Row& row, const float* acc) const {
        float *out = a_.out + row.query * a_.D, *mass = a_.mass + row.query * a_.M;
        float* top_p = a_.top_p + row.query * a_.top;
        const std::int64_t at = row.query;
        const double sink = a_.sinks ? a_.sinks[at / a_.T % a_.H] * kLog2E : -kInfinity;  // all in units of ln 2
        if (row.sum == 0) {  // no key; NaN scores make it NaN
            std::fill_n(out, a_.D, 0.0f);
            std::fill_n(mass, a_.M, 0.0f);
            std::fill_n(top_p, a_.top, 0.0f);
            a_.lse[at] = static_cast<float>(sink * kLn2);
            a_.entropy[at] = a_.distance[at] = a_.last[at] = 0;
            return;
        }
        // Relative to the larger one of maximum and sink, so that nothing overflows.
        const double max = row.max * unit_, most = std::max(max, sink);
        const double keys = a_.sinks ? std::exp2(max - most) : 1;
        const double all = row.sum * keys + (a_.sinks ? std::exp2(sink - most) : 0);
        const double log_all = std::log2(all), lse = most + log_all, weight = keys / all;
        a_.lse[at] = static_cast<float>(lse * kLn2);
        a_.entropy[at] = static_cast<float>(
            kLn2 * weight * (row.sum * (most - max + log_all) - row.weighted));
        a_.distance[at] = static_cast<float>(row.distance / row.sum);
        a_.last[at] = static_cast<float>(row.last * weight);
        for (std::int64_t i = 0; i < a_.top; ++i) top_p[i] = exp2_of(top_p[i] * unit_ - lse);
        for (std::int64_t i = 0; i < a_.M; ++i) mass[i] = exp2_of(mass[i] * unit_ - lse);
        const float normal = static_cast<float>(weight);
        for (std::int64_t i = 0; i < a_.D; ++i) out[i] = acc[i] * normal;
    }

    const AttentionCapture& a_;
    const std::int64_t group_;       // query heads of a kv head
    const std::int64_t rows_;        // T · group_, of a kv head: row = t · group_ + query head
    const std::int64_t keys_;        // of a chunk: packed keys and values fit L2, scores fit L1
    const std::int64_t stride_;      // of acc
    const std::int64_t window_, last_n_;
    const double unit_;              // log2 p = unit_ · score - log2 Σ
    const std::int64_t block_rows_;  // a multiple of MR
};

}  // namespace

void attention_capture(const AttentionCapture& a) {
    if (a.B * a.H * a.T == 0) return;
    if (a.dtype == Dtype::f32) {
        if (a.key_bias) return Attention<float, true>(a).run();
        Attention<float, false>(a).run();
    } else {
        if (a.key_bias) return Attention<bf16, true>(a).run();
        Attention<bf16, false>(a).run();
    }
}

}  // namespace TB_ISA
}  // namespace tb
