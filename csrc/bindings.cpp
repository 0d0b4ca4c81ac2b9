// trustbench._C: the Python edge of the CPU kernels.
//
// Arrays arrive as addresses (tensor.data_ptr()), so that the module needs no torch to build. The
// Python floor above (trustbench/ops) checks shapes and dtypes and keeps the tensors alive; here only
// what would corrupt memory is checked again. The interpreter lock is released while kernels run.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "bind_pool.h"
#include "buffer/host_backend.h"
#include "isa.h"
#include "kernels/attention.h"
#include "pages.h"

namespace py = pybind11;

namespace tb {
namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) { return reinterpret_cast<T*>(address); }

Dtype dtype_of(int code) {
    if (code != 0 && code != 1) throw std::invalid_argument("dtype code: expected 0 (float32) or 1 (bfloat16)");
    return static_cast<Dtype>(code);
}

Matrix matrix(Address address, int dtype) { return {at<const void>(address), dtype_of(dtype)}; }

int at_least_one(int threads) { return std::max(1, threads); }

Encoder encoder(Address x, Address W, Address b, std::int64_t N, std::int64_t d, std::int64_t F, int dtype,
                bool bf16_matmul, int threads) {
    if (N < 0 || d < 1 || F < 1 || F > std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("encoder: expected N >= 0, d >= 1 and 1 <= F < 2^31");
    return {matrix(x, dtype), matrix(W, dtype), at<const float>(b), N, d, F, bf16_matmul, at_least_one(threads)};
}

Code code(Address indices, Address row_offsets, std::int64_t N, std::int64_t k) {
    const Code result{at<const std::int32_t>(indices), at<const std::int64_t>(row_offsets), N, k};
    // Positions are stored as int32.
    if (result.begin(N) > std::numeric_limits<std::int32_t>::max())
        throw std::invalid_argument("code: expected fewer than 2^31 entries in one batch");
    return result;
}

// Hands an array to numpy without a copy.
template <class T>
py::array_t<T> to_numpy(std::unique_ptr<T[]> data, std::int64_t size) {
    T* raw = data.release();
    const py::capsule owner(raw, [](void* p) { delete[] static_cast<T*>(p); });
    return py::array_t<T>(static_cast<py::ssize_t>(size), raw, owner);
}

py::tuple to_python(CsrResult result, std::int64_t N) {
    return py::make_tuple(to_numpy(std::move(result.row_offsets), N + 1),
                          to_numpy(std::move(result.indices), result.nnz),
                          to_numpy(std::move(result.values), result.nnz));
}

void encode_topk(Address x, Address W, Address b, Address values, Address indices, std::int64_t N,
                 std::int64_t d, std::int64_t F, std::int64_t k, int dtype, bool bf16_matmul, int threads) {
    const Encoder e = encoder(x, W, b, N, d, F, dtype, bf16_matmul, threads);
    if (k < 1 || k > F) throw std::invalid_argument("k: expected an integer in [1, F]");
    const py::gil_scoped_release unlocked;
    active_kernels().encode_topk(e, k, at<float>(values), at<std::int32_t>(indices));
}

py::tuple encode_relu(Address x, Address W, Address b, Address threshold, std::int64_t N, std::int64_t d,
                     std::int64_t F, int dtype, bool bf16_matmul, int threads) {
    const Encoder e = encoder(x, W, b, N, d, F, dtype, bf16_matmul, threads);
    CsrResult result;
    {
        const py::gil_scoped_release unlocked;
        result = active_kernels().encode_relu(e, at<const float>(threshold));
    }
    return to_python(std::move(result), N);
}

py::tuple encode_batchtopk(Address x, Address W, Address b, std::int64_t N, std::int64_t d, std::int64_t F,
                           std::int64_t total, int dtype, bool bf16_matmul, int threads) {
    const Encoder e = encoder(x, W, b, N, d, F, dtype, bf16_matmul, threads);
    if (total < 0 || total > N * F) throw std::invalid_argument("total: expected an integer in [0, N * F]");
    CsrResult result;
    {
        const py::gil_scoped_release unlocked;
        result = active_kernels().encode_batchtopk(e, total);
    }
    return to_python(std::move(result), N);
}

void decode(Address values, Address indices, Address row_offsets, Address W, Address out, std::int64_t N,
            std::int64_t d, std::int64_t, std::int64_t k, int dtype, int threads) {
    const Code c = code(indices, row_offsets, N, k);
    const py::gil_scoped_release unlocked;
    active_kernels().decode(at<const float>(values), c, matrix(W, dtype), d, at<float>(out), at_least_one(threads));
}

void code_grad(Address grad, Address indices, Address row_offsets, Address W, Address out, std::int64_t N,
               std::int64_t d, std::int64_t, std::int64_t k, int dtype, int threads) {
    const Code c = code(indices, row_offsets, N, k);
    const py::gil_scoped_release unlocked;
    active_kernels().code_grad(at<const float>(grad), c, matrix(W, dtype), d, at<float>(out), at_least_one(threads));
}

void transpose_code(Address indices, Address row_offsets, Address feature_offsets, Address rows,
                    Address positions, std::int64_t N, std::int64_t F, std::int64_t k, int threads) {
    const Code c = code(indices, row_offsets, N, k);
    const py::gil_scoped_release unlocked;
    active_kernels().transpose_code(c, F, at<std::int64_t>(feature_offsets), at<std::int32_t>(rows),
                                    at<std::int32_t>(positions), at_least_one(threads));
}

FeatureCode feature_code(Address offsets, Address rows, Address positions) {
    return {at<const std::int64_t>(offsets), at<const std::int32_t>(rows), at<const std::int32_t>(positions)};
}

void weight_grad(Address coefs, Address feature_offsets, Address rows, Address positions, Address source,
                 Address dW, Address db, std::int64_t d, std::int64_t F, int dtype, int threads) {
    const FeatureCode c = feature_code(feature_offsets, rows, positions);
    const py::gil_scoped_release unlocked;
    active_kernels().weight_grad(at<const float>(coefs), c, matrix(source, dtype), F, d, at<float>(dW),
                                 at<float>(db), at_least_one(threads));
}

Moments moments(const std::array<Address, 3>& a) { return {at<float>(a[0]), at<float>(a[1]), at<float>(a[2])}; }

Adam adam_options(std::int64_t step, double lr, double beta1, double beta2, double eps, bool unit_norm) {
    if (step < 1) throw std::invalid_argument("step: expected an integer >= 1");
    return {step, lr, beta1, beta2, eps, unit_norm};
}

void adam(Address param, Address grad, Address m, Address v, std::int64_t rows, std::int64_t d,
          std::int64_t step, double lr, double beta1, double beta2, double eps, bool unit_norm, int threads) {
    const Adam options = adam_options(step, lr, beta1, beta2, eps, unit_norm);
    const py::gil_scoped_release unlocked;
    active_kernels().adam(moments({param, m, v}), at<const float>(grad), rows, d, options, at_least_one(threads));
}

// enc, dec and bias are (param, m, v). entries: values, push (0: none), feature_offsets, rows, positions, x,
// grad. sizes: F, d_in, d_out.
SparseStep sparse_step(const std::array<Address, 3>& enc, const std::array<Address, 3>& dec,
                       const std::array<Address, 3>& bias, const std::array<Address, 7>& entries,
                       const std::array<std::int64_t, 3>& sizes, double l1, bool decoder_norm, double clip_scale,
                       int threads) {
    const auto& [values, push, feature_offsets, rows, positions, x, grad] = entries;
    return {moments(enc), moments(dec), moments(bias), at<const float>(values), at<const float>(push),
            feature_code(feature_offsets, rows, positions), at<const float>(x), at<const float>(grad),
            sizes[0], sizes[1], sizes[2], static_cast<float>(l1), decoder_norm, static_cast<float>(clip_scale),
            at_least_one(threads)};
}

void sparse_adam(const std::array<Address, 3>& enc, const std::array<Address, 3>& dec,
                 const std::array<Address, 3>& bias, const std::array<Address, 7>& entries, Address db_dec,
                 const std::array<std::int64_t, 3>& sizes, double l1, bool decoder_norm, double clip_scale,
                 std::int64_t step, double lr, double beta1, double beta2, double eps, bool unit_norm, int threads) {
    const SparseStep s = sparse_step(enc, dec, bias, entries, sizes, l1, decoder_norm, clip_scale, threads);
    const Adam options = adam_options(step, lr, beta1, beta2, eps, unit_norm);
    const py::gil_scoped_release unlocked;
    active_kernels().sparse_adam(s, options, at<float>(db_dec));
}

double sparse_grad_norm(const std::array<Address, 2>& weights, const std::array<Address, 7>& entries,
                        Address db_dec, const std::array<std::int64_t, 3>& sizes, double l1, bool decoder_norm,
                        bool unit_norm, int threads) {
    const SparseStep s = sparse_step({weights[0], 0, 0}, {weights[1], 0, 0}, {0, 0, 0}, entries, sizes, l1,
                                     decoder_norm, 1.0, threads);
    const py::gil_scoped_release unlocked;
    return active_kernels().sparse_grad_norm(s, unit_norm, at<float>(db_dec));
}

// results: out, lse, entropy, distance, last, top_p, top_index, mass. sizes: B, H, H_kv, T, S, D, M.
void attention_capture(Address q, Address k, Address v, Address sinks, Address segments, Address key_bias,
                       Address targets, const std::array<Address, 8>& results,
                       const std::array<std::int64_t, 7>& sizes, bool causal, std::int64_t window, double scale,
                       double softcap, std::int64_t top, std::int64_t last_n, int dtype, int threads) {
    const auto [B, H, H_kv, T, S, D, M] = sizes;
    if (B < 0 || T < 0 || S < T || D < 1 || D > 256 || H_kv < 1 || H % H_kv != 0 || top < 0 || top > 16)
        throw std::invalid_argument("attention_capture: sizes out of range");
    AttentionCapture a{};
    a.q = at<const void>(q);
    a.k = at<const void>(k);
    a.v = at<const void>(v);
    a.dtype = dtype_of(dtype);
    a.sinks = at<const float>(sinks);
    a.segments = at<const std::int32_t>(segments);
    a.key_bias = at<const float>(key_bias);
    a.targets = at<const std::int32_t>(targets);
    a.out = at<float>(results[0]);
    a.lse = at<float>(results[1]);
    a.entropy = at<float>(results[2]);
    a.distance = at<float>(results[3]);
    a.last = at<float>(results[4]);
    a.top_p = at<float>(results[5]);
    a.top_index = at<std::int32_t>(results[6]);
    a.mass = at<float>(results[7]);
    a.B = B, a.H = H, a.H_kv = H_kv, a.T = T, a.S = S, a.D = D, a.M = M;
    a.causal = causal;
    a.window = window;
    a.scale = scale;
    a.softcap = softcap;
    a.top = top;
    a.last_n = last_n;
    a.threads = at_least_one(threads);
    const py::gil_scoped_release unlocked;
    active_kernels().attention_capture(a);
}

std::unique_ptr<Backend> make_backend(std::vector<HookRows> hooks, int, std::size_t) {
    return host_backend(std::move(hooks), active_kernels);
}

py::array_t<std::int64_t> copied(const std::int64_t* data, std::int64_t n) {
    return py::array_t<std::int64_t>(static_cast<py::ssize_t>(n), data);
}

void bind_slots(py::module_& m) {
    py::class_<Slots>(m, "Slots", "Which slot of an activation buffer holds what; see csrc/slots.h.")
        .def(py::init<std::int64_t, std::uint64_t>(), py::arg("capacity"), py::arg("seed"))
        .def_property_readonly("capacity", &Slots::capacity)
        .def_property_readonly("size", &Slots::size)
        .def_property_readonly("random", [](const Slots& s) { return s.random_state(); })
        .def("offer", [](const Slots& s, std::int64_t n) { return copied(s.offer(n), n); })
        .def("commit", &Slots::commit)
        .def("take", [](Slots& s, std::int64_t n) { return copied(s.take(n), n); })
        .def("occupied",
             [](const Slots& s, std::int64_t n) { return copied(s.occupied(), std::min(std::max<std::int64_t>(n, 0), s.size())); })
        .def("restore", &Slots::restore, py::arg("size"), py::arg("random"));
}

}  // namespace
}  // namespace tb

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of trustbench; use them through trustbench.ops.";
    m.def("isa", &tb::active_isa, "Name of the instruction set whose kernels run.");
    m.def(
        "prefer_huge_pages",
        [](std::uintptr_t data, std::size_t bytes) { tb::prefer_huge_pages(reinterpret_cast<void*>(data), bytes); },
        py::arg("data"), py::arg("bytes"), "Ask for huge pages for memory that nobody has touched.");
    m.def("isa_names", &tb::available_isas, "Instruction sets that this processor can run, best first.");
    m.def("set_isa", &tb::set_isa, py::arg("name"), "Choose the kernels of one instruction set (for tests).");
    m.def("encode_topk", &tb::encode_topk);
    m.def("encode_relu", &tb::encode_relu);
    m.def("encode_batchtopk", &tb::encode_batchtopk);
    m.def("decode", &tb::decode);
    m.def("code_grad", &tb::code_grad);
    m.def("transpose_code", &tb::transpose_code);
    m.def("weight_grad", &tb::weight_grad);
    m.def("adam", &tb::adam);
    m.def("sparse_adam", &tb::sparse_adam);
    m.def("sparse_grad_norm", &tb::sparse_grad_norm);
    m.def("attention_capture", &tb::attention_capture);
    tb::bind_slots(m);
    tb::bind_pool(m, tb::make_backend);
}
