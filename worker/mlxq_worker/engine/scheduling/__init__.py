"""Who is dropped, admitted, prefilled and decoded on a step.

Plain Python: refuses to know arrays, so that every decision can be tested without a model.
"""
