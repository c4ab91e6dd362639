"""How open answers are made comparable: the rules of the official scorers, oddities included.

Sources of the rules: VQA ``vqaEval.py``, the VizWiz API by Qing Li, and the answer processor of
EvalAI as in ``m4c_evaluator.py`` (M4C, LLaVA). A published figure depends on the oddities, so they
stay: each is named where it happens, and golden files in ``tests/metrics`` hold them in place.
"""

import re
from collections.abc import Callable
from functools import lru_cache

Normaliser = Callable[[str], str]

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Colon and apostrophe are in no list: both survive.
_ANY_PUNCTUATION = re.compile("[" + re.escape(_PUNCTUATION + ".") + "]")
# Official: meant as a look-behind, but "?!<=" is a look-ahead for the characters "<=", which a
# full stop never is. So "3." loses its stop, and so does ".5." at its end.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
# Official: re.UNICODE is passed where the number of replacements belongs, and it is 32.
_PERIODS_TAKEN = int(re.UNICODE)
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_COMMAS_IN_NUMBER = re.compile(r"\d,+\d")  # EvalAI's reading: "1,,000" is a number, too

_NUMBERS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}
_ARTICLES = {"a", "an", "the"}

_FULL_FORMS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
    why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd
    you'd've you'll you're you've
""".split()  # noqa: SIM905


def _one_apostrophe_missing(word: str) -> set[str]:
    return {word[:i] + word[i + 1 :] for i, mark in enumerate(word) if mark == "'"}


# The official tables list what misses exactly one apostrophe, and one form the wrong way round.
# Their capital entries ("Im", "Id've") never match: the text is in lower case by then.
_CONTRACTIONS = {
    short: full for full in _FULL_FORMS for short in sorted(_one_apostrophe_missing(full))
} | {"somebody'd": "somebodyd"}

# VizWiz's table was typed with typographic apostrophes but for these entries.
_STRAIGHT_IN_VIZWIZ = {
    *("ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've")
}
_VIZWIZ_CONTRACTIONS = {
    (short if short == "couldn'tve" or short == "hadn'tve" else short.replace("'", "’")): (
        full if full in _STRAIGHT_IN_VIZWIZ else full.replace("'", "’")
    )
    for short, full in _CONTRACTIONS.items()
}


def tidy(text: str) -> str:
    """Replace line breaks and tabs by spaces and strip the ends, as all scorers do first."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _punctuation(text: str, comma_in_number: re.Pattern[str]) -> str:
    """Delete or blank punctuation.

    A mark is deleted everywhere if it stands beside a space anywhere, or if the text holds a number
    with a comma; otherwise it becomes a space. All is decided on the text as given.
    """
    if not _ANY_PUNCTUATION.search(text):
        return text
    number = comma_in_number.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        if mark in text:
            beside = number or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if beside else " ")
    return _PERIOD.sub("", result, count=_PERIODS_TAKEN)


def _words(text: str, contractions: dict[str, str] = _CONTRACTIONS) -> str:
    """Lower case, number words up to ten as digits, no articles, apostrophes where they belong."""
    digits = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(contractions.get(word, word) for word in digits if word not in _ARTICLES)


@lru_cache(maxsize=1 << 16)
def official_answer(text: str) -> str:
    r"""Normalise by the VQA v2 rule (``processPunctuation``, then ``processDigitArticle``).

    Args:
        text: any text; callers :func:`tidy` it first.

    Example:
        >>> official_answer("The two-story house."), official_answer("1,000"), official_answer("Im")
        ('2 story house', '1000', 'im')
    """
    return _words(_punctuation(text, _COMMA_IN_NUMBER))


@lru_cache(maxsize=1 << 16)
def vizwiz_answer(text: str) -> str:
    """Normalise a prediction by the VizWiz rule: VQA v2's but for the apostrophes it puts in.

    Args:
        text: any text; callers :func:`tidy` it first.

    Example:
        >>> vizwiz_answer("A can of Coke!"), vizwiz_answer("dont know")
        ('can of coke', 'don’t know')
    """
    return _words(_punctuation(text, _COMMA_IN_NUMBER), _VIZWIZ_CONTRACTIONS)


@lru_cache(maxsize=1 << 16)
def evalai_answer(text: str) -> str:
    """Normalise by EvalAI's answer processor, which M4C, LLaVA and TextVQA score and submit with.

    Args:
        text: any text.

    Example:
        >>> evalai_answer("The dog's bowl, isnt it?"), evalai_answer("1,000")
        ("dog 's bowl isn't it", '1000')
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_punctuation(tidy(text), _COMMAS_IN_NUMBER))


@lru_cache(maxsize=1 << 16)
def lmms_answer(text: str) -> str:
    """Normalise as lmms-eval does for VQA v2: EvalAI's rule without its first step on words.

    Args:
        text: any text.

    Example:
        >>> lmms_answer("The dog's bowl, isnt it?")
        "dog's bowl isn't it"
    """
    return _words(_punctuation(tidy(text), _COMMAS_IN_NUMBER))
