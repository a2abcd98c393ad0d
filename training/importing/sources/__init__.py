"""Every kind of model that can be imported, one module for each kind.

Each gives a `training.importing.foreign.Foreign`. `find.py` tells the kinds apart.
"""
