"""From a run to a package, through parity and accuracy gates.

Start with `export.py`. `precision.py` makes the model, with `fp16.py` and `int8/`; `parity.py` has
the gates.
"""
