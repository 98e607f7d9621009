from flopcast.kernels.backend import Backend, backend

__all__ = ["Backend", "backend"]
