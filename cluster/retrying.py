"""How long to go on trying: exponential backoff with full jitter, bounded by the time that has passed."""

from __future__ import annotations

import logging
import random
import time

# An object store that is restarted, fails over or throttles is back within a minute or two.
BUDGET_S = 120.0
# An endpoint that never answered this process is more likely a wrong one, and somebody waits for the message.
FIRST_CONTACT_S = 15.0
# After an outage that lasted a whole budget: what is left is to say how it ended.
LAST_WORDS_S = 5.0
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 8.0
# Single failures are everyday; a store that fails for longer is worth a line.
SILENT_S = 5.0
SAY_AGAIN_S = 60.0

_log = logging.getLogger("secateur.store")
_said_at = -SAY_AGAIN_S


class Patience:
    """Count the tries of one operation and the time since it began."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.tries = 0

    @property
    def elapsed(self) -> float:
        """Return the seconds since the operation began."""
        return time.monotonic() - self.begun

    def delay(self, what: str, why: str, budget_s: float) -> float | None:
        """Return the seconds to wait before the next try, None when `budget_s` have passed. An outage is logged once
        a minute and process."""
        self.tries += 1
        left = budget_s - self.elapsed
        if left <= 0:
            return None
        if self.elapsed > SILENT_S:
            _say(f"secateur: the object store fails ({why} on {what}); tried again for up to {budget_s:g} s")
        longest = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** min(self.tries, 20))
        return min(left, random.uniform(0, longest))


def _say(message: str) -> None:
    global _said_at
    now = time.monotonic()
    if now - _said_at >= SAY_AGAIN_S:
        _said_at = now
        _log.warning(message)
