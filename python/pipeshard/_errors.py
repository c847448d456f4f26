"""What the functions of pipeshard.h return where they fail."""

INVALID = -1
VERSION = -2
BUSY = -3
BUDGET_TOO_SMALL = -4
DEADLINE = -5
NO_MEMORY = -6
NO_DEVICE = -7
DEVICE_LOST = -8
FILE = -9
CONTEXT_FULL = -10
CANCELLED = -11
TIMEOUT = -12
FORKED = -13
UNSUPPORTED = -14
INTERNAL = -15


class Error(Exception):
    """A call that failed, with a sentence for people.

    `code` is one of this module's, such as `pipeshard.BUSY`.
    """

    def __init__(self, code: int, text: str, minimum: int = 0) -> None:
        super().__init__(text)
        self.code = code
        #: The smallest budget in bytes that would have worked; 0 where that is not the matter.
        self.minimum = minimum


class BudgetTooSmall(Error):
    """A budget in which nothing works; `minimum` says which one does."""
