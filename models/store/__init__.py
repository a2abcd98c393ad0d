"""The model store: versions in folders, aliases, and who moved them.

Start with `store.py`. `transfer.py` carries packages in and out, `interchange.py` writes what
Triton and BentoML read, `commands.py` is `loupe publish` and `loupe models`.
"""
