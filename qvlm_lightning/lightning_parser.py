"""The parser of the Lightning programs."""

from lightning.pytorch.cli import LightningArgumentParser

from qvlm_lightning.arguments import OneSentence


class OneSentenceParser(OneSentence, LightningArgumentParser):
    """For ``LightningCLI(parser_class=OneSentenceParser)``."""
