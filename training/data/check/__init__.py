"""`loupe data check`: finds errors in a data set before you train on it.

Start with `survey.py`: `inspection.py` decodes each image once, then the checks in `findings.py`
and `duplicates.py` give findings.
"""
