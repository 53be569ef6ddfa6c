"""A SentencePiece model as a backend of the tokenizers package, so that one `tokenizer.json` is all a run needs.

SentencePiece puts U+2581 for each space and one more before the text, then takes the likeliest pieces (unigram) or
merges pairs by falling score (bpe). The backend does the same; ids are equal for models that leave characters as they
are, but for ties within float32 rounding, as SentencePiece adds scores in float32. What would differ is refused by
name. One known difference stays, and transformers has it too: the nmt_nfkc rules of the tokenizers package do not
compose letters and combining marks that stand apart (decomposed text). To support another kind, see `refusals`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from data.sentencepiece_file import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    read_model,
)
from utils.errors import DataError

SPACE = "\u2581"
KNOWN_RULES = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf")


def read_sentencepiece(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The backend of a model file, and its bos, eos and pad. Raises DataError when it is broken or not to be had."""
    model = read_model(path)
    if reasons := list(refusals(model)):
        raise DataError(f"{path}: this SentencePiece model cannot be read exactly: {'; '.join(reasons)}")
    return new_backend(model), model.roles


def new_backend(model: SentencePieceModel) -> tokenizers.Tokenizer:
    """The backend of a model without `refusals`. Ids are the places of the pieces."""
    unknown = next(piece.text for piece in model.pieces if piece.kind == UNKNOWN)
    backend = tokenizers.Tokenizer(_unigram(model) if model.model_type == "unigram" else _bpe(model, unknown))
    backend.normalizer = normalizers.Sequence(list(_normalizers(model)))
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(_pretokenizers(model)))
    backend.decoder = _decoder(model)
    backend.add_special_tokens([piece.text for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL)])
    if model.model_type == "bpe":
        backend.add_tokens([AddedToken(text, normalized=True) for text in _texts(model, USER_DEFINED)])
    return backend


def refusals(model: SentencePieceModel) -> Iterator[str]:
    """What of the model the backend would do otherwise."""
    if model.model_type not in ("unigram", "bpe"):
        yield f"its type is {model.model_type}, not unigram or bpe"
    if model.charsmap and model.normalizer not in KNOWN_RULES:
        yield f"it has rules of its own for characters ({model.normalizer or 'no name'})"
    if model.has_denormalizer:
        yield "it has rules of its own for decoding"
    if not model.escapes_spaces or model.space_is_behind:
        yield "spaces do not stand before words as U+2581"
    if sum(piece.kind == UNKNOWN for piece in model.pieces) != 1:
        yield "it has not exactly one unknown piece"
    if len({piece.text for piece in model.pieces}) < len(model.pieces):
        yield "a piece occurs twice"
    if any(_texts(model, UNUSED)):
        yield "it has unused pieces"
    if model.byte_fallback and set(_texts(model, BYTE)) != {f"<0x{byte:02X}>" for byte in range(256)}:
        yield "bytes stand in for unknown characters, but not all 256 are there"
    yield from _refused_pieces(model)


def _refused_pieces(model: SentencePieceModel) -> Iterator[str]:
    known = {piece.text for piece in _matched(model) if len(piece.text) == 1}
    learned = _matched(model) if model.model_type == "unigram" else [p for p in model.pieces if p.kind == NORMAL]
    if lonely := sorted({char for piece in learned for char in piece.text} - known):
        yield f"the character '{lonely[0]}' occurs in pieces, but is none itself"
    for text in hidden_texts(model):
        if len(text) < 2 or (model.model_type == "unigram" and not known.intersection(text)):
            yield f"text could become the token '{text}'"
            break
    if model.model_type == "bpe":
        scores = [piece.score for piece in _matched(model) if len(piece.text) > 1 and piece.kind == NORMAL]
        if len(set(scores)) < len(scores):
            yield "two merges have equal scores"
    chars = normalizers.Sequence(list(_normalizers(model, only_characters=True)))
    for text in _texts(model, USER_DEFINED):
        frozen = model.model_type == "bpe" and (model.adds_space_before or model.removes_spaces)
        if frozen or " " in text or SPACE in text or chars.normalize_str(text) != text:
            yield f"it takes '{text}' whole wherever it stands"
            break


def _matched(model: SentencePieceModel) -> list[Piece]:
    """The pieces that text can become."""
    return [piece for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)]


