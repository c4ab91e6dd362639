"""Rankings as one page, in Markdown and in HTML that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from qvlm_lightning.results.charts import magnitudes
from qvlm_lightning.results.leaderboard import BASELINE, Ranking, Standing
from qvlm_lightning.results.leaderboard_tables import (
    NOTE,
    OURS,
    ranking_grid,
    ranking_title,
    summary_grid,
)
from qvlm_lightning.results.pages import page, parted
from qvlm_lightning.results.render import markdown

COLOURS = {True: "--c4", False: "--c2", None: "--c0"}
"""Colour of a method of ours, of a rival and of the baseline: names of the style sheet."""
WIDTH = 280
"""Of a picture: it fits beside others."""
MADE = "Made by a command, not by hand; rows that were there before it may be older."
"""Below what made a page."""


def markdown_page(rankings: Sequence[Ranking], made: Mapping[str, str]) -> str:
    """Write the page in Markdown.

    Args:
        rankings: at least one.
        made: what made it, by name: command, commit, hardware, date.
    """
    facts = "\n".join(f"- {name}: {text}" for name, text in made.items())
    head = f"# Leaderboard\n\n{MADE}\n\n{facts}\n\n{NOTE}"
    grids = [summary_grid(rankings), *map(ranking_grid, rankings)]
    return "\n\n".join([head, *map(markdown, grids)]) + "\n"


def html_page(rankings: Sequence[Ranking], made: Mapping[str, str]) -> str:
    """Write the page in HTML; see :func:`markdown_page`."""
    return page(
        "leaderboard.html",
        made={name: text.strip("`") for name, text in made.items()},
        sentence=MADE,
        note=NOTE,
        parted=parted,
        colours=_legend(rankings),
        summary=summary_grid(rankings),
        contests=[_contest(ranking) for ranking in rankings],
    )


def _contest(ranking: Ranking) -> dict[str, Any]:
    title = ranking_title(ranking)
    drawn = [
        (
            f"{s.method}{OURS if s.ours else ''}",
            (kl["value"], kl["ci_low"], kl["ci_high"]),
            _colour(s),
        )
        for s in ranking.standings
        if (kl := s.figures.get("kl")) is not None
    ]
    words = f"KL to full precision per method, {title}"
    return {
        "grid": ranking_grid(ranking),
        "picture": magnitudes(drawn, words, WIDTH) if drawn else None,
    }


def _colour(standing: Standing) -> str:
    return COLOURS[None if standing.method == BASELINE else standing.ours]


def _legend(rankings: Sequence[Ranking]) -> dict[str, str]:
    """Return the kinds of methods that are drawn, with their colours."""
    names = {True: "ours", False: "rivals", None: BASELINE}
    drawn = {_colour(s) for ranking in rankings for s in ranking.standings}
    return {names[kind]: colour for kind, colour in COLOURS.items() if colour in drawn}
