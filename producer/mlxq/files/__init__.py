"""From file to file: requests read, answers written so that no crash loses one, and the loop between the two.

Refuses to know terminals, signals, and who answers.
"""
