"""Serve several language pairs from one base over HTTP; needs the extra `serve`.

    python examples/serve.py --adapters out/pairs/en-de out/pairs/en-fr
    curl localhost:8000/translate --json '{"language_pair": "en-de", "sentences": ["Good morning."]}'

Sentences of different pairs go through the model in one batch: while one batch is being translated, sentences that
come in wait, and form the next. `benchmarks/serving.py` puts it under load.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from peft import PeftModel
from pydantic import BaseModel, Field

from peft_landermt import translate
from peft_landermt.demo import load_base


class Request(BaseModel):
    """What a client sends."""

    language_pair: str
    sentences: list[str] = Field(min_length=1, max_length=100)


def load(base: Any, folders: list[str]) -> PeftModel:
    """The base with an adapter for each folder; blocks that they share are kept once."""
    names = [folder.replace(".", "_") for folder in folders]  # PEFT's names have no dots
    model = PeftModel.from_pretrained(base, folders[0], adapter_name=names[0])
    for folder, name in zip(folders[1:], names[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    return model.eval()


def make_app(model: PeftModel, tokenizer: Any, batch_size: int = 16) -> FastAPI:
    adapters = {pair: name for name, config in model.peft_config.items() for pair in config.language_pairs}
    waiting: asyncio.Queue[tuple[str, str, asyncio.Future[str]]] = asyncio.Queue()

    async def work() -> None:
        while True:
            batch = [await waiting.get()]
            while not waiting.empty() and len(batch) < batch_size:
                batch.append(waiting.get_nowait())
            sentences, pairs, futures = (list(column) for column in zip(*batch, strict=True))
            options = {"batch_size": batch_size, "adapter_names": [adapters[pair] for pair in pairs]}
            try:
                results = await asyncio.to_thread(translate, model, tokenizer, sentences, pairs, **options)
            except Exception as error:  # the clients hear of it; the server goes on
                results = [error] * len(batch)
            for future, result in zip(futures, results, strict=True):
                if not future.done():  # a client may have gone away
                    future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(work())
        yield
        worker.cancel()

    app = FastAPI(title="peft_landermt", lifespan=lifespan)

    @app.post("/translate")
    async def answer(request: Request) -> dict[str, list[str]]:
        if request.language_pair not in adapters:
            raise HTTPException(404, f"language_pair={request.language_pair!r}: one of {', '.join(adapters)}.")
        futures = [asyncio.get_running_loop().create_future() for _ in request.sentences]
        for sentence, future in zip(request.sentences, futures, strict=True):
            waiting.put_nowait((sentence, request.language_pair, future))
        return {"translations": await asyncio.gather(*futures)}

    return app


if __name__ == "__main__":
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--adapters", nargs="+", required=True, help="folders of adapters")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    base, tokenizer = load_base(args.model)
    uvicorn.run(make_app(load(base, args.adapters), tokenizer), port=args.port)
