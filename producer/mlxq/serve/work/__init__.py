"""What becomes of batches: who works on which, from the look at the input to the last line. Knows no HTTP."""
