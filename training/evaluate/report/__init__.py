"""The evaluation report as JSON and as one HTML page.

Start with `figures.py`, which computes every number.
"""
