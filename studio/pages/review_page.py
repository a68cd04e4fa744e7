"""Review: a pair at a time, by keyboard, blind or with everything that the scorers say."""

from __future__ import annotations

import hashlib
import urllib.parse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from focusdpo.data_schemas.errors import UserError, counted
from focusdpo.data_schemas.pairs import DECISIONS, SOURCES, Decision, Pair, Review
from focusdpo.pipeline.audit import Audit, act_of, clean_reviewer
from focusdpo.pipeline.review_stats import statistics
from focusdpo.studio.guard import json_body, text
from focusdpo.studio.review_queue import (
    ORDERS,
    SHOWS,
    Filter,
    Item,
    Queue,
    before_last,
    blind_decision,
    winner_side,
)
from focusdpo.studio.views import NavItem, absent, float_of, render, studio_of

NAV = (NavItem("Review", "/review"),)
MOST_LISTED = 200
"""Pairs that a page gets at once; it asks for more."""
MOST_AT_ONCE = 2000
BULK: dict[str, Decision] = {"accept": "accept", "reject": "reject"}
"""What may be decided about all pairs of a filter."""
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}


def page(request: Request) -> Response:
    """The page itself; its script asks for the pairs."""
    queue, _ = _open(request)
    chosen = _filter(request)
    return render(
        request,
        "review.html.j2",
        reviewer=_reviewer(request, needed=False),
        blind=request.query_params.get("mode") == "blind",
        chosen=chosen,
        subjects=queue.subjects,
        sources=SOURCES,
        shows={"open": "not yet decided by me", "mine": "decided by me", "disputed": "disputed",
               "all": "all"},
        orders={"uncertain": "least certain first", "certain": "most certain first",
                "pair": "by name"},
    )  # fmt: skip


def listing(request: Request) -> Response:
    """The queue as the filter has it, and how far the reviewer is."""
    queue, audit = _open(request)
    reviewer = _reviewer(request)
    reviews = audit.reviews()
    items, matching, count = queue.items(reviews, reviewer, _filter(request), MOST_LISTED)
    blind = request.query_params.get("mode") == "blind"
    return JSONResponse(
        {
            "pairs": [_listed(item, blind) for item in items],
            "matching": matching,
            "count": asdict(count),
            "agreement": _agreement(reviews, blind),
        }
    )


def detail(request: Request) -> Response:
    """One pair. A blind reviewer is told nothing from which the winner could be read."""
    queue, audit = _open(request)
    reviewer = _reviewer(request)
    pair = _pair(queue, request)
    blind = request.query_params.get("mode") == "blind"
    sides = _sides(pair, reviewer, blind)
    held = [review for review in audit.reviews() if review.pair_id == pair.id]
    shown: dict[str, Any] = {
        "id": pair.id,
        "prompt": pair.prompt,
        "subjects": [
            {"name": name, "class_name": word, "picture": _picture(pair, f"ref{at}")}
            for at, (name, word) in enumerate(zip(pair.subject_ids, pair.class_names, strict=True))
        ],
        "left": _picture(pair, sides["left"], reviewer if blind else ""),
        "right": _picture(pair, sides["right"], reviewer if blind else ""),
        "mine": _mine(held, pair, reviewer, blind),
    }
    if not blind:
        shown |= {
            "source": pair.source,
            "mode": pair.mode,
            "margin": pair.margin,
            "reason": pair.reason,
            "win_identity": pair.win_identity,
            "lose_identity": pair.lose_identity,
            "history": [
                {
                    "reviewer": review.reviewer,
                    "decision": review.decision,
                    "when": review.when,
                    "reason": review.reason,
                }
                for review in held
            ],
        }
    return JSONResponse(shown)


def picture(request: Request) -> Response:
    """A picture of a pair. Blind addresses name a side, not a role."""
    queue, _ = _open(request)
    pair = _pair(queue, request)
    what = request.path_params["what"]
    if what in ("left", "right"):
        what = _sides(pair, _reviewer(request), True)[what]
    data = queue.picture(pair, what)
    if data is None:
        raise absent("no such picture")
    return Response(data, media_type="image/png", headers=FOREVER)


async def decide(request: Request) -> Response:
    """Store a decision: accept, reject or swap; blind: left, right or neither; or undo."""
    values = await json_body(request)
    return JSONResponse(await run_in_threadpool(_decide, request, values))


def _decide(request: Request, values: dict[str, Any]) -> dict[str, Any]:
    queue, audit = _open(request)
    reviewer = clean_reviewer(text(values, "reviewer"))
    wanted, reason = text(values, "decision"), text(values, "reason")
    pair_id = text(values, "pair")
    if pair_id not in queue:
        raise UserError("this pair is not in the newest version; load the page again")
    pair = queue.pair(pair_id)
    blind = values.get("blind") is True
    decided = 1
    decision: Decision
    if wanted == "undo":
        decided = _undo(queue, audit, pair, reviewer, reason=reason, blind=blind)
    else:
        if blind:
            decision = blind_decision(wanted, reviewer, pair)
        elif wanted in DECISIONS:
            decision = wanted
        else:
            raise UserError(
                f"decision '{wanted[:20]}': expected one of {', '.join(DECISIONS)}, undo"
            )
        audit.record(pair, decision, reviewer, reason=reason, blind=blind)
    reviews = audit.reviews()
    held = [review for review in reviews if review.pair_id == pair.id]
    _, _, count = queue.items(reviews, reviewer, _filter(request), 0)
    return {
        "decided": decided,
        "mine": _mine(held, pair, reviewer, blind),
        "count": asdict(count),
        "agreement": _agreement(reviews, blind),
    }


