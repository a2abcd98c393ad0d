"""Who may ask, how often, and how much at a time.

Start with `admission.py`: it runs before every route. `keys.py` knows API keys, `rate_limit.py`
counts clients.
"""
