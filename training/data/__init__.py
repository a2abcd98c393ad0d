"""Labelled images: where they come from, what is wrong with them, and how they are loaded.

Start with `source.py`. `sources/` has a module for each kind of SOURCE, `check/` is
`loupe data check`, `index.py` lists the images of a run, `loader.py` makes batches.
"""