async def decide_all(request: Request) -> Response:
    """Accept or reject every pair that the filter lets through, as one act: one undo takes it
    back."""
    values = await json_body(request)
    return JSONResponse(await run_in_threadpool(_decide_all, request, values))


def _decide_all(request: Request, values: dict[str, Any]) -> dict[str, Any]:
    queue, audit = _open(request)
    reviewer, wanted = clean_reviewer(text(values, "reviewer")), text(values, "decision")
    if wanted not in BULK:
        raise UserError(f"decision '{wanted[:20]}': expected one of {', '.join(BULK)}")
    chosen = _filter(request)
    items, matching, _ = queue.items(audit.reviews(), reviewer, chosen, MOST_AT_ONCE)
    if values.get("matching") != matching:
        raise UserError(
            f"the filter lets {counted(matching, 'pair')} through by now; look at them, and decide "
            "again"
        )
    if not 1 <= matching <= MOST_AT_ONCE:
        raise UserError(
            f"{counted(matching, 'pair')}: expected 1 to {MOST_AT_ONCE} at once; choose by "
            "subject, source or margin"
        )
    decided = [(queue.pair(item.pair_id), BULK[wanted]) for item in items]
    audit.record_all(decided, reviewer, reason=text(values, "reason"))
    return {"decided": len(decided), "pair": items[0].pair_id}


def _undo(
    queue: Queue, audit: Audit, pair: Pair, reviewer: str, *, reason: str, blind: bool
) -> int:
    """Take back the reviewer's last act about a pair, and with it what else that act decided; of
    how many pairs it was."""
    reviews = audit.reviews()
    back: list[tuple[Pair, Decision]] = []
    for name in act_of(reviews, pair.id, reviewer):
        if name in queue:
            undone = queue.pair(name)
            before = before_last(reviews, undone, reviewer)
            if before is not None:
                back.append((undone, before))
    if not any(undone.id == pair.id for undone, _ in back):
        raise UserError("there is no decision of yours to undo for this pair")
    audit.record_all(back, reviewer, reason=reason, blind=blind)
    return len(back)


def _open(request: Request) -> tuple[Queue, Audit]:
    studio = studio_of(request)
    dataset = studio.needed_dataset()
    return studio.queue(dataset), studio.audit(dataset.store)


def _filter(request: Request) -> Filter:
    asked = request.query_params
    chosen = Filter(subject=asked.get("subject", ""), source=asked.get("source", ""))
    show, order = asked.get("show", "open"), asked.get("order", "uncertain")
    if show not in SHOWS or order not in ORDERS or chosen.source not in ("", *SOURCES):
        raise UserError("the filter is not one of the page's; open Review again")
    low, high = float_of(request, "low"), float_of(request, "high")
    return replace(chosen, show=show, order=order, low=low, high=high)


def _reviewer(request: Request, *, needed: bool = True) -> str:
    name = request.query_params.get("reviewer", "")
    return clean_reviewer(name) if needed or name.strip() else ""


def _pair(queue: Queue, request: Request) -> Pair:
    name = request.path_params["pair"]
    if name not in queue:
        raise absent("no such pair in the newest version")
    return queue.pair(name)


def _sides(pair: Pair, reviewer: str, blind: bool) -> dict[str, str]:
    """Side -> win or lose."""
    if not blind or winner_side(reviewer, pair) == "left":
        return {"left": "win", "right": "lose"}
    return {"left": "lose", "right": "win"}


def _picture(pair: Pair, what: str, blind_for: str = "") -> str:
    """An address. For a blind reviewer it says left or right, and whose left that is; the tag
    changes with the pictures, so that browsers may keep them."""
    if blind_for:
        what = "left" if what == _sides(pair, blind_for, True)["left"] else "right"
    tag = hashlib.blake2b(f"{pair.win_image} {pair.lose_image}".encode(), digest_size=6).hexdigest()
    asked = {"t": tag} | ({"reviewer": blind_for} if blind_for else {})
    return f"/review/pairs/{pair.id}/{what}.png?{urllib.parse.urlencode(asked)}"


def _listed(item: Item, blind: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": item.pair_id, "decided": item.mine is not None}
    return shown if blind else {**shown, "mine": item.mine, "verdict": item.verdict}


def _mine(held: Sequence[Review], pair: Pair, reviewer: str, blind: bool) -> str | None:
    """The reviewer's decision that counts, in the words of the page."""
    reviews = [review for review in held if review.reviewer == reviewer]
    if not reviews or reviews[-1].decision == "withdraw":
        return None
    decision = reviews[-1].decision
    if not blind:
        return decision
    if decision == "reject":
        return "neither"
    winner = winner_side(reviewer, pair)
    other = "right" if winner == "left" else "left"
    return winner if decision == "accept" else other


def _agreement(reviews: Sequence[Review], blind: bool) -> dict[str, Any]:
    """Figures for the page. A blind reviewer gets counts alone: shares would tell, after each
    decision, whether it was the scorers' side."""
    figures = statistics(reviews).as_dict()
    names = ["decisions", "pairs"]
    if not blind:
        names += ["several", "agreement", "alpha", "scorers"]
    return {name: figures[name] for name in names}


def routes() -> list[BaseRoute]:
    pair = "/review/pairs/{pair}"
    return [
        Route("/review", page),
        Route("/review/queue", listing),
        Route("/review/decide", decide, methods=["POST"]),
        Route("/review/decide-all", decide_all, methods=["POST"]),
        Route(pair, detail),
        Route(f"{pair}/{{what}}.png", picture),
    ]
