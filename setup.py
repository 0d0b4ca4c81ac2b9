"""Builds trustbench._C and trustbench._cuda through CMake. Metadata lives in pyproject.toml.

TRUSTBENCH_CUDA=ON|OFF in the environment asks for, or leaves out, the CUDA module; otherwise it is
built when a CUDA toolkit (nvcc) is found. No visible GPU and no torch are needed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def find_nvcc() -> str | None:
    """The CUDA compiler: $CUDACXX, $CUDA_HOME, the search path, or the usual place."""
    if os.environ.get("TRUSTBENCH_CUDA", "").upper() in {"OFF", "0", "NO"}:
        return None
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    guesses = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    guesses += [str(Path(home, "bin", "nvcc")) for home in homes if home]
    found = next((guess for guess in guesses if guess and Path(guess).is_file()), None)
    if found is None and os.environ.get("TRUSTBENCH_CUDA"):
        raise SystemExit("TRUSTBENCH_CUDA asks for the CUDA module, but no nvcc was found")
    return found


NVCC = find_nvcc()


class CMakeBuild(build_ext):
    """Each native module is one CMake target; setuptools only says where it goes."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        options = [
            f"-DTRUSTBENCH_OUTPUT={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DPYBIND11_FINDPYTHON=ON",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DTRUSTBENCH_CUDA={'ON' if NVCC else 'OFF'}",
        ]
        if NVCC:
            options.append(f"-DCMAKE_CUDA_COMPILER={NVCC}")
        if shutil.which("ninja"):
            options += ["-G", "Ninja"]
        subprocess.run(["cmake", "-S", str(ROOT), "-B", str(build), *options], check=True)
        target = ext.name.rpartition(".")[2]
        jobs = str(self.parallel or os.cpu_count() or 1)
        subprocess.run(
            ["cmake", "--build", str(build), "--target", target, "--parallel", jobs], check=True
        )


modules = ["trustbench._C"] + (["trustbench._cuda"] if NVCC else [])
setup(
    # The Triton kernels stand beside csrc/ in the repository and inside the package when installed.
    packages=[*find_packages(include=["trustbench*"]), "trustbench.kernels.triton"],
    package_dir={"trustbench.kernels.triton": "kernels/triton"},
    ext_modules=[Extension(name, sources=[]) for name in modules],
    cmdclass={"build_ext": CMakeBuild},
)
