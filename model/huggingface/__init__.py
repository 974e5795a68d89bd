"""Released checkpoints: `load.load` reads a Hugging Face folder, `save.save` writes one; families/ has one file for
each model family, mapping/ converts names and settings."""
