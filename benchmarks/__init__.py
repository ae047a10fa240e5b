"""Benchmarks: what helps, measured."""
