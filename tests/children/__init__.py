"""What runs in processes of their own: `utils.Child` starts one with a function of these modules, or of another's.

Each checks for itself: an assertion that fails is a traceback and exit code 1, which `utils.Child.finish` reports. They
start fast: none imports pytest.
"""


def say(*words: object, sep: str = " ") -> None:
    """Print a line, at once."""
    print(*words, sep=sep, flush=True)
