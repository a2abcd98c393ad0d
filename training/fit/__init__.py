"""Training itself: phases, epochs, optimisation, checkpoints.

Start with `loop.py`.
"""
