"""`mess` and `python -m mess`."""

import sys


def main() -> None:
    """The command line; says what to install when the torch extra is missing. `mess doctor` works without it."""
    try:
        from mess import cli
    except ModuleNotFoundError as error:
        if sys.argv[1:2] == ["doctor"]:
            from mess import doctor

            sys.exit(doctor.main(as_json="--json" in sys.argv))
        sys.stderr.write(f"mess: the command line needs the torch extra: pip install 'mess[torch]' ({error})\n")
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
