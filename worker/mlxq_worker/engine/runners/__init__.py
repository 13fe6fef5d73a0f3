"""Take a plan through the model: packed in slots of ours, or padded on mlx-lm's own caches.

Arrays without decisions: refuses to know the scheduler.
"""
