"""A config.json in the words of whatever wrote it, said in those that mlx-lm reads. Never reads weights."""
