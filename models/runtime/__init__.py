"""A verified package in a session of ONNX Runtime.

Start with `session.py`. `providers.py` picks the execution provider, `answer_graph.py` cuts the
graph down to what an answer needs, `drift_signals.py` measures what drift is compared on.
"""
