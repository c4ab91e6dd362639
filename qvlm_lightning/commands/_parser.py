"""A parser of plain options whose complaints are one sentence; it imports nothing heavy."""

import argparse
from typing import NoReturn

from qvlm_lightning.errors import InputError


class PlainParser(argparse.ArgumentParser):
    """``argparse`` that raises what is wrong with the options instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint; the program prints it and ends with code 2."""
        raise InputError(f"{message}; --help tells the options")
