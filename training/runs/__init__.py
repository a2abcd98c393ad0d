"""The folder of a run: its configuration, metrics and origin.

Start with `run.py`. `tracking.py` writes to TensorBoard and MLflow too.
"""
