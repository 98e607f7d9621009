"""The application that the commands of this folder register with."""

from typing import Annotated, TypeAlias

from cyclopts import App, Parameter

from flopcast.cli.numbers import whole_in_digits
from flopcast.version import __version__

# A switch without a "--no-..." twin.
Flag: TypeAlias = Annotated[bool, Parameter(negative="")]

app = App(
    name="flopcast",
    help="Forecasts what a language-model training run costs on a GPU cluster, explains the forecast, and proves it.",
    version=__version__,
    version_flags=["--version"],
    config=whole_in_digits,
    suppress_keyboard_interrupt=False,  # main says so, where cyclopts would leave without a word
)
bench = App(name="bench", help="Measure this machine: one family of operations, in the columns its users know.")
app.command(bench)
