// Encoder matmul with a threshold a feature, kept as a CSR code. ReLU is the threshold 0.
#include "kernels/encoder.h"
#include "kernels/table.h"

namespace tb {
namespace TB_ISA {
namespace {

struct Entry {
    std::int32_t column;
    float value;
};

// A growing array; a type of this namespace, so that the linker cannot merge it with the same
// template compiled for another instruction set.
class Row {
  public:
    Row() = default;
    ~Row() { std::free(data_); }
    Row(const Row&) = delete;
    Row& operator=(const Row&) = delete;

    void reserve(std::int64_t more) {
        if (size_ + more <= capacity_) return;
        capacity_ = std::max(size_ + more, 2 * capacity_);
        void* grown = std::realloc(data_, static_cast<std::size_t>(capacity_) * sizeof(Entry));
        if (!grown) throw std::bad_alloc();
        data_ = static_cast<Entry*>(grown);
    }
    void push(Entry entry) { data_[size_++] = entry; }
    std::int64_t size() const { return size_; }
    const Entry& operator[](std::int64_t i) const { return data_[i]; }

  private:
    Entry* data_ = nullptr;
    std::int64_t size_ = 0, capacity_ = 0;
};

struct Relu {
    const Encoder& e;
    const float* threshold;  // [F] or null for 0
    Row* code;               // [N]

    void tile(int, std::int64_t row0, std::int64_t rows, std::int64_t col0, std::int64_t cols,
              const float* pre, std::int64_t stride) {
        for (std::int64_t r = 0; r < rows; ++r) {
            Row& row = code[row0 + r];
            row.reserve(cols);
            const float* values = pre + r * stride;
            std::int64_t c = 0;
            for (; c + kLanes <= cols; c += kLanes) {
                const Vec value = load(values + c) + load(e.b + col0 + c);
                const Vec floor = threshold ? load(threshold + col0 + c) : Vec{};
                std::uint32_t mask = mask_not_le(value, floor);
                if (!mask) continue;
                float lanes[kLanes];
                store(lanes, value);
                for (; mask; mask &= mask - 1) {
                    const int lane = __builtin_ctz(mask);
                    row.push({static_cast<std::int32_t>(col0 + c + lane), lanes[lane]});
                }
            }
            for (; c < cols; ++c) {
                const float value = values[c] + e.b[col0 + c];
                if (!(value <= (threshold ? threshold[col0 + c] : 0.0f)))
                    row.push({static_cast<std::int32_t>(col0 + c), value});
            }
        }
    }
};

}  // namespace

CsrResult encode_relu(const Encoder& e, const float* threshold) {
    const std::unique_ptr<Row[]> code(new Row[e.N]);
    Relu relu{e, threshold, code.get()};
    encode(e, relu);

    CsrResult out;
    out.row_offsets.reset(new std::int64_t[e.N + 1]);
    out.row_offsets[0] = 0;
    for (std::int64_t n = 0; n < e.N; ++n) out.row_offsets[n + 1] = out.row_offsets[n] + code[n].size();
    out.nnz = out.row_offsets[e.N];
    out.indices.reset(new std::int32_t[out.nnz]);
    out.values.reset(new float[out.nnz]);
    constexpr std::int64_t kRows = 32;
    auto copy = [&](std::int64_t chunk, int) {
        for (std::int64_t n = chunk * kRows; n < std::min(e.N, (chunk + 1) * kRows); ++n) {
            const std::int64_t start = out.row_offsets[n];
            for (std::int64_t i = 0; i < code[n].size(); ++i) {
                out.indices[start + i] = code[n][i].column;
                out.values[start + i] = code[n][i].value;
            }
        }
    };
    parallel_for((e.N + kRows - 1) / kRows, e.threads, copy);
    return out;
}

}  // namespace TB_ISA
}  // namespace tb
