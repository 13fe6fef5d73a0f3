"""Files of answers and of failures, written so that no crash loses a line that was finished.

Refuses to know where requests come from, and who answers them.
"""
