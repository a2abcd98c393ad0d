"""From data to a package: runs, evaluation of the exported model, and the gates before it.

Never imports `service`.
"""
