"""`loupe inspect embedding`: a map of a data set as a model sees it.

Start reading at `command.py`. `points.py` places the photos and finds mistakes and outliers,
`picture.py` draws the map, `page.py` makes a page of it whose points show their photo.
"""
