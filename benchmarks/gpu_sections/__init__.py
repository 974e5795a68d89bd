"""What benchmarks/gpu.py measures, a file for each kind of thing."""
