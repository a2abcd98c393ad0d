"""What is seen of the service: metrics, logs, traces, drift.

Each module is one of them. Nothing here changes an answer.
"""
