"""Conversations and answers."""

import ctypes
import dataclasses
from typing import Any, Iterator, Optional, Sequence

from . import _c
from ._errors import CANCELLED, TIMEOUT, Error
from ._handles import Handle, Model

#: How long pipeshard_wait is called at once, in ms: in between Python looks for Ctrl-C.
_PATIENCE = 100


@dataclasses.dataclass(frozen=True)
class State:
    """What a session holds and does; pipeshard.h says what each number is."""

    context: int
    used: int
    ubatch: int
    messages: int
    busy: int
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    evaluated_again: int
    prompt_ms: float
    generate_ms: float


class Answer(Iterator[str]):
    """An answer that is being written: pieces of text, as they come."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._over = False
        #: It was ended by `cancel` or `close`; what was said so far stays in the conversation.
        self.cancelled = False

    def __next__(self) -> str:
        event = _c.init(_c.Event)
        while not self._over:
            try:
                _c.call("pipeshard_wait", self._session._handle, _PATIENCE, ctypes.byref(event))
            except Error as why:
                if why.code == TIMEOUT:
                    continue
                self._over = True
                raise
            text = ctypes.string_at(event.text, event.length).decode("utf-8", "replace")
            if event.kind == _c.EVENT_TEXT:
                return text
            self._over = True
            if event.kind == _c.EVENT_ENDED:
                if event.code != CANCELLED:
                    raise Error(event.code, text)
                self.cancelled = True
        raise StopIteration

    def cancel(self) -> None:
        """Ends it soon. What came so far can still be read."""
        self._session.cancel()

    def text(self) -> str:
        """All of it, when it is complete."""
        return "".join(self)

    def close(self) -> None:
        """Ends it, and waits for that."""
        if not self._over:
            self.cancel()
            for _ in self:
                pass

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session(Handle):
    """A conversation, with a KV cache of its own.

    `context`: tokens; 0: as many as the model was trained for, or as fit. `type_k`, `type_v`: of the KV cache, such as "q8_0".
    """

    _close = "pipeshard_session_close"

    def __init__(
        self, model: Model, *, context: int = 0, ubatch: int = 0, type_k: Optional[str] = None, type_v: Optional[str] = None
    ) -> None:
        super().__init__()
        config = _c.init(_c.SessionConfig)
        config.context, config.ubatch = context, ubatch
        config.type_k, config.type_v = _c.encoded(type_k), _c.encoded(type_v)
        opened = ctypes.c_void_p()
        _c.call("pipeshard_session_open", model._handle, ctypes.byref(config), ctypes.byref(opened))
        self._handle = opened.value

    def __enter__(self) -> "Session":
        return self

    def add(self, role: Optional[str], text: str) -> None:
        """Adds a message by "system", "user", "assistant" or "tool"; None: text for a model without a chat."""
        _c.call("pipeshard_session_add", self._handle, _c.encoded(role), text.encode())

    def add_media(self, file: bytes) -> None:
        """Adds an image or sound, as it is in a file, to the message that is added next."""
        media = _c.init(_c.Media)
        media.file, media.file_size = ctypes.cast(ctypes.c_char_p(file), ctypes.c_void_p), len(file)
        _c.call("pipeshard_session_add_media", self._handle, ctypes.byref(media))

    def add_image(self, rgb: bytes, width: int, height: int) -> None:
        """Adds an image: rows of red, green, blue, from the top."""
        if len(rgb) < 3 * width * height:
            raise ValueError(f"{width} x {height} pixels are {3 * width * height} bytes, not {len(rgb)}")
        media = _c.init(_c.Media)
        media.rgb, media.width, media.height = ctypes.cast(ctypes.c_char_p(rgb), ctypes.c_void_p), width, height
        _c.call("pipeshard_session_add_media", self._handle, ctypes.byref(media))

    def generate(
        self,
        *,
        max_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        min_p: float = 0.0,
        repeat_penalty: float = 0.0,
        seed: int = 0,
        grammar: Optional[str] = None,
        json_schema: Optional[str] = None,
        stop: Sequence[str] = (),
        tokens_per_second: float = 0.0,
    ) -> Answer:
        """Begins to answer, and returns the answer's pieces as they come. 0 and None are the defaults: always the likeliest token."""
        config = _c.init(_c.GenerateConfig)
        config.max_tokens, config.temperature, config.top_k, config.seed = max_tokens, temperature, top_k, seed
        config.top_p, config.min_p, config.repeat_penalty = top_p, min_p, repeat_penalty
        config.grammar, config.json_schema = _c.encoded(grammar), _c.encoded(json_schema)
        texts = (ctypes.c_char_p * max(len(stop), 1))(*[text.encode() for text in stop])
        config.stop, config.stop_count = texts, len(stop)
        config.tokens_per_second = tokens_per_second
        _c.call("pipeshard_submit", self._handle, ctypes.byref(config))
        return Answer(self)

    def cancel(self) -> None:
        """Ends what the session does, soon. May be called from any thread."""
        _c.library().pipeshard_cancel(self._handle)

    def clear(self) -> None:
        """Forgets all messages."""
        _c.call("pipeshard_session_clear", self._handle)

    def truncate(self, count: int) -> None:
        """Forgets the messages from number `count` on."""
        _c.call("pipeshard_session_truncate", self._handle, count)

    def save(self) -> bytes:
        """The conversation as bytes, KV cache included."""
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        _c.call("pipeshard_session_save", self._handle, ctypes.byref(data), ctypes.byref(size))
        try:
            return ctypes.string_at(data, size.value)  # type: ignore[arg-type]
        finally:
            _c.library().pipeshard_free(data)

    def restore(self, data: bytes) -> None:
        """Takes over a saved conversation, in place of the session's own."""
        _c.call("pipeshard_session_restore", self._handle, data, len(data))

    @property
    def state(self) -> State:
        """What it holds and does."""
        found: Any = _c.init(_c.CState)
        _c.call("pipeshard_session_get_state", self._handle, ctypes.byref(found))
        return State(**{field.name: getattr(found, field.name) for field in dataclasses.fields(State)})
