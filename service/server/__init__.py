"""Everything that knows BentoML and uvicorn: processes, ports, signals.

Start with `bento.py` (one worker process) and `launch.py` (`loupe serve`). Requests leave this room
through `dispatch.py` to `service.http`.
"""
