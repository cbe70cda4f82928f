"""Demonstrations: LIBERO HDF5 files, windows, statistics, action normalisation and binning."""
