"""A language model as RAGAS's judge: asked by our client, its reply held to RAGAS's schema; imports ragas."""

import asyncio
import threading
from typing import Any

from pydantic import BaseModel, ValidationError
from ragas.llms.base import InstructorBaseRagasLLM

from knowledge_base.configuration import ModelSettings
from knowledge_base.errors import ModelError
from rag.answer import Usage
from rag.models import LanguageModel

_AT_ONCE = 8


class ChatJudge(InstructorBaseRagasLLM):
    """Any model that LangChain can start. A reply that is not what was asked for is an error, never a score.

    RAGAS's prompts carry the schema of the reply, so no provider needs a structured-output mode.
    """

    is_async = True
    """RAGAS's generators ask for it."""

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._model = LanguageModel(settings)
        self._lock = threading.Lock()
        self.usage = Usage()
        self._turn: asyncio.Semaphore | None = None

    def generate(self, prompt: str, response_model: type[BaseModel]) -> Any:
        """The reply as `response_model`; one that does not fit is asked for again, as often as a failure is.

        Raises:
            ModelError: No reply, or none that fits.
        """
        fault = ""
        for _ in range(self._settings.retries + 1):
            reply = self._model.complete([("user", prompt)])
            with self._lock:
                self.usage = Usage(
                    input_tokens=self.usage.input_tokens + reply.usage.input_tokens,
                    output_tokens=self.usage.output_tokens + reply.usage.output_tokens,
                )
            try:
                return response_model.model_validate_json(_without_fence(reply.text))
            except ValidationError as error:
                fault = f"{error.error_count()} fault(s), first: {error.errors()[0]['msg']}"
        raise ModelError(
            f"{self._model.name} did not reply with the JSON that RAGAS asked for: {fault}.",
            hint="Use a model that follows a JSON schema, or raise judge.max_tokens.",
        )

    async def agenerate(self, prompt: str, response_model: type[BaseModel]) -> Any:
        """`generate`, eight at a time."""
        self._turn = self._turn or asyncio.Semaphore(_AT_ONCE)
        async with self._turn:
            return await asyncio.to_thread(self.generate, prompt, response_model)


def _without_fence(text: str) -> str:
    """The JSON of a reply that wraps it in a Markdown code fence, as many models do."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```"):
        return stripped.split("\n", 1)[-1][:-3]
    return stripped
