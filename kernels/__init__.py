"""Triton kernels of vlarft, one folder a stage, one kernel a file.

Importing this package imports neither Triton nor CUDA; `vlarft info` says whether they are here.
"""
