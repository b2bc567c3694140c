"""Somebody who works with the cell all the while: changes, scales, deletes and makes anew, through any controller.

Its own log, synced line by line, has each answer of 2xx, and each request whose answer never came: such a write may
happen, at any time until its precondition no longer holds. So every change names the ETag that it was made for.

One rule: what was answered with 2xx is true from then on. A read that contradicts it is a finding, at once.
"""

import asyncio
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from chaos.workloads import Plan, nonce_of, spec

_ANSWER_BOUND_S = 4.0
_MAX_REPLICAS = 3


@dataclass(frozen=True)
class Written:
    """What the last accepted write of an id made of it. nonce and etag empty: it is to go."""

    uid: str
    etag: str = ""
    nonce: str = ""


@dataclass(frozen=True)
class Unanswered:
    """A write that may or may not happen. condition: the ETag that it asked for; empty: that nothing is there."""

    condition: str
    nonce: str


@dataclass
class Record:
    """Of one id. Its writes are made one after the other, so the last accepted one is the last."""

    plan: Plan
    written: Written | None = None
    unanswered: list[Unanswered] = field(default_factory=list)
    version: int = 0

    def explains(self, found: Mapping[str, Any] | None) -> bool:
        """Whether what a read found can be, given all that was accepted and all that may still have happened.

        found: the object; None when there is none.
        """
        if found is None:
            return self.written is None or not self.written.nonce or self._may_be_deleted()
        if self.written is not None and found["uid"] == self.written.uid:
            if found.get("deleted_at"):
                return not self.written.nonce or self._may_be_deleted()
            if self.written.nonce and _etag(found) == self.written.etag:
                return nonce_of(found) == self.written.nonce
        # Another object, or another generation of it: by a write whose answer never came.
        return any(u.nonce == nonce_of(found) for u in self.unanswered if u.nonce)

    def adopt(self, found: Mapping[str, Any] | None) -> None:
        """What was read is durable, so it is as good as accepted."""
        if found is not None:
            gone = bool(found.get("deleted_at"))
            self.accept(Written(found["uid"]) if gone else Written(found["uid"], _etag(found), nonce_of(found)))
        elif self.written is not None and self.written.nonce:
            self.accept(Written(self.written.uid))

    def accept(self, written: Written) -> None:
        if written != self.written:
            # Whatever is still under way was asked for another state than this one, and will be refused; but for a
            # creation, which comes true whenever nothing is there.
            self.unanswered = [u for u in self.unanswered if not u.condition]
        self.written = written

    def _may_be_deleted(self) -> bool:
        return any(not u.nonce for u in self.unanswered)


