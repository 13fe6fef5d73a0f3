"""Between the rows of tables and what mlxq speaks: rows to requests, answers to rows.

Refuses to know how a table lies in a file, and files at all.
"""
