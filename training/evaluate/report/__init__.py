"""The evaluation report as JSON and as one HTML page.

Start with `figures.py`, which works out every number.
"""
