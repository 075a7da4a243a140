"""Run a batch of units in this process and commit it; the same inline and in a Ray worker."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from configs.errors import EchoForgeError, MissingWeights
from configs.runtime import stopping
from configs.runtime.disk import Refused
from configs.runtime.redaction import redact
from pipeline.engine.ledger import Ledger
from pipeline.engine.schedule import Done, Receipt, Trouble
from pipeline.engine.unit import Finished, Result, Unit

Payload = TypeVar("Payload")
Payload_contra = TypeVar("Payload_contra", contravariant=True)


class Worker(Protocol[Payload_contra]):
    """Does the units of one stage. Built once per process by the stage's ``make_worker``."""

    def run(self, payload: Payload_contra) -> Result:
        """The rows of one unit. Whatever it raises is the unit's failure, `MissingWeights` aside."""


def run_batch(
    worker: Worker[Payload],
    units: Sequence[Unit[Payload]],
    ledger: Ledger,
    code: str,
    guard: Callable[[Unit[Payload]], AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Receipt:
    """Run ``units`` one after the other and commit them together. ``guard`` watches over each.

    A requested stop leaves out those that had not ended: they are neither done nor failed.
    """
    receipt, finished = Receipt(), []
    for unit in units:
        begin = time.monotonic()
        try:
            stopping.check()
            with guard(unit):
                result = worker.run(unit.payload)
        except stopping.Stopped:
            break
        except (MissingWeights, Refused) as error:  # no fault of this unit
            receipt.fatal = error
            break
        except Exception as error:
            receipt.failed.append(Trouble(unit.id, _sentence(error), redact(traceback.format_exc(limit=-12))))
            continue
        finished.append(Finished(unit, result, time.monotonic() - begin))
    try:
        finished = _commit(finished, ledger, code, receipt)
    except EchoForgeError as error:
        return Receipt(fatal=receipt.fatal or error)
    receipt.done = [Done(f.unit.id, f.seconds, f.result.amount, dict(f.result.timings)) for f in finished]
    return receipt


def _commit(finished: list[Finished], ledger: Ledger, code: str, receipt: Receipt) -> list[Finished]:
    """Commit what can be committed, and return it; a unit whose rows no table holds has failed, alone.

    Raises:
        EchoForgeError: the place cannot be written, or another run has it: no fault of a unit.
    """
    if not finished:
        return []
    try:
        ledger.commit(finished, code)
        return finished
    except EchoForgeError:
        raise
    except Exception as error:  # of a value in a row: wrong type, too large, half a character
        if len(finished) > 1:
            return [item for one in finished for item in _commit([one], ledger, code, receipt)]
        detail = redact(traceback.format_exc(limit=-12))
        receipt.failed.append(Trouble(finished[0].unit.id, f"its rows cannot be written: {_sentence(error)}", detail))
        return []


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return redact(text if isinstance(error, EchoForgeError) else f"{type(error).__name__}: {text}")[:500]
