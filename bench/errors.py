"""Why something could not be measured."""


class BenchError(Exception):
    """*what* went wrong, and how to *fix* it."""

    def __init__(self, what: str, *, fix: str = "") -> None:
        super().__init__(f"{what}\n  {fix}" if fix else what)
