"""The entry of scheduled runs: the same flow, in a process of Prefect's, that ends with its signal's exit code."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow

from flows import pipeline
from flows.api_link import LINK
from flows.signals import exit_at_once, interruptible


@flow(name="secateur", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def prune(config: dict[str, Any], store: str, ray: str = "local", name: str = "secateur") -> dict[str, Any]:
    """Run a configuration to its report and return results.json. The same configuration resumes.

    A cancelled or terminated run cleans up, records the attempt and ends its process with 143 or 130.
    """
    with interruptible(until_exit=True) as guard:
        try:
            results: dict[str, Any] = pipeline.prune.fn(config, store, ray, name)
            return results
        except BaseException:
            if guard.received is None:
                raise
            # Prefect's engine would end a cancelled run with 0; its runner, which asked, says how the flow run ended.
            LINK.close()
            logging.shutdown()
            exit_at_once(128 + guard.received)
