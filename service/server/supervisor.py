"""What Loupe changes in BentoML's supervisor, circus's arbiter.

Only the server imports this module: it imports BentoML.
"""

from __future__ import annotations

from typing import Any

from bentoml._internal.utils import circus

CHECK_WORKERS_S = 1.0
"""BentoML looks after its workers every ten seconds; a killed one must be back sooner."""
CONTROL = {"endpoint": "inproc://loupe-control", "pubsub_endpoint": "inproc://loupe-events"}
"""Where the arbiter takes commands and tells events: inside its own process, where no one else can connect.

BentoML gives it TCP ports on 127.0.0.1. There it runs any command that any local user sends.
"""


class Supervisor(circus.Arbiter):
    """Starts and watches the workers. Nobody can command it but by signals."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, **CONTROL, "check_delay": CHECK_WORKERS_S})

    def stop(self) -> Any:
        """Tell the workers to end, and close the port here.

        The workers have the port open themselves and accept connections for as long as they need.
        If it stayed open here, clients could still connect after no worker accepts any more. They
        would hang until the last request of others is answered, and then be reset.
        """
        self.sockets.close_all()
        return super().stop()


def supervise() -> None:
    """Have BentoML use `Supervisor`: it has no setting for what that changes.

    Three tests fail if BentoML changes: one with a killed worker, one with SIGTERM, one that lists
    the sockets of all processes.
    """
    circus.Arbiter = Supervisor  # type: ignore[misc]
