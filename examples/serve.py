"""Serve several language pairs from one base over HTTP; needs the extra `serve`.

    python examples/serve.py --adapters out/pairs/en-de out/pairs/en-fr
    curl localhost:8000/translate --json '{"language_pair": "en-de", "sentences": ["Good morning."]}'

Sentences of different pairs go through the model in one batch; `batching.py` says whose turn it is. What cannot be
translated is refused before it waits, and everything has a limit: see `--help`. An answer lists under `cut` which of
its translations found no end. `GET /health` and `GET /metrics` tell how the server is; `benchmarks/serving.py` puts it
under load, also from hostile clients. Who may ask, and how often, is for a proxy in front of it to know.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from batching import Answer, Batches, Full, Job, Sentence
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from guard import Guard
from peft import PeftModel
from pydantic import BaseModel, Field

from peft_landermt.demo import load_base
from peft_landermt.translation import TRANSLATION_PROMPT, build_prompt, translate_counted
from peft_landermt.translation.limits import room_in_context


class Limits(BaseModel, frozen=True):
    """What one client may ask for; the options of the command line, which say what each is."""

    sentences: int = Field(100, gt=0, description="sentences of a request")
    characters: int = Field(2000, gt=0, description="characters of a sentence")
    tokens: int = Field(256, gt=0, description="tokens of a sentence")
    body: int = Field(1_000_000, gt=0, description="bytes of a request")
    reading: float = Field(10.0, gt=0, description="seconds in which a request must arrive")
    waiting: int = Field(512, gt=0, description="sentences that may wait; beyond that, requests get 429")
    seconds: float = Field(60.0, gt=0, description="seconds after which a request is given up, with 503")
    pause: float = Field(0.002, ge=0, description="seconds for each sentence of a request before it is looked at")
    refusal: float = Field(0.1, ge=0, description="seconds before a bad request is answered: nobody can send many")


class Body(BaseModel):
    """What a client sends."""

    language_pair: str
    sentences: list[str]


def load(base: Any, folders: list[str]) -> PeftModel:
    """Load an adapter from each folder into the base."""
    names = [f"adapter_{index}" for index in range(len(folders))]
    model = PeftModel.from_pretrained(base, folders[0], adapter_name=names[0])
    for folder, name in zip(folders[1:], names[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    return model.eval()


class Sizes:
    """How many tokens sentences have, and how many the model can take."""

    def __init__(self, model: PeftModel, tokenizer: Any, limits: Limits, batch_size: int) -> None:
        self.tokenizer, self.limits, self.batch_size = tokenizer, limits, batch_size
        self.two_stacks = model.config.is_encoder_decoder
        self.templates = {
            pair: config.prompt or TRANSLATION_PROMPT
            for config in model.peft_config.values()
            for pair in config.language_pairs
        }
        self.positions = room_in_context(model)

    def measure(self, texts: Sequence[str], language_pair: str) -> list[Sentence | str]:
        """Each text as a sentence, or what is wrong with it."""
        try:
            return self._measure(texts, language_pair)
        except Exception as error:  # a tokenizer's own, for text that is none: which of them?
            if len(texts) == 1:
                return [f"is no text that the tokenizer reads ({type(error).__name__})"]
            return [found for text in texts for found in self.measure([text], language_pair)]

    def _measure(self, texts: Sequence[str], language_pair: str) -> list[Sentence | str]:
        lines = [" ".join(text.split()) if len(text) <= self.limits.characters else "" for text in texts]
        "".join(lines).encode()  # half of a surrogate pair is no text, whatever a tokenizer makes of it
        template = self.templates[language_pair]
        prompts = lines if self.two_stacks else [build_prompt(line, language_pair, template) for line in lines]
        tokens, read = (self.tokenizer(batch)["input_ids"] for batch in (lines, prompts))
        sentences = [
            Sentence(line, language_pair, prompt, 16 + 2 * len(ids))
            for line, prompt, ids in zip(lines, read, tokens, strict=True)
        ]
        return [self._problem(*found) or found[1] for found in zip(texts, sentences, strict=True)]

    def _problem(self, text: str, sentence: Sentence) -> str | None:
        tokens, needed = (sentence.limit - 16) // 2, len(sentence.prompt) + sentence.limit
        if len(text) > self.limits.characters:
            return f"has {len(text)} characters; at most {self.limits.characters} are allowed"
        if tokens > self.limits.tokens:
            return f"has {tokens} tokens; at most {self.limits.tokens} are allowed"
        if not self.fits([sentence]):
            return f"needs {needed} positions with its translation; the model has {self.positions}"
        return None

    def fits(self, sentences: Sequence[Sentence]) -> bool:
        """Whether one call of the model can take these sentences: padding makes all as long as the longest."""
        read, written = max(len(one.prompt) for one in sentences), max(one.limit for one in sentences)
        if self.two_stacks and len({one.language_pair.rpartition("-")[2] for one in sentences}) > 1:
            return False
        needed = max(read + 2, written) if self.two_stacks else read + written  # marks of two languages
        small = len(sentences) == 1 or read * len(sentences) <= 128 * self.batch_size
        return small and (self.positions is None or needed <= self.positions)


def end_of_text(model: PeftModel) -> int | None:
    """The token that ends a translation."""
    ends = model.generation_config.eos_token_id
    return ends[0] if isinstance(ends, list) else ends


class Translations:
    """What `POST /translate` does with a request."""

    def __init__(self, model: PeftModel, tokenizer: Any, batch_size: int, limits: Limits) -> None:
        self.model, self.tokenizer, self.batch_size, self.limits = model, tokenizer, batch_size, limits
        self.adapters = {pair: name for name, config in model.peft_config.items() for pair in config.language_pairs}
        self.sizes = Sizes(model, tokenizer, limits, batch_size)
        self.batches = Batches(self._run, batch_size, limits.waiting, self.sizes.fits, end_of_text(model))
        self.measuring = ThreadPoolExecutor(1)  # beside the model; more would take time from it

    def _run(self, sentences: Sequence[Sentence], processors: Any) -> list[Answer]:
        pairs = [sentence.language_pair for sentence in sentences]
        texts = [sentence.text for sentence in sentences]
        names = [self.adapters[pair] for pair in pairs]
        options = {"batch_size": self.batch_size, "adapter_names": names, "logits_processor": processors}
        found = translate_counted(self.model, self.tokenizer, texts, pairs, **options)
        return [Answer(text, index in found.cut) for index, text in enumerate(found.texts)]

    async def answer(self, body: Body, request: Request) -> list[Answer]:
        """The translations; HTTPException for what is refused, not translated in time, or of a client that left."""
        if body.language_pair not in self.adapters:
            asked = repr(body.language_pair[:40])
            raise HTTPException(404, f"language_pair={asked}: one of {', '.join(self.adapters)}.")
        if not 1 <= len(body.sentences) <= self.limits.sentences:
            raise HTTPException(
                422, f"{len(body.sentences)} sentences; from 1 to {self.limits.sentences} are allowed."
            )
        left = asyncio.create_task(leaving(request))
        try:
            sentences = await self._measured(body, left)
            wanted = [one for one in sentences if one.text]
            client = request.client.host if request.client else ""
            answers = iter(await self._translated(Job(client, wanted), left) if wanted else [])
            return [next(answers) if one.text else Answer("") for one in sentences]
        finally:
            left.cancel()

    async def _measured(self, body: Body, left: asyncio.Task[None]) -> list[Sentence]:
        def measure() -> list[Sentence | str]:
            return [] if left.done() else self.sizes.measure(body.sentences, body.language_pair)

        await asyncio.wait({left}, timeout=self.limits.pause * (len(body.sentences) - 1))
        measured = await asyncio.get_running_loop().run_in_executor(self.measuring, measure)
        if left.done():
            self.batches.dropped += len(body.sentences)
            raise HTTPException(499, "the client has left.")
        bad = [{"sentence": index, "problem": one} for index, one in enumerate(measured) if isinstance(one, str)]
        if bad:
            raise HTTPException(422, bad)
        return [one for one in measured if isinstance(one, Sentence)]

    async def _translated(self, job: Job, left: asyncio.Task[None]) -> list[Answer]:
        try:
            self.batches.submit(job)
            await asyncio.wait({job.future, left}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if job.future.done():
                return job.future.result()
            if left.done():
                raise HTTPException(499, "the client has left.")
            raise HTTPException(503, f"not translated in {self.limits.seconds} seconds.", {"Retry-After": "10"})
        except Full as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.seconds)}) from error
        finally:
            self.batches.drop(job)


async def leaving(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(model: PeftModel, tokenizer: Any, batch_size: int = 16, limits: Limits | None = None) -> FastAPI:
    """The application: `POST /translate`, `GET /health` and `GET /metrics`."""
    limits = limits or Limits()
    translations = Translations(model, tokenizer, batch_size, limits)
    batches, answers = translations.batches, Counter[int]()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        batches.start()
        yield
        await asyncio.to_thread(batches.stop)

    app = FastAPI(title="peft_landermt", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, body=limits.body, reading=limits.reading, refusal=limits.refusal, answers=answers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        # without what was sent, which may be large, or no text that an answer can hold
        problems = [{"at": list(map(str, one["loc"]))[-2:], "problem": one["msg"]} for one in error.errors()[:10]]
        return JSONResponse({"detail": problems}, 422)

    @app.post("/translate")
    async def answer(request: Request, body: Body) -> dict[str, list[Any]]:
        found = await translations.answer(body, request)
        cut = [index for index, one in enumerate(found) if one.cut]
        return {"translations": [one.text for one in found], "cut": cut}

    @app.get("/health")
    async def health() -> JSONResponse:
        stuck = batches.stuck(limits.seconds)
        state = {"status": "stuck" if stuck else "ok", "language_pairs": list(translations.adapters)}
        return JSONResponse({**state, "waiting": batches.waiting}, 503 if stuck else 200)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counts since the start, in the text format of Prometheus."""
        lines = [f'landermt_answers_total{{status="{status}"}} {count}' for status, count in sorted(answers.items())]
        counts = ("translated", "batches", "stepped_aside", "dropped")
        lines += [f"landermt_{name}_total {getattr(batches, name)}" for name in counts]
        states = {"waiting_sentences": batches.waiting, "translating": int(batches.running_since is not None)}
        lines += [f"landermt_{name} {value}" for name, value in states.items()]
        lines.append(f"landermt_seconds_per_sentence {batches.pace:.4f}")
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    return app


def main() -> None:
    import uvicorn

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # what is refused must not take the model's cores
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--adapters", nargs="+", required=True, help="folders of adapters")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=16)
    for name, field in Limits.model_fields.items():
        meaning = f"{field.description} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=type(field.default), default=field.default, help=meaning)
    args = parser.parse_args()
    base, tokenizer = load_base(args.model)
    limits = Limits(**{name: getattr(args, name) for name in Limits.model_fields})
    app = make_app(load(base, args.adapters), tokenizer, args.batch_size, limits)
    uvicorn.run(app, host=args.host, port=args.port)


if __name__ == "__main__":
    main()
