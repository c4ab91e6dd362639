"""What a search has run."""

from dataclasses import dataclass

from qvlm_lightning.nn.distributed import is_main


@dataclass
class Cost:
    """Evaluations of one layer on one batch, and of one site's Linear layers.

    Work that every process repeats is counted once, so that the sum over the processes is what one
    process would run.
    """

    layer_forwards: int = 0
    site_forwards: int = 0

    def count(self, layers: int = 0, sites: int = 0, repeated: bool = False) -> None:
        """Add evaluations; ``repeated`` says that every process makes the same ones."""
        if not repeated or is_main():
            self.layer_forwards += layers
            self.site_forwards += sites
