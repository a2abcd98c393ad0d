"""Failure drills: a real server under load, and what is done to it. `make faults` runs all."""
