"""Training as a regression test: fixed runs whose loss curves are stored beside this file.

Faults of accuracy (a wrong mask, a lost gradient, a bad memory module) pass tests of shapes and speed and show in a
loss curve. ``short`` is small enough for every test run, ``long`` is for an idle machine or its GPUs.
"""
