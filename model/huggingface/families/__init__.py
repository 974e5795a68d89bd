"""Model families: one file for each, and the registry."""
