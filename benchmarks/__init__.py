"""Benchmarks against other packages, one command per question; see docs/benchmarks.md."""
