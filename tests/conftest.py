"""Settings of every test: examples take as long as a loaded machine makes them take."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
