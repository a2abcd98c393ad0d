"""`loupe data check`: finds errors in a data set before you train on it.

Each image is read and decoded once (`inspection`); every check is a function from what was seen to
findings (`findings`, `duplicates`); `survey` puts them in order, `report` shows them.
"""
