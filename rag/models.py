"""Language models: started by LangChain, asked with patience, their failures told apart."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from knowledge_base.configuration import ModelSettings
from knowledge_base.errors import MissingExtraError, ModelError, PlumblineError
from rag.answer import Usage

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

Message = tuple[str, str]
"""Role (`system`, `user` or `assistant`) and text."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 10.0
_UNUSABLE = {"content_filter": "its content filter stopped it", "refusal": "it refused"}


@dataclass(frozen=True)
class Completion:
    """A whole reply; `cut` when the model ran into `max_tokens`."""

    text: str
    usage: Usage
    cut: bool = False


@dataclass(frozen=True)
class Piece:
    """A part of a reply under way. The last one carries the completion."""

    text: str
    completion: Completion | None = None


def start_chat_model(settings: ModelSettings) -> "BaseChatModel":
    """LangChain's chat model for `settings`; nothing is asked yet, and it does not retry by itself.

    Raises:
        MissingExtraError: The provider's package is not installed.
        ModelError: LangChain cannot start it: unknown provider, or no key in the environment.
    """
    from langchain.chat_models import init_chat_model

    provider, name = settings.model.split(":", 1)
    given: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    if settings.base_url:
        given["base_url"] = settings.base_url
    if provider == "ollama":
        given["num_predict"] = given.pop("max_tokens")
        given["client_kwargs"] = {"timeout": settings.timeout_seconds}
    else:
        given |= {"timeout": settings.timeout_seconds, "max_retries": 0}
    if provider == "openai":
        given["stream_usage"] = True
    try:
        return _start(init_chat_model, provider, name, given)
    except ImportError as error:
        raise MissingExtraError(
            f"{settings.model} needs a package that is not installed: {error}.",
            hint=f"Run: pip install langchain-{provider}",
        ) from error
    except Exception as error:
        raise ModelError(
            f"{settings.model} cannot be started: {_words(error)}.",
            hint="Check answer.model in plumbline.toml, and that the provider's key is in the environment.",
        ) from error


def _start(start: Any, provider: str, name: str, given: dict[str, Any]) -> "BaseChatModel":
    try:
        model: BaseChatModel = start(name, model_provider=provider, **given)
    except Exception:
        if provider != "openai" or "base_url" not in given:
            raise
        # A server of one's own seldom wants a key, and the client will not start without one.
        model = start(name, model_provider=provider, api_key="none", **given)
    return model


class LanguageModel:
    """One model of a release. Safe to share between threads."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.name = settings.model
        self._chat: BaseChatModel | None = None

    def complete(self, messages: Sequence[Message]) -> Completion:
        """The whole reply. Raises ModelError, MissingExtraError."""
        for piece in self.stream(messages):
            if piece.completion:
                return piece.completion
        raise ModelError(f"{self.name} sent no reply.", transient=True)

    def stream(self, messages: Sequence[Message]) -> Iterator[Piece]:
        """The reply as it comes.

        A transient failure (connection, time-out, 408, 429, 5xx) is tried again with growing waits, as
        long as nothing of the reply has been handed out.

        Raises:
            ModelError: It failed for good, broke off, or took longer than its time-out.
            MissingExtraError: The provider's package is not installed.
        """
        for attempt in range(self.settings.retries + 1):
            begun = False
            try:
                for piece in self._stream(messages):
                    begun = True
                    yield piece
                return
            except ModelError as error:
                if begun or not error.transient or attempt == self.settings.retries:
                    raise
                wait = _asked_to_wait(error.__cause__)
                time.sleep(min(_LONGEST_WAIT, wait or _FIRST_WAIT * 2**attempt))

    def _stream(self, messages: Sequence[Message]) -> Iterator[Piece]:
        if self._chat is None:
            self._chat = start_chat_model(self.settings)
        deadline = time.monotonic() + self.settings.timeout_seconds
        whole: Any = None
        try:
            for chunk in self._chat.stream(list(messages)):
                whole = chunk if whole is None else whole + chunk
                if chunk.text:
                    yield Piece(chunk.text)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no end of the reply after {self.settings.timeout_seconds:g} s")
        except PlumblineError:
            raise
        except Exception as error:
            raise _as_model_error(self.name, error) from error
        yield Piece("", self._completion(whole))

    def _completion(self, whole: Any) -> Completion:
        if whole is None:
            raise ModelError(f"{self.name} sent no reply.", transient=True)
        facts = whole.response_metadata
        reason = facts.get("finish_reason") or facts.get("stop_reason") or facts.get("done_reason")
        # Not every provider says why it stopped; OpenAI's protocol must, unless the server died.
        if reason is None and (self.name.startswith("openai:") or not whole.text):
            raise ModelError(f"{self.name} broke off in the middle of its reply.", transient=True)
        # LangChain drops the words of a refusal from a stream: what is left of it is an empty reply.
        if reason in _UNUSABLE or not whole.text.strip():
            raise ModelError(
                f"{self.name} gave no answer: {_UNUSABLE.get(reason, 'its reply is empty')}.",
                hint="Name a model that answers such questions in answer.fallbacks.",
            )
        told = whole.usage_metadata or {}
        usage = Usage(input_tokens=told.get("input_tokens", 0), output_tokens=told.get("output_tokens", 0))
        return Completion(whole.text, usage, cut=reason in ("length", "max_tokens"))


def cost(usage: Usage, settings: ModelSettings) -> float:
    """What `usage` costs at the prices of `settings`, in their currency."""
    return (
        usage.input_tokens * settings.input_price + usage.output_tokens * settings.output_price
    ) / 1_000_000


def _as_model_error(name: str, error: Exception) -> ModelError:
    status = _status(error)
    words = _words(error)
    if status in (401, 403):
        return ModelError(
            f"{name} refused the key (HTTP {status}): {words}.",
            hint="Set the provider's key in the environment, for example OPENAI_API_KEY.",
        )
    if status == 404:
        return ModelError(
            f"{name} is not known there (HTTP 404): {words}.", hint="Check answer.model and answer.base_url."
        )
    if status is not None:
        transient = status in (408, 409, 425, 429) or status >= 500
        return ModelError(f"{name} failed (HTTP {status}): {words}.", transient=transient)
    if "Timeout" in type(error).__name__ or isinstance(error, TimeoutError):
        return ModelError(
            f"{name} took too long: {words}.", hint="Raise answer.timeout_seconds.", transient=True
        )
    return ModelError(
        f"{name} failed: {words}.",
        hint="Is its server running, and is answer.base_url right?",
        transient=_is_connection(error),
    )


def _status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _is_connection(error: Exception) -> bool:
    # By name: each provider's client brings an HTTP library, and a tree of errors, of its own.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OSError", "TransportError", "APIConnectionError"})


def _asked_to_wait(error: BaseException | None) -> float:
    """Seconds that the server asked for in Retry-After; 0 when it did not."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return float(headers.get("retry-after", 0))
    except ValueError:  # a date: rare, and the growing wait serves as well
        return 0.0


def _words(error: BaseException) -> str:
    """The first line of what the client says, without its class's decoration."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
