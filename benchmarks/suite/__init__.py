"""What `python -m benchmarks.run` measures, and how: see docs/PERFORMANCE.md."""
