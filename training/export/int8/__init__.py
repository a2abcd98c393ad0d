"""int8 for CPUs: a search that ends inside its accuracy budget, or says why fp32 is kept.

Start with `search.py`.
"""
