"""Networks that others wrote: timm's, and one's own by import path.

Start in `split.py`, which makes a body and a linear layer of any of them.
"""
