"""Kernels of the decode stage; importing this package imports none of them."""
