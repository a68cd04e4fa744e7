"""What flows tell the world: Prefect events, and a message to a webhook where one is named.

Every event has a resource and a payload of plain values, so that an automation can start a
deployment with them (flows/prefect/setup.py).
"""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

RETRIED = "focusdpo.task.retried"
"""A task gets another try, with the reason."""
FAILED = "focusdpo.run.failed"

WEBHOOK = "FOCUSDPO_WEBHOOK_URL"
"""Environment variable with the address of the notifications hook."""
SECRET = "focusdpo-webhook-url"
"""Name of a Prefect Secret block with that address, read when the variable is not set."""
TIMEOUT = 10.0


def emit(name: str, resource: str, title: str, payload: Mapping[str, Any], by: str) -> None:
    """One Prefect event. `resource` is its id, `by` the flow that tells it."""
    from prefect.events import emit_event

    emit_event(
        name,
        resource={
            "prefect.resource.id": resource,
            "prefect.resource.name": title,
            "focusdpo.by": by,
        },
        payload=dict(payload),
    )


def on_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of every flow: a run that failed or crashed is told to the webhook."""
    payload = {
        "flow": flow.name,
        "run": str(flow_run.id),
        "name": flow_run.name,
        "state": state.name,
    }
    text = f"{flow.name} {flow_run.name}: {state.name}: {state.message or ''}"
    notify(FAILED, text.strip(), payload)


def notify(event: str, text: str, payload: Mapping[str, Any]) -> bool:
    """POST {"event", "text", "payload"} as JSON to the webhook; whether it took it. `text` is what
    chat services show.

    A message that does not get through changes nothing but a line in the log. The address is a
    secret and never stands there.
    """
    url = _address()
    if url is None:
        return False
    if not url.startswith(("http://", "https://")):
        log.warning("the notifications hook is no http(s) address; nothing was sent")
        return False
    body = json.dumps({"event": event, "text": text, "payload": dict(payload)}, default=str)
    request = urllib.request.Request(
        url, body.encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with _OPENER.open(request, timeout=TIMEOUT):
            return True
    except urllib.error.HTTPError as error:
        log.warning("the notifications hook answered %d to %s", error.code, event)
    except (OSError, ValueError) as error:
        # Their text may hold the address.
        log.warning("the notifications hook was not reached (%s)", type(error).__name__)
    return False


class _Stay(urllib.request.HTTPRedirectHandler):
    """Goes to no other address: the first may hold a token."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


def _address() -> str | None:
    """From the environment, else from the Prefect block; None when neither is there."""
    named = os.environ.get(WEBHOOK)
    if named is not None:
        return named.strip() or None
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            document = client.read_block_document_by_name(SECRET, "secret", include_secrets=True)
        except ObjectNotFound:
            return None
    return str(document.data.get("value") or "").strip() or None
