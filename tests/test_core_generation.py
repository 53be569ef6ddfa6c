"""Generation against the plain definition: feed everything again each step, without cache, padding or streaming."""

import io
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from core import decoding, generation
from core.generation import generate
from core.sampling import SamplingOptions, draw_keys, prompt_keys, sample
from tests.small_runs import logits_of, save_run, small_config, small_model, small_tokenizer
from utils.errors import ConfigError

PROMPTS = ["the cat", "", "\u20ac rain fell on the dog", "b", "the cat"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer("bpe")


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return small_model(tokenizer.vocab_size)


def by_definition(
    model: Any, tokenizer: Any, prompt: str, num_tokens: int, options: SamplingOptions, seed: int
) -> list[int]:
    """One full forward pass a token."""
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    keys = prompt_keys(seed, [ids])
    drawn: list[int] = []
    for step in range(num_tokens):
        logits = mx.array(logits_of(model, ids + drawn)[-1:])
        recent = mx.array([(ids + drawn)[-options.repetition_context_size :]])
        drawn += np.array(sample(logits, draw_keys(keys, step), options, recent)).tolist()
        if drawn[-1] == tokenizer.eos_id:
            break
    return drawn


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temp=0),
        SamplingOptions(temp=1.0),
        SamplingOptions(temp=0.9, top_p=0.9, min_p=0.01, top_k=50, repetition_penalty=1.5, repetition_context_size=4),
    ],
)
def test_equals_the_definition_without_a_cache(model: Any, tokenizer: Any, options: SamplingOptions) -> None:
    completions = generate(model, tokenizer, PROMPTS[:4], max_tokens=12, seed=3, **vars(options))
    for completion in completions:
        assert list(completion.tokens) == by_definition(model, tokenizer, completion.prompt, 12, options, 3)


