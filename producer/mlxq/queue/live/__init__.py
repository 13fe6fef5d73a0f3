"""Live requests in the queue, as those who ask for them see them."""
