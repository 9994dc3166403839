"""Benchmarks of conv_ext against torch's own convolution: `python -m bench --help`."""
