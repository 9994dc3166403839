"""Fuzzers: of runs (runs.cpp, with the scripts that build and plant errors), and of the layers above the kernels."""
