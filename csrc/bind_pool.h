// The Python edge of the streaming buffer, for each module that has a back end of it.
//
// The pool's memory, and what rows come from and go to, are addresses; trustbench/buffer checks shapes
// and keeps the tensors alive. The interpreter lock is released while rows move.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "buffer/pool.h"

namespace tb {

using MakeBackend = std::unique_ptr<Backend> (*)(std::vector<HookRows> hooks, int device, std::size_t segment_bytes);

inline RowKind row_kind(int code) {
    if (code < 0 || code > 3)
        throw std::invalid_argument("row kind: expected 0 (f32), 1 (bf16), 2 (f16) or 3 (mx8)");
    return static_cast<RowKind>(code);
}

inline std::vector<void*> addresses(const std::vector<std::uintptr_t>& given) {
    std::vector<void*> found;
    for (const std::uintptr_t address : given) found.push_back(reinterpret_cast<void*>(address));
    return found;
}

// Bytes of a segment's rows.
inline std::size_t segment_rows(std::int64_t token_bytes, std::int64_t capacity) {
    return static_cast<std::size_t>(Pool::segment_size(token_bytes, capacity) * token_bytes);
}

inline pybind11::dict state_to_python(const Pool::State& state) {
    namespace py = pybind11;
    py::list segments;
    for (const Tiers::Entry& entry : state.tiers.segments)
        segments.append(py::make_tuple(entry.serial, entry.crc, entry.on_disk));
    py::dict result;
    result["tokens_in"] = state.tokens_in;
    result["tokens_out"] = state.tokens_out;
    result["due"] = state.due;
    result["random"] = state.random;
    result["tiers_random"] = state.tiers.random;
    result["serial"] = state.tiers.serial;
    result["segments"] = segments;
    result["has_next"] = state.tiers.has_next;
    return result;
}

inline Pool::State state_from_python(const pybind11::dict& given) {
    namespace py = pybind11;
    Pool::State state;
    state.tokens_in = given["tokens_in"].cast<std::int64_t>();
    state.tokens_out = given["tokens_out"].cast<std::int64_t>();
    state.due = given["due"].cast<std::int64_t>();
    state.random = given["random"].cast<std::vector<Random::State>>();
    state.tiers.random = given["tiers_random"].cast<Random::State>();
    state.tiers.serial = given["serial"].cast<std::uint64_t>();
    for (const py::handle entry : given["segments"]) {
        const auto [serial, crc, on_disk] = entry.cast<std::tuple<std::uint64_t, std::uint32_t, bool>>();
        state.tiers.segments.push_back({serial, crc, on_disk});
    }
    state.tiers.has_next = given["has_next"].cast<bool>();
    return state;
}

inline void bind_pool(pybind11::module_& m, MakeBackend make_backend) {
    namespace py = pybind11;
    using Released = py::call_guard<py::gil_scoped_release>;
    using Address = std::uintptr_t;

    py::register_local_exception<SpillError>(m, "SpillError", PyExc_OSError);
    m.def("row_bytes", [](int kind, std::int64_t d) { return row_bytes(row_kind(kind), d); }, py::arg("kind"),
          py::arg("d"), "Bytes of a stored row.");
    m.def("moving_bytes",
          [](std::int64_t token_bytes, std::int64_t capacity) {
              const std::size_t each = Tiers::segment_bytes(segment_rows(token_bytes, capacity));
              return Tiers::kMoving * static_cast<std::int64_t>(each);
          },
          py::arg("token_bytes"), py::arg("capacity"), "Host memory that a disk tier needs for itself.");
    // Both modules have this class, each with its own back end.
    py::class_<Pool>(m, "Pool", py::module_local(), "The buffer's core; see csrc/pool.h.")
        .def(py::init([make_backend](const std::vector<std::tuple<std::int64_t, int, Address>>& given,
                                     std::int64_t capacity, std::uint64_t seed, bool one_order,
                                     std::int64_t host_bytes, std::int64_t disk_bytes,
                                     const std::string& directory, int device) {
                 std::vector<HookRows> hooks;
                 for (const auto& [d, kind, address] : given)
                     hooks.push_back({d, row_kind(kind), reinterpret_cast<void*>(address)});
                 if (hooks.empty()) throw std::invalid_argument("hooks: expected at least one");
                 auto backend = make_backend(hooks, device, segment_rows(token_bytes(hooks), capacity));
                 return std::make_unique<Pool>(
                     std::move(hooks), PoolOptions{capacity, seed, one_order, {host_bytes, disk_bytes, directory}},
                     std::move(backend));
             }),
             py::arg("hooks"), py::arg("capacity"), py::arg("seed"), py::arg("one_order") = true,
             py::arg("host_bytes") = 0, py::arg("disk_bytes") = 0, py::arg("directory") = "", py::arg("device") = 0)
        .def("put",
             [](Pool& pool, const std::vector<std::pair<Address, int>>& given, std::int64_t n, Address stream,
                int threads) {
                 std::vector<Incoming> incoming;
                 for (const auto& [address, kind] : given)
                     incoming.push_back({reinterpret_cast<const void*>(address), row_kind(kind)});
                 std::vector<std::pair<std::int64_t, std::int64_t>> bad;
                 for (const BadRows& rows : pool.put(incoming, n, {reinterpret_cast<void*>(stream), threads}))
                     bad.emplace_back(rows.count, rows.first);
                 return bad;
             },
             Released())
        .def("take",
             [](Pool& pool, std::int64_t n, const std::vector<Address>& out, Address stream, int threads) {
                 pool.take(n, addresses(out), {reinterpret_cast<void*>(stream), threads});
             },
             Released())
        .def("peek",
             [](Pool& pool, std::int64_t n, const std::vector<Address>& out, Address stream, int threads) {
                 pool.peek(n, addresses(out), {reinterpret_cast<void*>(stream), threads});
             },
             Released())
        .def("bad_rows", &Pool::bad_rows, Released())
        .def_property_readonly("tokens_in", &Pool::tokens_in)
        .def_property_readonly("tokens_out", &Pool::tokens_out)
        .def_property_readonly("pooled", &Pool::pooled)
        .def_property_readonly("limit", &Pool::limit)
        .def_property_readonly("most", &Pool::most)
        .def_property_readonly("segment_tokens", &Pool::segment_tokens)
        .def_property_readonly("tier_bytes", &Pool::tier_bytes)
        .def("occupied",
             [](const Pool& pool, std::size_t hook) {
                 const std::vector<std::int64_t> slots = pool.occupied(hook);
                 return py::array_t<std::int64_t>(static_cast<py::ssize_t>(slots.size()), slots.data());
             })
        .def("state",
             [](Pool& pool) {
                 Pool::State state;
                 {
                     const py::gil_scoped_release unlocked;
                     state = pool.state();
                 }
                 return state_to_python(state);
             })
        .def("saved", &Pool::saved, Released())
        .def("forget", &Pool::forget, Released())
        .def("restore",
             [](Pool& pool, const py::dict& given) {
                 const Pool::State state = state_from_python(given);
                 const py::gil_scoped_release unlocked;
                 pool.restore(state);
             })
        .def("segment",
             [](Pool& pool, std::int64_t i, std::size_t hook, Address rows, bool into) {
                 pool.segment(i, hook, reinterpret_cast<void*>(rows), into);
             },
             Released())
        .def("restored", &Pool::restored, Released());
}

}  // namespace tb
