"""Batch lines of other services, read as OpenAI's as far as their fields have a counterpart.

One small module for each service. Refuses to know what a field of ours may be: whatever comes out is checked as any
other line.
"""
