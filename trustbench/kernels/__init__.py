"""GPU kernels: `trustbench.kernels.triton` is installed from `kernels/triton/` of the repository."""
