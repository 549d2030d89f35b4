"""Other people's libraries over Hyper-V sockets: a module for each, named after it and imported by its own name.

``import hvsock`` and this package import none of them. The extra of the same name installs the library:
``pip install 'hvsock[httpx]'``.
"""

__all__: list[str] = []
