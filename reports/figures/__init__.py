"""Figures, one file each; every one is drawn under ``style.mplstyle``."""
