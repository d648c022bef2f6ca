"""What stands in a text where the words that were looked for do not."""

import difflib
import re
import unicodedata

_WORD = re.compile(r"\w+|[^\w\s]")
# Places that are compared letter by letter, and letters of each: a message has to come at once in a text of a million.
_PLACES, _LETTERS = 200, 400
_LEAST = 0.5


def nearest(what, text):
    """The passage of a text that is most like some words.

    Args:
        what: words that do not stand in the text.
        text: where they were looked for.

    Returns:
        (first, last, difference): characters [first, last), and in words how they differ, "" where it is to be seen. None: nothing is near.
    """
    for difference, form in (("composed otherwise in Unicode", _composed), ("other capitals", str.casefold)):
        place = _same(what, text, form)
        if place:
            return (*place, difference)
    spaced = re.search(r"\s+".join(map(re.escape, what.split())), text) if what.split() else None
    return (*spaced.span(), "other spaces") if spaced else _most_alike(what, text)


def _composed(text):
    return unicodedata.normalize("NFC", text)


def _same(what, text, form):
    """Where the words stand once both went through `form`; it may change how many characters there are."""
    changed = form(text)
    at = changed.find(form(what))
    if at < 0:
        return None
    first = _before(text, at, form)
    return first, _before(text, at + len(form(what)), form, first)


def _before(text, characters, form, first=0):
    """The least number of characters of `text` whose form has at least so many; forms grow with the text."""
    low, high = first, len(text)
    while low < high:
        middle = (low + high) // 2
        if len(form(text[:middle])) < characters:
            low = middle + 1
        else:
            high = middle
    # marks that join the character before them
    while low < len(text) and unicodedata.combining(text[low]):
        low += 1
    return low


def _most_alike(what, text):
    """By `difflib`, among the passages around the words that both have, the rarest first; else around the most similar words."""
    words = _words(text)
    asked = _WORD.findall(what)
    places = {}
    for number, word in enumerate(words):
        places.setdefault(word[0].casefold(), []).append(number)
    candidates = []
    for index, word in enumerate(asked):
        near = [word.casefold()] if word.casefold() in places else difflib.get_close_matches(word.casefold(), places, n=2, cutoff=0.6)
        candidates.extend((len(places[other]), number - index) for other in near for number in places[other])
    best, matcher = None, difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(what[:_LETTERS])
    for _, number in sorted(set(candidates))[:_PLACES]:
        first = words[max(0, number)][1]
        last = words[min(len(words), max(0, number) + len(asked)) - 1][2]
        matcher.set_seq1(text[first : min(last, first + _LETTERS)])
        ratio = matcher.ratio()
        if ratio >= _LEAST and (best is None or ratio > best[0]):
            best = ratio, first, last
    return best and (best[1], best[2], "")


def _words(text):
    return [(match[0], match.start(), match.end()) for match in _WORD.finditer(text)]
