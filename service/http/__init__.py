"""The HTTP interface: routes, bodies, answers and pages.

Start with `app.py`, which lists the routes. `body/` reads requests, `answering.py` turns images
into answers, `pages.py` serves the page in `playground/`. Knows no BentoML.
"""
