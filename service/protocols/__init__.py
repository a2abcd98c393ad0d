"""Interfaces of other servers: Open Inference Protocol, TorchServe, BentoML's client.

Each module is one protocol; `tensors.py` is the binary form of the first. The routes are registered
in `service.http.app`.
"""
