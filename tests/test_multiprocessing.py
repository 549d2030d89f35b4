"""Sockets handed to the processes of `multiprocessing`, and to no other pickler."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import utils
from children import processes
from utils import LIMIT, connected, run_child

import hvsock

METHODS = [name for name in multiprocessing.get_all_start_methods() if name != "fork"]


@pytest.mark.parametrize("method", METHODS)
def test_hand_over(implementation: str, method: str) -> None:
    """As an argument, through a pipe and through a queue, a connection and a listener, and back again."""
    run_child(processes.hand_over, implementation, method, timeout=2 * LIMIT)


def test_no_other_pickler(ours: str) -> None:
    """As of a socket.socket, whether or not multiprocessing is imported; it takes no subclass either."""
    with connected(ours) as (a, b):
        before = utils.handles()
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps([a], protocol)
            with pytest.raises(TypeError):
                pickle._dumps([a], protocol)  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match="pickle"):
            copy.copy(a)

        class Subclass(hvsock.HyperVSocket):
            """A socket with attributes that another process would not have."""

        with Subclass(fileno=a.detach()) as own:
            with pytest.raises(TypeError, match="pickle"):
                ForkingPickler.dumps(own)
            assert utils.handles() == before
            own.sendall(b"x")
            assert b.recv(1) == b"x"


def test_closed_socket(ours: str) -> None:
    """The system says that it is closed."""
    with connected(ours) as (a, _):
        a.close()
        with pytest.raises(OSError, match=r"."):
            ForkingPickler.dumps(a)
