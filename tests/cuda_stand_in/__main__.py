"""``python -m cuda_stand_in SCENARIO ...``: a scenario (kernels, training, profiling) in a process that has the device.

It changes PyTorch for the whole process, so it is imported in no process of a test.
"""

import ctypes
import sys
from importlib import import_module

from cuda_stand_in.build import library

# Before torch is imported, which asks once whether there is CUDA.
assert "torch" not in sys.modules
ctypes.CDLL(str(library()), ctypes.RTLD_GLOBAL)
import_module(f"cuda_stand_in.{sys.argv[1]}").main(sys.argv[2:])
