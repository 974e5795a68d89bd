"""Callbacks: loggers, the best checkpoint, early stopping. A new logger is one file and a line in registry.py."""
