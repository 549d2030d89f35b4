"""`python -m hvsock` and the `hvsock` command: both call `main()`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the extra `hvsock[cli]`, say in one line how to get it."""
    try:
        import rich  # noqa: F401 - the command line imports the parts of it only when it prints

        from hvsock._cli import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("click", "rich"):
            raise
        # Double quotes, because they work in sh, PowerShell and cmd.exe alike.
        sys.exit(f'hvsock: the command line needs {package}: pip install "hvsock[cli]"')
    cli(prog_name="hvsock")


if __name__ == "__main__":
    main()
