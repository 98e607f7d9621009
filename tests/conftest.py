"""Settings of every test: tensors are small, and examples take as long as a loaded machine makes them take."""

import os

# Read when numpy and torch are first imported, here and in the processes that tests start: threads that wait for each
# other on busy cores take most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
