"""What a line of input asks for: body fields, the rules between them, and the `Request` that they make.

Knows OpenAI's and vLLM's names. Refuses to know files, Redis, answers and models.
"""
