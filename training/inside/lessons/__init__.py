"""Lessons: the arithmetic of a network in real numbers, and the tour `loupe learn`.

Start reading at `commands.py`. `window.py` has one output value, `backward.py` the way back,
`normalisation.py` the four kinds of normalisation; `tour.py` puts chapters together.
"""
