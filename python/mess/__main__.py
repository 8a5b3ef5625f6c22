"""`mess` and `python -m mess`."""

import sys


def main() -> None:
    """The command line; says what to install when typer and rich are missing. `mess doctor` works without it."""
    try:
        from mess import cli
    except ModuleNotFoundError as error:
        if sys.argv[1:2] == ["doctor"]:
            from mess import doctor

            sys.exit(doctor.main(as_json="--json" in sys.argv))
        install = "pip install 'mess[torch]', or 'mess[search]' for `mess search` alone"
        sys.stderr.write(f"mess: the command line needs an extra: {install} ({error})\n")
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
