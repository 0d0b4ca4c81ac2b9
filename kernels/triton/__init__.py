"""Triton kernels, one file an op: nothing but kernels and their launchers."""
