"""Ports stay the same from start to start, and no two stacks choose the same."""

from __future__ import annotations

import socket
from pathlib import Path

from headrace.embedded.parts import free_port
from headrace.embedded.parts.process import PORTS, claim_port
from headrace.embedded.ports import Ports, RememberedPorts

HOST = "127.0.0.1"


def an_unclaimed_port(folder: Path) -> int:
    ports = Ports(folder / "before.json", HOST)
    port = ports.take("any", PORTS[0])
    ports.release()
    return port


def test_the_usual_port_is_taken_where_it_is_free(tmp_path: Path) -> None:
    usual = an_unclaimed_port(tmp_path)
    ports = Ports(tmp_path / "ports.json", HOST)
    assert ports.take("kafka", usual) == usual
    ports.release()


def test_a_port_in_use_is_not_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((HOST, an_unclaimed_port(tmp_path)))
        other.listen()
        usual = other.getsockname()[1]
        ports = Ports(tmp_path / "ports.json", HOST)
        assert ports.take("kafka", usual) != usual
        ports.release()


def test_a_port_that_another_stack_has_chosen_is_not_taken_though_nothing_listens_yet(tmp_path: Path) -> None:
    usual = an_unclaimed_port(tmp_path)
    first, second = Ports(tmp_path / "1.json", HOST), Ports(tmp_path / "2.json", HOST)
    assert first.take("kafka", usual) == usual
    other = second.take("kafka", usual)
    assert other != usual
    first.release()
    second.release()
    again = Ports(tmp_path / "3.json", HOST)
    assert again.take("kafka", usual) == usual
    again.release()


def test_the_next_start_has_the_same_ports(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    usual = an_unclaimed_port(tmp_path)
    blocker = Ports(tmp_path / "blocker.json", HOST)
    blocker.take("kafka", usual)
    first = Ports(file, HOST)
    chosen = first.take("kafka", usual)
    first.remember()
    first.release()
    blocker.release()
    # Its own one, though the usual one is free now: clients know it.
    second = Ports(file, HOST)
    assert second.take("kafka", usual) == chosen
    second.release()
    assert RememberedPorts(file).take("kafka", usual) == chosen


def test_a_broken_file_costs_only_the_preference(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    file.write_text("[1, 2")
    usual = an_unclaimed_port(tmp_path)
    ports = Ports(file, HOST)
    assert ports.take("kafka", usual) == usual
    ports.release()


def test_a_port_that_was_asked_for_is_nobody_elses(tmp_path: Path) -> None:
    asked = free_port()
    ports = Ports(tmp_path / "ports.json", HOST)
    assert ports.take("kafka", asked) != asked
    ports.release()
    assert claim_port(asked) is None
