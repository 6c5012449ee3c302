"""What tests/conftest.py promises to every test."""

from __future__ import annotations

import os
import socket

import pytest


def test_no_test_reaches_beyond_this_machine() -> None:
    with socket.socket() as client, pytest.raises(RuntimeError, match="tried to reach"):
        client.connect(("192.0.2.1", 80))


def test_loopback_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        assert client.getpeername() == server.getsockname()


def test_nothing_is_sent_to_a_hub_or_a_tracker() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["WANDB_MODE"] == "disabled"
    assert os.environ["OMP_NUM_THREADS"] == "1"
