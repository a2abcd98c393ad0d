"""`loupe predict`: a photo, and what is in it, without a server.

Start with `commands.py`. `photos.py` finds and reads the photos, `opening.py` the model, and
`answers.py` writes what it says.
"""
