"""Who meets a canary, and which requests a shadow sees."""

import pytest

from service.rollout.traffic import in_share

CLIENTS = [f"10.0.{number // 256}.{number % 256}" for number in range(4000)]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_of_the_clients_is_met(share):
    found = sum(in_share(share, model="ants", client=client) for client in CLIENTS)
    # Five deviations of the binomial distribution.
    assert found == pytest.approx(
        share * len(CLIENTS), abs=5 * (len(CLIENTS) * share * (1 - share)) ** 0.5
    )


def test_a_larger_share_keeps_the_clients_of_the_smaller():
    small = {client for client in CLIENTS if in_share(0.1, model="ants", client=client)}
    assert small < {client for client in CLIENTS if in_share(0.2, model="ants", client=client)}


def test_models_choose_different_clients():
    chosen = [
        {client for client in CLIENTS if in_share(0.1, model=model, client=client)}
        for model in ("ants", "bees")
    ]
    # Independent: a tenth of a tenth, 40 of 4000, within five deviations.
    assert len(chosen[0] & chosen[1]) == pytest.approx(40, abs=32)


def test_a_known_client_stays_where_it_was_when_this_was_written():
    """Another hash would move every client at the next release."""
    assert [
        client for client in CLIENTS[:40] if in_share(0.1, model="ants", client=client)
    ] == KNOWN


KNOWN = ["10.0.0.11", "10.0.0.35"]


def test_the_ends_and_the_nameless():
    assert not any(in_share(0.0, model="ants", client=client) for client in CLIENTS)
    assert all(in_share(1.0, model="ants", client=client) for client in CLIENTS)
    assert not in_share(1.0, model="ants", client="")