@pytest.mark.parametrize("attention", ["simple", "flash"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_prompt_says_the_same_alone_and_among_others(tokenizer: Any, architecture: str, attention: str) -> None:
    changes = {"type": architecture, "attention": {"type": attention}}
    model = small_model(tokenizer.vocab_size, **changes)
    together = generate(model, tokenizer, PROMPTS, max_tokens=15, seed=5)
    for completion in together[:4]:
        (alone,) = generate(model, tokenizer, completion.prompt, max_tokens=15, seed=5)
        assert alone == completion
    assert together[4].tokens != together[0].tokens, "the same prompt twice draws twice"


def test_padding_changes_no_logit(model: Any, tokenizer: Any) -> None:
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]
    tokens_BL, segments_BL = decoding.pad_left(prompts)
    cache = model.make_cache()
    logits = np.array(decoding.prefill(model, tokens_BL, segments_BL, cache))
    for step in range(1, 4):
        for row, prompt in enumerate(prompts):
            np.testing.assert_allclose(logits[row], logits_of(model, prompt)[-1], atol=2e-5)
        drawn = [20 + step, 30 + step, 40 + step]
        prompts = [[*prompt, token] for prompt, token in zip(prompts, drawn, strict=True)]
        logits = np.array(decoding.read_one(model, mx.array(drawn), segments_BL, step, cache))


@pytest.mark.parametrize("prompts", [["the cat sat on the mat"], PROMPTS])
def test_prefill_in_chunks_changes_nothing(
    model: Any, tokenizer: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generate(model, tokenizer, prompts, max_tokens=8, seed=1)
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 3)
    assert generate(model, tokenizer, prompts, max_tokens=8, seed=1) == whole


def test_the_seed_decides(model: Any, tokenizer: Any) -> None:
    one, same, other = (generate(model, tokenizer, "the", max_tokens=20, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert generate(model, tokenizer, "the", max_tokens=20) != generate(model, tokenizer, "the", max_tokens=20)


def test_the_pieces_shown_join_to_the_text(tokenizer: Any) -> None:
    # Untrained bytes break characters all the time: the hard case for streaming.
    tokenizer = small_tokenizer("bytes")
    model = small_model(tokenizer.vocab_size)
    shown = dict.fromkeys(range(3), "")

    def on_text(index: int, piece: str) -> None:
        assert piece
        shown[index] += piece

    completions = generate(model, tokenizer, ["a", "\u20ac", "bc"], max_tokens=40, temp=1.5, seed=0, on_text=on_text)
    for index, completion in enumerate(completions):
        ids = [token for token in completion.tokens if token != tokenizer.eos_id]
        assert shown[index] == completion.text == tokenizer.decode(ids)


class Scripted:
    """A model that writes the given tokens after any prompt of one token, then token 0 for ever."""

    def __init__(self, vocab_size: int, script: list[int]) -> None:
        self.training = False
        self.calls = 0
        self._vocab_size, self._script = vocab_size, script

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def make_cache(self) -> list[Any]:
        return []

    def backbone(self, tokens: mx.array, mask: Any, cache: list[Any]) -> mx.array:
        self.calls += 1
        return mx.zeros((*tokens.shape, 1))

    def head(self, hidden: mx.array) -> mx.array:
        token = [*self._script, *[0] * 1000][self.calls - 1]
        return mx.broadcast_to(mx.arange(self._vocab_size) == token, (*hidden.shape[:2], self._vocab_size))


def written(script: str, **flags: Any) -> tuple[str, str]:
    """Text and reason after a model that writes `script` byte by byte."""
    tokenizer = small_tokenizer("bytes")
    model = Scripted(tokenizer.vocab_size, tokenizer.encode(script))
    (completion,) = generate(model, tokenizer, "", temp=0, **flags)
    return completion.text, completion.finish_reason


def test_stop_strings_span_tokens_and_are_not_shown() -> None:
    assert written("one two END three", stop=["END", "three"], max_tokens=50) == ("one two ", "stop")
    assert written("one two EN", stop="END", max_tokens=10) == ("one two EN", "length")


def test_end_of_text_ends_and_shows_what_was_held() -> None:
    tokenizer = small_tokenizer("bytes")
    model = Scripted(tokenizer.vocab_size, [*tokenizer.encode("ab E"), tokenizer.eos_id, *tokenizer.encode("ND")])
    (completion,) = generate(model, tokenizer, "", temp=0, stop=["END"])
    assert (completion.text, completion.finish_reason) == ("ab E", "eos")
    assert completion.tokens[-1] == tokenizer.eos_id


def test_other_end_tokens_may_be_given() -> None:
    assert written("abcd", eos_ids=[ord("c")]) == ("ab", "eos")


def test_no_step_is_computed_beyond_the_last() -> None:
    tokenizer = small_tokenizer("bytes")
    model = Scripted(tokenizer.vocab_size, [])
    generate(model, tokenizer, "", temp=0, max_tokens=7)
    assert model.calls == 7


def test_every_row_has_its_own_context_limit(model: Any, tokenizer: Any) -> None:
    context = 64
    long_prompt = "q" * 58
    num_long = 1 + len(tokenizer.encode(long_prompt))
    completions = generate(model, tokenizer, [long_prompt, "b"], max_tokens=30, seed=2, eos_ids=[], context=context)
    assert [completion.finish_reason for completion in completions] == ["context", "length"]
    assert [len(completion.tokens) for completion in completions] == [context - num_long, 30]


def test_dropout_is_off_meanwhile_and_the_random_state_untouched(tokenizer: Any) -> None:
    model = small_model(tokenizer.vocab_size, residual_dropout=0.5)
    model.train()
    mx.random.seed(11)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(11)
    first = generate(model, tokenizer, "the", max_tokens=10, temp=0)
    assert mx.random.uniform(shape=(3,)).tolist() == expected
    assert model.training
    assert generate(model, tokenizer, "the", max_tokens=10, temp=0) == first


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": ["a", ""]}, "empty"),
        ({"temp": -1.0}, "temp is -1"),
        ({"prompts": "x" * 64}, "prompt 1 has 65 tokens and the model reads 64"),
        ({"prompts": ["fine", "\ud800"]}, "prompt 2 is not valid UTF-8"),
    ],
)
def test_bad_requests_are_refused(flags: dict[str, Any], named: str) -> None:
    tokenizer = small_tokenizer("bytes")
    prompts = flags.pop("prompts", "a")
    with pytest.raises(ConfigError, match=named):
        generate(Scripted(257, []), tokenizer, prompts, context=64, **flags)


def test_no_prompts_give_no_completions(model: Any, tokenizer: Any) -> None:
    assert generate(model, tokenizer, []) == []


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    generation.main(arguments)
    out, err = capsys.readouterr()
    return out, err


def test_command_line_prints_prompt_and_text(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(save_run(tmp_path / "run", small_config(), tokenizer, {3: 0}))
    out, err = run_main(capsys, "--run", run, "--prompt", "the cat", "--max-tokens", "9", "--seed", "4")
    loaded = generation.load_model(run=run)
    (completion,) = generate(loaded.model, tokenizer, "the cat", max_tokens=9, seed=4)
    assert out == f"the cat{completion.text}\n"
    assert "seed 4" in err
    assert "step_00000003" in err
    again, _ = run_main(
        capsys, "--run", run, "--prompt", "the cat", "--prompt", "b", "--max-tokens", "9", "--seed", "4"
    )
    assert again.startswith(f"=== prompt 1\nthe cat{completion.text}\n=== prompt 2\nb")


def test_command_line_reads_standard_input(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(save_run(tmp_path / "run", small_config(), tokenizer, {3: 0}))
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a\npipe"))
    out, _ = run_main(capsys, "--run", run, "--prompt", "-", "--max-tokens", "2", "--temp", "0")
    assert out.startswith("from a\npipe")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        generation.main(["--run", run, "--prompt", "-"])


def test_context_end_is_noted(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(save_run(tmp_path / "run", small_config(), tokenizer, {3: 0}))
    seeds = (run_main(capsys, "--run", run, "--seed", str(seed), "--max-tokens", "500")[1] for seed in range(9))
    assert any("context ends" in err for err in seeds)


def test_a_run_that_cannot_generate_says_why(tmp_path: Path, tokenizer: Any) -> None:
    config = small_config(objective={"type": "denoise"})
    run = save_run(tmp_path / "run", config, tokenizer, {3: 0})
    with pytest.raises(ConfigError, match="left to right"):
        generation.main(["--run", str(run), "--prompt", "a"])
