"""`loupe inspect`: what a network is and what it sees, as tables and pictures.

May import `training.runs` and all of `models`. Start reading at `commands.py`; the numbers come
from `models.inspection`, and `subject.py` tells which network is meant.
"""
