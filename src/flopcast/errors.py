"""The one exception for what a user can get wrong."""


class InputError(ValueError):
    """Bad input: the message says what was wrong, where, and how to mend it, in one line.

    The command line prints the message and exits with 2; anything else that reaches the top is a fault of
    the program.
    """


def nearest(name: str, known: list[str]) -> str:
    """A phrase that offers the known names closest to a misspelt one, e.g. ``did you mean 'plamo-13b'?``."""
    import difflib

    # "llama3" and "zero3-q4" are slips of the hyphen.
    letters = _letters(name)
    begin_alike = [k for k in known if len(letters) > 1 and _letters(k).startswith(letters)][:3]
    close = begin_alike or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    return "known: " + ", ".join(sorted(known))


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
