"""Where labelled images come from: one module for each kind of SOURCE.

Each gives a `Listing`; `training.data.source` makes data sets of them.
"""
