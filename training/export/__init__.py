"""From a run to a package, through parity and accuracy gates.

Start with `export.py`. `fp16.py` and `int8/` make the other precisions.
"""
