"""How good a model is, measured on its exported graph through the served preprocessing.

Start with `judge.py`. `promotion.py` compares two versions, `report/` draws the page.
"""
