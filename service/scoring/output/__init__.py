"""Records to files: the journal while a job runs, the table at its end.

Start with `journal.py`.
"""
