"""Sizes that the Triton kernels and those who plan with them share; nothing here needs Triton."""

AT_ONCE = 2**27  # dense pre-activations that exact paths hold at one time (512 MB)
LONG = 512  # a feature with more entries is cut into chunks, which programs of their own sum
GROUP = 8  # features of one program of sparse_adam: as many rows less of b_dec's partial sums
STAGING = 4 * 2**25  # bytes of segments on their way to and from the host (csrc/cuda/cuda_backend.cu)

# The places of a step's scalars, fp32 on the device (trustbench.ops.scalars).
STEP_SIZE, ROOT, SCALE, LOSS, NUMBER, SLOPE = range(6)
