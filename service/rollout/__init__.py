"""The models of a worker: versions, aliases that are followed, canary and shadow.

Start with `worker.py`. `aliases.py` reads the settings and the store, `opening.py` opens a version,
`model_versions.py` swaps versions, `traffic.py` chooses the clients of a canary.
"""
