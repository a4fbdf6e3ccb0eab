"""The one exception tree of Secateur, with the exit code each branch means."""

from __future__ import annotations


class SecateurError(Exception):
    """Signal a failure that Secateur understands; the message says what, what was got, the rule, the next act."""

    exit_code = 1


class InputError(SecateurError):
    """Signal that the input or the configuration is wrong: exit code 2, nothing written."""

    exit_code = 2


class StageError(SecateurError):
    """Signal that a stage could not be finished; what was committed stays committed."""


class ItemsError(StageError):
    """Signal that items failed after their own retries: doing the whole stage again at once would only repeat them."""


class StoreError(SecateurError):
    """Signal that the object store refused, or could not do, what was asked."""


class StoreOutageError(StoreError):
    """Signal that the store failed for all the time an operation is tried: that was the wait, and nobody waits again."""


class StoreRefusedError(StoreError):
    """Signal that the store refuses and would refuse again: credentials, rights, bucket or endpoint are wrong.

    Wrong input (exit code 2) where a command meets it; in the middle of a run the run fails (1) and can be resumed.
    """

    exit_code = 2


class CorruptError(StoreError):
    """Signal that a stored object is not what its seal, key or footer says it is."""


class LoosePartError(CorruptError):
    """Signal that a part of a stage that is not sealed yet is damaged: no seal says what it should be, so it goes."""


def outage_of(error: BaseException | None) -> StoreOutageError | None:
    """Return the outage of the store that `error` is or was made from, else None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, StoreOutageError):
            return error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
