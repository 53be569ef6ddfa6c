"""What happened to every document: counted by source and reason when shards are written, told to a person on request.

Every document that was read is in exactly one count: kept, or one reason why not. To show more, add it to `account`
and to `describe`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.chunks import NUM_SAMPLES, read_facts
from data.verdicts import NAMES, Judged
from utils.errors import DataError

REPORT_FILE = "report.json"


def account(
    name: str,
    chunks: Sequence[Path],
    verdicts: Sequence[np.ndarray],
    shards: Sequence[dict[str, Any]],
    notes: Sequence[str],
) -> dict[str, Any]:
    """One source: documents and bytes read, what was cleaned, what was dropped and why, what was kept."""
    facts = [read_facts(path) for path in chunks]
    dropped = merge_counts([each["dropped"] for each in facts])
    for code, reason in NAMES.items():
        if count := sum(int((verdict == code).sum()) for verdict in verdicts):
            dropped[reason] = dropped.get(reason, 0) + count  # A filter of one's own may use the same word.
    kept = {key: sum(shard[key] for shard in shards) for key in ("documents", "tokens", "text_bytes")}
    read = merge_counts([each["read"] for each in facts]) or {"documents": 0, "bytes": 0}
    beyond = read["documents"] - sum(dropped.values()) - kept["documents"]
    assert beyond >= 0, "a document is in two counts"
    if beyond:
        dropped["beyond_max_tokens"] = beyond
    return {
        "name": name,
        "read": read,
        "notes": list(notes),
        "cleaned": merge_counts([each["cleaned"] for each in facts]),
        "dropped": dropped,
        "samples": merge_samples([each["samples"] for each in facts]),
        "kept": kept,
    }


def merge_counts(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    """Sums by name."""
    names = sorted({name for each in counts for name in each})
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def merge_samples(samples: Sequence[dict[str, list[str]]]) -> dict[str, list[str]]:
    """The first few by reason."""
    reasons = sorted({reason for each in samples for reason in each})
    return {reason: [text for each in samples for text in each.get(reason, [])][:NUM_SAMPLES] for reason in reasons}


def write_report(folder: Path, accounts: list[dict[str, Any]], judged: Judged) -> None:
    """Write `report.json` beside the shards."""
    held_out = {"documents": len(judged.validation), "bytes": sum(len(t.encode("utf-8")) for t in judged.validation)}
    report = {"sources": accounts, "held_out": held_out, "samples": judged.samples}
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def read_report(folder: Path) -> dict[str, Any]:
    """What `write_report` wrote. Raises DataError."""
    try:
        return json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / REPORT_FILE}: cannot be read ({error})") from error


def describe(report: dict[str, Any]) -> list[str]:
    """The report as lines for a person."""
    lines = []
    for source in report["sources"]:
        read, kept = source["read"], source["kept"]
        lines.append(f"{source['name']}: {read['documents']:,} documents, {read['bytes'] / 1e6:,.1f} MB read")
        lines += [f"  {note}" for note in source["notes"]]
        lines += [f"  cleaned, {name}: {count:,}" for name, count in source["cleaned"].items()]
        share = {name: count / max(1, read["documents"]) for name, count in source["dropped"].items()}
        lines += [f"  not trained on, {name}: {source['dropped'][name]:,} ({each:.2%})" for name, each in share.items()]
        size = f"{kept['text_bytes'] / 1e6:,.1f} MB, {kept['tokens']:,} tokens"
        lines.append(f"  kept: {kept['documents']:,} documents, {size}")
    held_out = report["held_out"]
    return [*lines, f"held-out text: {held_out['documents']:,} documents, {held_out['bytes'] / 1e6:,.2f} MB"]
