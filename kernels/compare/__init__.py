"""Kernels of the compare stage; importing this package imports none of them."""
