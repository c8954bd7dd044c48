"""How far addresses lead, and which of those that others say are dialled."""

import pytest

from protocol.reach import Reach, believed, reach_of


@pytest.mark.parametrize(
    ("reach", "hosts"),
    [
        (Reach.HOST, "127.0.0.1 127.9.9.9 0.0.0.0 169.254.169.254 224.0.0.1 ::1 :: fe80::1 ff02::1 ::ffff:127.0.0.1"),
        (Reach.HOST, "localhost my.localhost localhost."),
        (Reach.NEAR, "10.0.0.1 192.168.1.1 172.16.0.9 100.64.0.1 fd00::1 nas router.lan printer.local a.home.arpa"),
        (Reach.FAR, "8.8.8.8 2606:4700::1 mesh.example.org example.org."),
    ],
)
def test_an_address_leads_as_far_as_its_network(reach: Reach, hosts: str) -> None:
    assert {host: reach_of(host) for host in hosts.split()} == dict.fromkeys(hosts.split(), reach)


def test_of_what_others_say_only_what_leads_as_far_as_what_is_known_is_believed() -> None:
    far, near, own = "mesh.example.org:443", "hub://192.168.1.5:7418", "[::1]:7417"
    told = (far, near, own)
    assert believed(told, ()) == believed(told, ("8.8.8.8:1",)) == (far,)
    assert believed(told, (far, "10.0.0.1:7417")) == (far, near)
    assert believed(told, ("hub+wss://127.0.0.1:7418",)) == told
    assert believed((), told) == ()
