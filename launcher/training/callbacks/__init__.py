"""Callbacks: loggers, the best checkpoint, early stopping."""
