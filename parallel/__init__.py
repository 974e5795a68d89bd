"""Mesh, engines, tensor parallelism, optimizers and checkpoints. Knows no particular model and no data format."""
