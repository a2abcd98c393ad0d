"""What a tree of files means: which are images, which folder is a split, which a class.

Start with `splits.py`; folders and archives both use it. `tree.py` lists the files.
"""
