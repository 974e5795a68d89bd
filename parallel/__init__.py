"""Mesh, engines, optimizer, catalog and checkpoints. Knows no particular model and no data format."""
