"""Progress bars for the passes that Lightning's own bar does not see."""

from tqdm import tqdm

_bars: dict[str, tqdm] = {}


def say(line: str) -> None:
    """Print a line above the bars that are open."""
    tqdm.write(line)


def bar(what: str, done: int, of: int) -> None:
    """Show that ``done`` of ``of`` parts of ``what`` are finished; the bar closes with the last
    part.
    """
    if what not in _bars:
        _bars[what] = tqdm(total=of, desc=what, leave=True)
    _bars[what].update(done - _bars[what].n)
    if done >= of:
        _bars.pop(what).close()
