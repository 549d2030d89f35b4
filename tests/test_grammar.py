"""How addresses are written, and what is made of mistakes. What the parts mean is tested where they are used."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock._grammar import HYPERV_KINDS, KINDS, Written, read

GUID = "6f2a3b7e-51a4-4c0d-9a53-0c5d1e7f8a42"


@pytest.mark.parametrize(
    ("text", "kind", "place", "service"),
    [
        ("parent/5000", "hvsock", "parent", "5000"),
        ("My VM/5000", "hvsock", "My VM", "5000"),
        ("50%25/5000", "hvsock", "50%25", "5000"),
        ("What? 2:1 #/@/5000", "hvsock", "What? 2:1 #/@", "5000"),
        ("hvsock://My%20VM%2F2/5000", "hvsock", "My VM/2", "5000"),
        ("HVSOCK://My VM/5000", "hvsock", "My VM", "5000"),
        ("vsock:2:5000", "vsock", "2", "5000"),
        ("vsock://2:5000", "vsock", "2", "5000"),
        ("vsock:-1:5000", "vsock", "-1", "5000"),
        ("vsock::5000", "vsock", "", "5000"),
        ("tcp:host:80", "tcp", "host", "80"),
        ("tcp::80", "tcp", "", "80"),
        ("tcp://[fe80::1%eth0]:80", "tcp", "[fe80::1%eth0]", "80"),
        ("unix:a.sock", "unix", "a.sock", ""),
        ("unix:/run/a:1", "unix", "/run/a:1", ""),
        ("unix:///run/a%20b", "unix", "/run/a b", ""),
        ("unix:///run/%FF", "unix", "/run/\udcff", ""),
        (r"unix:C:\a.sock", "unix", r"C:\a.sock", ""),
        ("hybrid:v.sock:5000", "hybrid", "v.sock", "5000"),
        ("hybrid:///v.sock:5000", "hybrid", "/v.sock", "5000"),
        ("hybrid:///v.sock?port=5000", "hybrid", "/v.sock", "5000"),
        ("hybrid:///v.sock:1?port=5000", "hybrid", "/v.sock:1", "5000"),
    ],
)
def test_forms(text: str, kind: str, place: str, service: str) -> None:
    assert read(text) == (kind, place, service, {})


@pytest.mark.parametrize(
    ("text", "transport"),
    [
        ("parent/5000", None),
        ("parent/5000?transport=local", "local"),
        ("hvsock://parent/5000?transport=hyperv", "hyperv"),
        ("vsock:2:5000", "vsock"),
        ("vsock://2:5000?transport=local", "local"),
        ("tcp::80", None),
    ],
)
def test_transport(text: str, transport: str | None) -> None:
    assert read(text).transport == transport


@pytest.mark.parametrize(
    ("text", "meant", "meant_by_a_command"),
    [
        ("parent:5000", "parent/5000", "parent/5000"),
        (f"{{{GUID}}}:80", f"{{{GUID}}}/80", f"{{{GUID}}}/80"),
        ("agent:5000", "tcp:agent:5000", "agent/5000"),
        ("parent/5000/", "parent/5000", "parent/5000"),
        ("//parent/5000", "hvsock://parent/5000", "hvsock://parent/5000"),
        ("hvsock:parent/5000", "hvsock://parent/5000", "hvsock://parent/5000"),
        ("hvsock://parent:5000", "hvsock://parent/5000", "hvsock://parent/5000"),
        ("vsock:parent:5000", "hvsock://parent/5000", "hvsock://parent/5000"),
        ("2:5000", "vsock:2:5000", "vsock:2:5000"),
        ("vsock:2/5000", "vsock:2:5000", "vsock:2:5000"),
        ("vsock-stream:2:2714018708", "vsock:2:2714018708", "vsock:2:2714018708"),
        ("VSOCK-CONNECT:2:5000", "vsock:2:5000", "vsock:2:5000"),
        ("VSOCK-LISTEN:5000", "vsock::5000", "vsock::5000"),
        ("TCP-LISTEN:80", "tcp::80", None),
        ("UNIX-CONNECT:/run/a", "unix:/run/a", None),
        ("http://localhost:8080/", "tcp:localhost:8080", None),
        ("80", "tcp::80", None),
        ("tcp://host:80/", "tcp:host:80", None),
        ("/run/a.sock", "unix:/run/a.sock", None),
        ("unix://run/a", "unix:run/a", None),
        ("parent", None, None),
        ("", None, None),
        ("udp://host:80", None, None),
    ],
)
def test_what_was_meant(text: str, meant: str | None, meant_by_a_command: str | None) -> None:
    for kinds, expected in ((KINDS, meant), (HYPERV_KINDS, meant_by_a_command)):
        with pytest.raises(ValueError, match=rf"^{re.escape(repr(text))} is not of the form ") as caught:
            read(text, kinds)
        hint = re.search(r"; did you mean '(.*)'\?$", str(caught.value))
        assert (hint and hint[1]) == expected
        if expected is not None:
            read(expected, kinds)


def test_in_a_uri_a_question_mark_begins_the_options() -> None:
    with pytest.raises(ValueError, match=r" is not of the form VM/SERVICE"):
        read("hvsock://What?/5000?transport=local")


@pytest.mark.parametrize("text", ["", "parent", "udp://host:80", "hvsock://parent"])
def test_an_example_is_given(text: str) -> None:
    with pytest.raises(ValueError, match=r", such as parent/5000$"):
        read(text)


@pytest.mark.parametrize("text", ["tcp::80", "tcp:80", "unix:/run/a", "hybrid:/v.sock:1"])
def test_what_is_for_a_relay(text: str) -> None:
    kind = text.partition(":")[0]
    reason = rf"only a relay takes {kind}:"
    with pytest.raises(ValueError, match=rf" is not of the form VM/SERVICE or vsock:CID:PORT: {reason}$"):
        read(text, HYPERV_KINDS)


@pytest.mark.parametrize("value", [None, 5000, b"parent/5000", ("parent", 5000)])
def test_what_is_no_text(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^an address must be a str, not "):
        read(value)


@given(st.text() | st.builds("{}:{}".format, st.sampled_from(KINDS), st.text(alphabet="/:?=%0aportsn @#-")))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        written = read(text)
    except ValueError:
        return
    assert type(written) is Written
    assert written.kind in KINDS
    assert "\0" not in written.place
