"""Answers as output lines in OpenAI's shapes, built and read back.

Refuses to know where a line comes from or goes to.
"""
