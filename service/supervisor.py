"""What BentoML's supervisor, circus's arbiter, is made to do otherwise. Imported by the server alone: it imports BentoML."""

from __future__ import annotations

from typing import Any

from bentoml._internal.utils import circus

CHECK_WORKERS_S = 1.0
"""BentoML looks after its workers every ten seconds; a killed one must be back sooner."""


class Supervisor(circus.Arbiter):
    """Starts and watches the workers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "check_delay": CHECK_WORKERS_S})

    def stop(self) -> Any:
        """Tell the workers to end, and let go of the port.

        The workers have it open themselves and go on accepting for as long as they mean to. Kept open here, it would let clients connect
        whom no worker takes any more: they would hang until the last request of others is answered, and then be reset.
        """
        self.sockets.close_all()
        return super().stop()


def supervise() -> None:
    """Have BentoML use `Supervisor`. It has no setting for either; a test with a killed worker and one with SIGTERM tell if it changes."""
    circus.Arbiter = Supervisor  # type: ignore[misc]
