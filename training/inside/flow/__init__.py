"""`loupe inspect gradients`: what flows back through a network, for a photo and over training.

Start reading at `command.py`. `backward.py` takes the gradients of one photo, `units.py` counts
dead ReLUs, `training.py` draws what a run has recorded.
"""
