"""`loupe data check`: what is wrong with a data set, before a model learns it.

Each image is read and decoded once (`inspection`); every check is a function from what was seen to findings (`findings`, `duplicates`);
`survey` puts them in order, `report` shows them.
"""
