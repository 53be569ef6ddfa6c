"""Text from a model: several prompts at once, handed out as it becomes certain.

Each prompt is a `_Row` with its own limit, stop strings and end; the tokens come for all of them, one a step, from
`core/decoding.py`, which is also where another way of decoding would go. To change how a token is chosen, edit
`core/sampling.py`; what ends a text, see `_Row.take`.
"""

import secrets
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from core.decoding import draw_tokens
from core.loading import add_model_arguments, load_model
from core.sampling import SamplingOptions
from core.text_stream import TextStream
from utils.cli import Parser, run_command
from utils.errors import ConfigError


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt."""

    prompt: str
    """The prompt as given."""
    text: str
    """What follows it, up to and without a stop string or the end-of-text token."""
    tokens: tuple[int, ...]
    """The tokens drawn, the one that ended the text included."""
    num_prompt_tokens: int
    """Tokens of the prompt, beginning-of-text included."""
    finish_reason: str
    """`eos`, `stop` (a stop string), `length` (max_tokens) or `context` (the model reads no further)."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: str | Sequence[str],
    *,
    max_tokens: int = 256,
    temp: float = 0.8,
    top_p: float = 1.0,
    min_p: float = 0.0,
    top_k: int = 0,
    repetition_penalty: float | None = None,
    repetition_context_size: int = 20,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    context: int | None = None,
    eos_ids: Collection[int] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Continue every prompt; one completion each, in order.

    `on_text(index, piece)` receives the text of prompt `index` as it becomes certain; the pieces joined are the
    completion's text. `seed=None` draws differently every time. `context` is how many tokens the model reads
    (its config's `max_position_embeddings`); None: no limit. `eos_ids` end a text; None: the tokenizer's.
    Dropout is off meanwhile, and MLX's random state is left alone.

    Raises:
        ConfigError: a sampling option means nothing, or a prompt is no text or fills the whole context.
    """
    options = SamplingOptions(temp, top_p, min_p, top_k, repetition_penalty, repetition_context_size)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if max_tokens < 1 or "" in stops:
        raise ConfigError(f"max_tokens is {max_tokens} and stop is {list(stops)}; give at least 1 and no empty text")
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    ends = frozenset({tokenizer.eos_id} if eos_ids is None else eos_ids)
    rows = [
        _Row(text, ids, TextStream(tokenizer.decode, stops), max_tokens, context, ends)
        for text, ids in zip(texts, encode_prompts(tokenizer, texts, context), strict=True)
    ]
    seed = secrets.randbits(32) if seed is None else seed
    was_training = model.training
    model.eval()
    try:
        _run_rows(model, rows, options, seed, on_text or (lambda index, piece: None))
    finally:
        model.train(was_training)
    return [row.completion() for row in rows]


def encode_prompts(tokenizer: Any, prompts: Sequence[str], context: int | None) -> list[list[int]]:
    """Token ids of every prompt, beginning-of-text first. Raises ConfigError that names every prompt at fault."""
    encoded, problems = [], []
    for number, prompt in enumerate(prompts, start=1):
        try:
            prompt.encode()
        except UnicodeEncodeError:
            problems.append(f"prompt {number} is not valid UTF-8 text")
            continue
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        encoded.append(ids)
        if context is not None and len(ids) >= context:
            problems.append(
                f"prompt {number} has {len(ids)} tokens and the model reads {context}: shorten it to {context - 1}"
            )
    if problems:
        raise ConfigError(*problems)
    return encoded


class _Row:
    """One prompt while it is being continued."""

    def __init__(
        self,
        prompt: str,
        prompt_ids: list[int],
        stream: TextStream,
        max_tokens: int,
        context: int | None,
        eos_ids: Collection[int],
    ) -> None:
        self.prompt = prompt
        self.prompt_ids = prompt_ids
        room = max_tokens if context is None else context - len(prompt_ids)
        self.limit = min(max_tokens, room)
        self.finish_reason: str | None = None
        self._stream = stream
        self._last_reason = "length" if max_tokens <= room else "context"
        self._eos_ids = eos_ids
        self._tokens: list[int] = []
        self._pieces: list[str] = []

    def take(self, token: int) -> str:
        """Add one token; the text that may be shown now. Sets `finish_reason` when this was the last."""
        self._tokens.append(token)
        ended = token in self._eos_ids
        piece = "" if ended else self._stream.push(token)
        if self._stream.stopped:
            self.finish_reason = "stop"
        elif ended or len(self._tokens) == self.limit:
            piece += self._stream.finish()
            self.finish_reason = "stop" if self._stream.stopped else "eos" if ended else self._last_reason
        self._pieces.append(piece)
        return piece

    def completion(self) -> Completion:
        """The finished text."""
        assert self.finish_reason is not None, "the row is still running"
        text = "".join(self._pieces)
        return Completion(self.prompt, text, tuple(self._tokens), len(self.prompt_ids), self.finish_reason)


def _run_rows(
    model: Any, rows: list[_Row], options: SamplingOptions, seed: int, on_text: Callable[[int, str], None]
) -> None:
    if not rows:
        return
    num_steps = max(row.limit for row in rows)
    for tokens in draw_tokens(model, [row.prompt_ids for row in rows], num_steps, options, seed):
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.finish_reason is None and (piece := row.take(token)):
                on_text(index, piece)
        if all(row.finish_reason for row in rows):
            return


def build_parser() -> Parser:
    """The command line of `python -m core.generation`; names as in mlx-lm."""
    parser = Parser("Continue text with a trained model.", prog="python -m core.generation")
    add_model_arguments(parser)
    add = parser.add_argument
    add("--prompt", action="append", help="text to continue, - reads standard input; several times for several")
    add("--max-tokens", type=int, default=256, help="most tokens to write (%(default)s)")
    add("--temp", type=float, default=0.8, help="temperature, 0 is greedy (%(default)s)")
    add("--top-p", type=float, default=1.0, help="keep the most probable tokens of this mass (%(default)s: all)")
    add("--min-p", type=float, default=0.0, help="keep tokens this much as probable as the best (%(default)s: all)")
    add("--top-k", type=int, default=0, help="keep this many of the most probable tokens (%(default)s: all)")
    add("--repetition-penalty", type=float, help="above 1 makes recent tokens less likely (none)")
    add("--repetition-context-size", type=int, default=20, help="how many recent tokens it sees (%(default)s)")
    add("--stop", action="append", default=[], help="end at this text, without showing it; several times for several")
    add("--seed", type=int, help="the same seed gives the same text (a new one each time)")
    return parser


class Screen:
    """One text on stdout while it grows; the prompt comes with the first piece, so a refusal prints nothing."""

    def __init__(self, prompt: str) -> None:
        self._before = prompt

    def show(self, piece: str) -> None:
        """Print `piece`."""
        print(self._before + piece, end="", flush=True)
        self._before = ""


def read_prompts(given: Sequence[str] | None) -> list[str]:
    """The prompts of the command line; `-` is standard input, none at all is the empty prompt."""
    try:
        return [sys.stdin.read() if prompt == "-" else prompt for prompt in given or [""]]
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 text ({error})") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, continue every prompt, print prompt and text on stdout and what happened on stderr."""
    flags = vars(build_parser().parse_args(arguments))
    prompts = read_prompts(flags.pop("prompt"))
    chosen = {name: flags.pop(name) for name in ("run", "model", "weights", "checkpoint")}
    loaded = load_model(**chosen)
    if loaded.config is not None and loaded.config.objective.cannot_generate is not None:
        raise ConfigError(f"{chosen['run']} cannot generate: {loaded.config.objective.cannot_generate}")
    flags["seed"] = secrets.randbits(32) if flags["seed"] is None else flags["seed"]
    screen = Screen(prompts[0]) if len(prompts) == 1 else None
    started = time.perf_counter()
    completions = generate(
        loaded.model,
        loaded.tokenizer,
        prompts,
        context=getattr(loaded.model_config, "max_position_embeddings", None),
        eos_ids=loaded.eos_ids,
        on_text=(lambda index, piece: screen.show(piece)) if screen else None,
        **flags,
    )
    if screen:
        screen.show("\n")
    report(completions, time.perf_counter() - started, flags["seed"], loaded.source)


def report(completions: Sequence[Completion], seconds: float, seed: int, source: object) -> None:
    """Several texts one after the other on stdout; a note, the speed and the seed on stderr."""
    for number, completion in enumerate(completions, start=1):
        if len(completions) > 1:
            print(f"=== prompt {number}\n{completion.prompt}{completion.text}")
        if completion.finish_reason == "context":
            print(f"note: text {number} stopped where the model's context ends", file=sys.stderr)
    num_tokens = sum(len(completion.tokens) for completion in completions)
    print(f"{num_tokens} tokens in {seconds:.1f} s, seed {seed}, from {source}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
