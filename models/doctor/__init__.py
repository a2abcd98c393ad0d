"""What this machine can do for Loupe, and what is wrong with it: `loupe doctor`.

Start with `examine` in `commands.py`, which gathers the facts. Each check is a small function from
facts to results, in `hardware.py`, `software.py` and `storage.py`. Nothing is changed, no model is
run, torch is not imported.
"""
