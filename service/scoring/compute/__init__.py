"""Units of items to records, in threads (`local.py`) or on a Ray cluster (`cluster.py`).

`unit.py` is the work itself, the same in both.
"""