@dataclass
class Writer:
    """make_all() once, then run() until it is cancelled; wrong has what contradicts an accepted write."""

    servers: Sequence[str]
    plans: Sequence[Plan]
    path: Path
    random: random.Random
    pause_s: float
    records: dict[str, Record] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    job_nonces: dict[str, str] = field(default_factory=dict)
    """Of each spec of a job that was asked for → the job."""
    _count: "itertools.count[int]" = field(default_factory=itertools.count)

    async def make_all(self) -> None:
        """Each workload was accepted, once."""
        async with self._session() as session:
            for plan in self.plans:
                record = self.records[plan.id] = Record(plan)
                while record.written is None:
                    await self._create(session, record)
                    if record.written is None:  # its answer may have been lost
                        await self._look(session, record)

    async def run(self) -> None:
        """Changes one of those that keep changing, pauses, and so on."""
        changing = [record for record in self.records.values() if record.plan.changing]
        async with self._session() as session:
            while True:
                await self._change(session, self.random.choice(changing))
                await asyncio.sleep(self.random.uniform(0.5, 1.5) * self.pause_s)

    async def look_at_all(self) -> None:
        """All that was accepted is what the API says, or is in wrong. For when nothing else is written any more."""
        async with self._session() as session:
            for record in self.records.values():
                await self._look(session, record)

    def _session(self) -> aiohttp.ClientSession:
        # A connection a request: a controller that was killed or cut off must not be remembered.
        connector = aiohttp.TCPConnector(force_close=True)
        return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=_ANSWER_BOUND_S))

    async def _change(self, session: aiohttp.ClientSession, record: Record) -> None:
        status, found = await self._look(session, record)
        if status not in {200, 404}:
            return
        if found is None:
            await self._create(session, record)
        elif found.get("deleted_at"):
            self.counts["waits for its end"] += 1
        elif self.random.random() < 0.3:
            await self._delete(session, record, found)
        else:
            await self._put(session, record, found)

    async def _look(self, session: aiohttp.ClientSession, record: Record) -> tuple[int, dict[str, Any] | None]:
        """What was read can be, or is written down as wrong; either way it is what counts from now on."""
        status, found = await self._ask(session, "GET", record)
        if status in {200, 404}:
            if not record.explains(found):
                told = f"accepted {record.written}, unanswered {record.unanswered}, but found {found}"
                self.wrong.append(f"{record.plan.id}: {told}")
            record.adopt(found)
        return status, found

    async def _create(self, session: aiohttp.ClientSession, record: Record) -> None:
        body = self._spec(record, replicas=1)
        status, made = await self._ask(session, "POST", record, body)
        self._note(record, "create", status, made, Unanswered("", nonce_of(body)))

    async def _put(self, session: aiohttp.ClientSession, record: Record, found: Mapping[str, Any]) -> None:
        body = self._spec(record, replicas=found["replicas"])
        if self.random.random() < 0.4:
            body["replicas"] = self.random.randint(0, _MAX_REPLICAS) if record.plan.kind == "service" else 1
        etag = _etag(found)
        status, put = await self._ask(session, "PUT", record, body, etag=etag)
        self._note(record, "change", status, put, Unanswered(etag, nonce_of(body)))

    async def _delete(self, session: aiohttp.ClientSession, record: Record, found: Mapping[str, Any]) -> None:
        etag = _etag(found)
        status, deleted = await self._ask(session, "DELETE", record, etag=etag)
        self._note(record, "delete", status, deleted, Unanswered(etag, ""))

    def _spec(self, record: Record, *, replicas: int) -> dict[str, Any]:
        record.version += 1
        nonce = f"w{next(self._count):05}"
        if record.plan.kind == "job":
            self.job_nonces[nonce] = record.plan.id
        return spec(record.plan, nonce, version=record.version, replicas=replicas)

    def _note(
        self, record: Record, what: str, status: int, object_: Mapping[str, Any] | None, asked: Unanswered
    ) -> None:
        line = {"id": record.plan.id, "asked": what, "status": status, **asdict(asked)}
        if 200 <= status < 300:
            assert object_ is not None
            self.counts[f"{what} accepted"] += 1
            if "uid" in object_:
                line |= {"uid": object_["uid"], "generation": object_["generation"]}
                etag = _etag(object_) if asked.nonce else ""
                record.accept(Written(object_["uid"], etag, asked.nonce))
            else:  # deleted, and gone at once
                record.adopt(None)
        elif status == 0 or status >= 500:
            self.counts[f"{what} unanswered"] += 1
            record.unanswered.append(asked)
        else:
            self.counts[f"{what} refused with {status}"] += 1
        self._log(line)

    def _log(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a") as log:
            log.write(json.dumps(line) + "\n")
            log.flush()
            os.fsync(log.fileno())

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, record: Record, body: Any = None, *, etag: str = ""
    ) -> tuple[int, dict[str, Any] | None]:
        """(status, the object in the answer). 0: no answer. Nothing is tried again."""
        server = self.random.choice(self.servers)
        path = "/workloads" if method == "POST" else f"/workloads/{record.plan.id}"
        headers = {"If-Match": f'"{etag}"'} if etag else {}
        try:
            async with session.request(method, server + path, json=body, headers=headers) as answer:
                object_ = await answer.json() if answer.status < 300 else None
                return answer.status, object_
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0, None


def _etag(object_: Mapping[str, Any]) -> str:
    return f"{object_['uid']}.{object_['generation']}"
