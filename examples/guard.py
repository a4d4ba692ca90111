"""Reads the bodies of requests within limits of size and time, and counts answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from fastapi.responses import JSONResponse


class _TooLarge(Exception):
    """A body is longer than the limit."""


class Guard:
    """An ASGI middleware.

    Args:
        app: The application.
        body: Bytes of a request at most.
        reading: Seconds in which it must arrive.
        refusal: Seconds before a refusal is sent, so that nobody can send many bad requests.
        answers: Counts the answers of each status.
    """

    def __init__(self, app: Any, body: int, reading: float, refusal: float, answers: Counter[int]) -> None:
        self.app, self.answers = app, answers
        self.body, self.reading, self.refusal = body, reading, refusal

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.answers[message["status"]] += 1
                if 400 <= message["status"] < 500:
                    await asyncio.sleep(self.refusal)
            await send(message)

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.reading)
        except asyncio.TimeoutError:
            return await self._refuse(408, f"did not arrive in {self.reading} seconds", scope, receive, counted)
        except _TooLarge:
            return await self._refuse(413, f"has more than {self.body} bytes", scope, receive, counted)
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        try:
            return await self.app(scope, again, counted)
        except Exception:
            self.answers[500] += 1
            raise

    async def _read(self, scope: Any, receive: Any) -> bytes:
        told = dict(scope["headers"]).get(b"content-length", b"")
        parts, length, more = [], int(told[:18]) if told.isdigit() else 0, True
        read = 0
        # what is somewhat too long is read to its end, because a client that still sends hears no answer
        while more and max(read, length) <= 16 * self.body:
            message = await receive()
            part = message.get("body", b"")
            more = message.get("more_body", False)  # not when the client has left either
            read += len(part)
            if max(read, length) <= self.body:
                parts.append(part)
        if max(read, length) > self.body:
            raise _TooLarge
        return b"".join(parts)

    async def _refuse(self, status: int, problem: str, scope: Any, receive: Any, send: Any) -> None:
        answer = JSONResponse({"detail": f"the request {problem}."}, status, headers={"Connection": "close"})
        await answer(scope, receive, send)
