"""Seeing inside the served models, in a process of its own, so that classification never waits.

`inspector.py` is the worker's end: one request at a time, a short queue, a deadline. `__main__.py`
is the process; `documents.py` makes its answers. Only `inspector.py` runs in the worker. The rest
may not import metrics or the settings.
"""
