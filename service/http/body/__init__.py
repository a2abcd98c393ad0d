"""Request bodies: their images from forms, JSON and URLs, within limits.

Start with `images.py`.
"""