def _texts(model: SentencePieceModel, kind: int) -> list[str]:
    return [piece.text for piece in model.pieces if piece.kind == kind]


def can_split_at_spaces(model: SentencePieceModel) -> bool:
    """Whether no piece reaches over the beginning of a word, so that words are encoded one by one."""
    texts = [piece.text for piece in _matched(model)]
    return SPACE in texts and not any(SPACE in text.lstrip(SPACE) for text in texts)


def _pretokenizers(model: SentencePieceModel) -> Iterator[pre_tokenizers.PreTokenizer]:
    if can_split_at_spaces(model):
        yield pre_tokenizers.Split(Regex(f"{SPACE}+"), behavior="merged_with_next")
    if model.model_type == "unigram" and (places := places_to_cut(model)):
        yield pre_tokenizers.Split(Regex(places), behavior="isolated")


def places_to_cut(model: SentencePieceModel) -> str:
    """Pattern of a place inside each control token spelled out in text, where a cut keeps it from becoming the token.

    It lies between a character that no piece has and one that is a piece: no other text is read otherwise by it.
    Tokens all of whose characters are pieces need none, as their scores see to it. "" when there are none.
    """
    known = {piece.text for piece in _matched(model) if len(piece.text) == 1}
    behind: dict[str, list[str]] = {}
    for text in hidden_texts(model):
        changes = [place for place in range(1, len(text)) if (text[place - 1] in known) != (text[place] in known)]
        if changes:
            behind.setdefault(text[: changes[0]], []).append(text[changes[0] :])
    return "|".join(
        f"(?<={re.escape(before)})(?={'|'.join(map(re.escape, after))})" for before, after in behind.items()
    )


def hidden_texts(model: SentencePieceModel) -> list[str]:
    """The tokens that stand for no text: control ones, the unknown one and bytes."""
    return [piece.text for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL, BYTE)]


def _normalizers(model: SentencePieceModel, only_characters: bool = False) -> Iterator[normalizers.Normalizer]:
    """What happens to a text before it is cut into pieces, in SentencePiece's order."""
    if model.adds_space_before and not model.removes_spaces and not only_characters:
        yield normalizers.Prepend(" ")  # Before characters go: a text of which nothing remains has this space.
    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if only_characters:
        return
    if model.removes_spaces:
        yield normalizers.Replace(Regex("\\A +"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if model.adds_space_before and model.removes_spaces:
        yield normalizers.Prepend(SPACE)
    yield normalizers.Replace(" ", SPACE)
    if model.removes_spaces:
        yield normalizers.Replace(Regex(f"{SPACE}+\\z"), "")


def _decoder(model: SentencePieceModel) -> decoders.Decoder:
    """The decoder mlx-lm knows as SentencePiece's."""
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * model.adds_space_before)


def _unigram(model: SentencePieceModel) -> models.Unigram:
    """Pieces that no text may become get a score below any other way to read their characters."""
    scores = [piece.score for piece in model.pieces if piece.kind == NORMAL]
    most, least = max(scores, default=0.0), min(scores, default=0.0)
    vocabulary = []
    for text, score, kind in model.pieces:
        if kind == USER_DEFINED:
            score = len(text.encode("utf-8")) * most - 0.1
        elif kind != NORMAL:
            score = (len(text) + 1) * (min(least, 0.0) - 20)
        vocabulary.append((text, score))
    unknown = next(place for place, piece in enumerate(model.pieces) if piece.kind == UNKNOWN)
    return models.Unigram(vocabulary, unknown, model.byte_fallback)


def _bpe(model: SentencePieceModel, unknown: str) -> models.BPE:
    vocabulary = {piece.text: place for place, piece in enumerate(model.pieces)}
    return models.BPE(
        vocab=vocabulary,
        merges=merges_of(model.pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def merges_of(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, best score first.

    Pairs that make the same piece are equals to SentencePiece, which takes the leftmost in the text. Here one is
    before the other, which matters only if they overlap (`aa a` and `a aa` in `aa a aa`); merging from the left leaves
    no such place in any model tried.
    """
    known = {piece.text for piece in pieces if piece.kind == NORMAL}
    ranked = sorted((piece for piece in pieces if piece.kind == NORMAL), key=lambda piece: -piece.score)
    pairs = ((text[:cut], text[cut:]) for text, _, _ in ranked for cut in range(1, len(text)))
    return [(left, right) for left, right in pairs if left in known and right in known]
