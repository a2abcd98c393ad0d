"""Batch scoring: millions of images through one model, every one accounted for.

    inputs (tables, parquet, values, archives, walk)  ->  units of items    what is to be scored,
    streamed, in a defined order
    reader, unit                     ->  records               read, decode, run: the same for both
    engines
    local | cluster, pipeline, lane                            who computes: threads of this
    process, or Ray Data on a cluster
    storages, quarantine                                         one object that cannot be read, or a
    storage that is gone
    journal                                                    the ledger: a record is there whole
    or not at all
    outputs, summary                                           written once, at the end, from the
    journal
    job                                                        ties these together and knows how to
    resume

Nothing here knows HTTP, torch or training.
"""
