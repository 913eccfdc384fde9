"""Benchmarks that are kept: the kernel's cost per event, and loads on real replicas."""
