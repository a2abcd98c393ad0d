"""The input of a scoring job: folders, tables, archives and buckets as a stream of items.

Start with `inputs.py`.
"""
