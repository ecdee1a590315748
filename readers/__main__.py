"""`python -m readers`: the same as the command `readers`."""

from readers.cli import main

if __name__ == "__main__":
    main(prog_name="readers")
