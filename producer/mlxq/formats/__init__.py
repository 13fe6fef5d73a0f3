"""What files hold as bytes: lines and tables, packed or not, one small module for each format.

Refuses to know what a request or an answer is, and which file is for what.
"""
