"""What fine-tuning adds to a model: task heads, adapters, soft prompts, regularisers, distillation."""
