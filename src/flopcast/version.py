"""The version of flopcast: read here, as a checkout that is not installed has no package metadata to read."""

__version__ = "0.1.0"
