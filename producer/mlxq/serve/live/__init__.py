"""Live requests: who waits for which answer, and how an answer is told while it grows. Speaks no HTTP."""
