"""`python -m forgellm` is the command `forgellm`."""

from forgellm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
