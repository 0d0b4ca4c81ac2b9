// trustbench._cuda: the Python edge of the CUDA C++ module. It has the streaming buffer on a GPU, and the
// device query that `trustbench info` prints.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bind_pool.h"
#include "cuda/cuda_backend.h"

namespace py = pybind11;

namespace {

// One dict a device; raises RuntimeError with CUDA's own words when the driver cannot answer.
std::vector<py::dict> devices() {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver) return {};
    std::vector<py::dict> found;
    for (int i = 0; status == cudaSuccess && i < count; ++i) {
        cudaDeviceProp properties;
        status = cudaGetDeviceProperties(&properties, i);
        if (status != cudaSuccess) break;
        py::dict device;
        device["name"] = std::string(properties.name);
        device["compute_capability"] = py::make_tuple(properties.major, properties.minor);
        device["memory_bytes"] = properties.totalGlobalMem;
        device["multiprocessors"] = properties.multiProcessorCount;
        found.push_back(device);
    }
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
    return found;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA C++ kernels of trustbench.";
    m.attr("cuda_version") = CUDART_VERSION;
    tb::bind_pool(m, tb::cuda_backend);
    m.def("devices", &devices, "Name, compute capability, memory (bytes) and multiprocessors of every GPU.");
}
