"""Signal from Noise: the code of the book, tangled from its chapters."""


def __getattr__(name: str) -> str:
    """Return `__version__`, looked up in the installation when it is asked for."""
    if name != "__version__":
        raise AttributeError(f"module 'tangled' has no attribute '{name}'")
    from importlib.metadata import version

    return version("signal-from-noise")
