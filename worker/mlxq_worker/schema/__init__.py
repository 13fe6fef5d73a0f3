"""JSON schemas as requests bring them, turned into ones that the compiler enforces to the letter, or refused by name.

Knows JSON Schema and what llguidance makes of it; knows no requests, no tokenizer and no model.
"""
