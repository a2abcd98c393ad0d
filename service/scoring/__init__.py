"""Batch scoring: a job scores millions of images with one model and accounts for every image.

    input/     lists what is to be scored as units of 64 items, in a defined order, and reads it
    compute/   reads, decodes and scores a unit: in threads, or on a Ray cluster
    output/    the journal of finished units; the output, written from it at the end
    plan       what a job must do, and the state folder from which it resumes
    job        runs these parts; start reading here

Nothing here knows HTTP, torch or training.
"""
