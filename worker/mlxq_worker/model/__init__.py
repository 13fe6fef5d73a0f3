"""What a model folder says: weights, tokenizer, EOS set, chat template, reasoning markers, tool format.

Refuses to know jobs and batches.
"""
