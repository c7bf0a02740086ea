"""Benchmarks: cases, providers, timing, studies, report and performance checks."""
