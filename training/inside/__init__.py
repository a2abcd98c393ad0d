"""`loupe inspect`: what a network is and what it sees, as tables and pictures.

May import `training.data`, `export`, `fit` and `runs`. Start reading at `commands.py`; the numbers
come from `models.inspection`, and `subject.py` tells which network is meant.
"""
