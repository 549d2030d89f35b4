"""Other libraries over Hyper-V sockets: docs/reference/libraries.md has a row for each, and this package a module.

`catalogue` says which libraries there are, how each is run and on which transports. A module has two roles, each of
which runs in a process of its own, by `roles`: ``server(how, address)`` and ``client(how, address)``. `harness` has
what they share: an event loop, the sizes, and the checks that each client makes.

A further library takes a module, a line of `catalogue`, its version in requirements.txt (in requirements-windows.txt if
the Windows bed runs it), and a row of the page; test_libraries_page.py compares them.
"""
