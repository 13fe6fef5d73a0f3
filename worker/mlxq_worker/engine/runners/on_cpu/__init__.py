"""What MLX computes slowly on a CPU, computed otherwise there for float32 models on slots: exponentials, rotations,
experts one token at a time, delta rules one token after another; and, whatever the model, attention of single queries.

Results differ from mlx-lm's by rounding at most. Knows nothing of slots and rows.
"""
