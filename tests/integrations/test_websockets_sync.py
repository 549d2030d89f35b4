"""`hvsock.integrations.websockets_sync`."""

from __future__ import annotations

import pytest
import utils

import hvsock
from integrations import servers

pytest.importorskip("websockets", minversion="17", reason="pip install 'hvsock[websockets]'")


def test_serve(transport: str) -> None:
    servers.check_websockets(servers.websockets_sync, transport, requests=100)


def test_the_address_is_in_use(transport: str) -> None:
    from hvsock.integrations.websockets_sync import serve

    with utils.listen(transport) as listener, pytest.raises(OSError):
        serve(lambda _: None, listener.getsockname(), transport=transport)


def test_its_name_in_the_log(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    from hvsock.integrations.websockets_sync import serve

    address = hvsock.as_address(("loopback", utils.new_service()))
    with caplog.at_level("INFO"), serve(lambda _: None, address, transport=transport) as server:
        task = utils.Task(server.serve_forever)
        utils.wait_for(lambda: caplog.messages)
    task.result()
    assert caplog.messages[0] == f"server listening on [{address.vm_id}]:{address.port}"
