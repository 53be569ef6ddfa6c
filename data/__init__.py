"""From text to batches: sources -> split -> tokenizer -> shards -> packing -> loader. NumPy only, knows no model.

The three tables name what a config's `type:` may say in the data section. To add a row: write the class, add a line.
"""

DATASETS = {"text": "data.text:TextDataConfig"}

SOURCES = {
    "jsonl": "data.sources:JSONLSourceConfig",
    "text": "data.sources:TextSourceConfig",
    "stdlib": "data.sources:StdlibSourceConfig",
}

TOKENIZERS = {
    "bpe": "data.tokenizer:BPETokenizerConfig",
    "file": "data.tokenizer:FileTokenizerConfig",
    "bytes": "data.tokenizer:BytesTokenizerConfig",
}

FILTERS = {
    "length": "data.filters:LengthFilterConfig",
    "symbols": "data.filters:SymbolFilterConfig",
    "repetition": "data.repetition:RepetitionFilterConfig",
}
