"""What is wrong with a command line, in a sentence that says how to mend it."""

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnusedCliTokensError,
)


def complaint(error: CycloptsError) -> str:
    """The parser's error as the rest of the program words its own."""
    if isinstance(error, CoercionError) and error.token is not None and error.token.keyword:
        mend = str(error.msg) if error.msg is not None else _mends(error)
        if mend:
            return f"{error.token.keyword} is '{error.token.value}'; {mend}"
    if isinstance(error, MissingArgumentError) and error.argument is not None and "Did you mean" not in str(error):
        command = " ".join(["flopcast", *(error.command_chain or ())])
        return f"{error.argument.name} is missing or has no value; '{command} --help' says what it takes"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice; give it once"
    if isinstance(error, UnusedCliTokensError):
        command = " ".join(["flopcast", *(error.command_chain or ())])
        return f"nothing takes '{' '.join(error.unused_tokens or ())}'; '{command} --help' says what each flag takes"
    return str(error).replace('"', "'")


def _mends(error: CoercionError) -> str:
    if error.target_type is int:
        return "write a whole number in digits alone, e.g. 1024"
    return "write a number, e.g. 0.5" if error.target_type is float else ""
