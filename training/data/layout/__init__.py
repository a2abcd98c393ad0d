"""What a tree of files means: which are images, which folder is a split, which a class.

Start with `layout.py`; folders and archives both use it. `splits.py` has the one list of split
names.
"""
