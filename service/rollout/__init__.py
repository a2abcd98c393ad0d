"""The models of a worker: versions, aliases that are followed, canary and shadow.

Start with `worker.py`. `aliases.py` reads what the store means now, `model_set.py` opens and swaps
versions, `traffic.py` splits requests.
"""
