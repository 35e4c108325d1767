"""Plain FastAPI: one request, one pass, no batches; a process a core.

    uvicorn loadtest.contenders.fastapi_app:app --workers 2

A synchronous endpoint runs in the thread pool. The pool has one thread: with the default 40 as many passes would fight
for a core as there are requests. On two cores two such processes answered 300 to 515 images/s, by how the connections
fell to them; one process with two threads 360 to 390.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio.to_thread
from fastapi import Body, FastAPI

from loadtest.contenders.work import Answer, Job, Work


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    app.state.work = Work(Job.from_environment())
    yield


app = FastAPI(lifespan=_lifespan)


@app.post("/classify")
def classify(image: Annotated[bytes, Body()]) -> Answer:
    """One image: the raw body."""
    work: Work = app.state.work
    return work.answer([work.decode(image)])[0]
