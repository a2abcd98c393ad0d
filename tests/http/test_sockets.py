"""What a server's processes listen on: the service's own port, and nothing else."""

import json
import stat
from pathlib import Path

import psutil
import zmq

from tests.http.server import Server

LISTENING = psutil.CONN_LISTEN


def sockets_of(server: Server) -> tuple[set[tuple[str, int]], set[int], set[str]]:
    """TCP addresses, UDP ports and paths of UNIX sockets, of all processes of *server*."""
    tcp: set[tuple[str, int]] = set()
    udp: set[int] = set()
    unix: set[str] = set()
    family = server.family()
    # A worker may have a process that looks inside its models.
    assert len(family) >= 1 + len(server.workers()) >= 2
    for process in family:
        for one in process.net_connections(kind="tcp"):
            if one.status == LISTENING:
                tcp.add(tuple(one.laddr))
        udp |= {one.laddr.port for one in process.net_connections(kind="udp") if one.laddr}
        unix |= {one.laddr for one in process.net_connections(kind="unix") if one.laddr}
    return tcp, udp, unix


def test_no_port_listens_but_the_services_own(server: Server):
    tcp, udp, unix = sockets_of(server)
    assert tcp == {("127.0.0.1", server.port)}
    assert udp == set()
    assert unix == set()


def test_the_folder_of_the_server_is_its_owners_alone(server: Server):
    folders = list((server.log_file.parent / "tmp").glob("loupe-serve-*"))
    assert len(folders) == 1
    assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700


def test_a_command_for_the_supervisor_reaches_nobody(server: Server, tmp_path: Path):
    """The attack as it was reported, on every port of the process tree and on the endpoint's own
    name.
    """
    command = {
        "command": "add",
        "properties": {"name": "x", "cmd": f"touch {tmp_path / 'taken'}", "start": True},
    }
    tcp, _, _ = sockets_of(server)
    context = zmq.Context()
    for endpoint in [*(f"tcp://{host}:{port}" for host, port in tcp), "inproc://loupe-control"]:
        attack = context.socket(zmq.DEALER)
        attack.linger = 0
        attack.connect(endpoint)
        attack.send(json.dumps(command).encode())
        # libzmq takes the first bytes of an HTTP refusal for a message.
        assert not attack.poll(300) or b'"ok"' not in attack.recv()
        attack.close()
    context.destroy()
    assert not (tmp_path / "taken").exists()
