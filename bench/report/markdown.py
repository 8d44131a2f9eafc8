"""The tables of the leaderboard as markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import pandas as pd
from tabulate import tabulate

from vit_ptq_bench.bench.records.record import REFERENCE_FIDELITY, Record
from vit_ptq_bench.bench.report.factorial import Factorial, sections
from vit_ptq_bench.bench.report.footnotes import deviation
from vit_ptq_bench.bench.report.frame import GROUP, Loader, labels, to_frame
from vit_ptq_bench.bench.report.significance import SIGNIFICANCE, mcnemar
from vit_ptq_bench.methods.api.words import transform_words

LEGEND = """\
Methods are ranked by top-1 (or the task's first metric), in percent, with its 95 % interval; with several
seeds, the mean, the standard deviation between seeds and their number. `≈` after a rank: the difference to
the first is not significant, image by image (exact McNemar test, 5 %; of several seeds, the lowest); `?`: it
cannot be tested, for there are no outcomes to compare. *Drop* is the loss against full precision.
Quantization is simulated in float32: seconds and memory are what calibration costs, not what inference would
cost. *Memory* is the process's peak while calibrating; *size* is the saved quantized model's file. Letters in
*convention* are explained under the table: where the method's bit table differs from the common one, then
what else the method says of itself. Protocol `equal` gives every method the same sites, bits, granularity and
calibration images; `authors` gives each its own. Of a detector the scope says what is quantized: its
`backbone` alone, or also neck and heads (`full`; the transposed convolution of the mask head stays in
floating point). Rows of different protocols, scopes, data or evaluation subsets never share a table. What is
wrong with a record stands under *Findings* at the end, and gets no rank."""

Row = dict[str, Any]


def render(
    records: list[Record],
    outcomes: Loader,
    findings: list[str],
    found: Sequence[Factorial] = (),
) -> str:
    """Return the markdown text.

    Args:
        records: in any order.
        outcomes: gives per-image outcomes, for the comparison with the first of each table.
        findings: damaged and conflicting files, in words.
        found: the factorials among the records.
    """
    parts = ["# Leaderboard", LEGEND]
    if records:
        frame = to_frame(records).reset_index(drop=True)
        by_id = {record.run_id: record for record in records}
        parts += [_hardware(frame), *_sections(frame, by_id, outcomes), *sections(found)]
    if findings:
        parts += ["## Findings", "\n".join(f"- {text}" for text in findings)]
    parts.append("Made by `bench leaderboard --results FOLDER` from the records beside it.")
    return "\n\n".join(parts) + "\n"


def _hardware(frame: pd.DataFrame) -> str:
    machines = sorted(
        {
            f"{cpu}, {int(threads)} threads, torch {torch}"
            for cpu, threads, torch in zip(
                frame["cpu"], frame["threads"], frame["torch"], strict=True
            )
            if cpu and pd.notna(threads)
        }
    )
    if len(machines) > 1:
        return f"Seconds and memory come from different machines: {'; '.join(machines)}."
    return f"Machine: {machines[0]}." if machines else "No run finished."


def _sections(frame: pd.DataFrame, by_id: Mapping[str, Record], outcomes: Loader) -> Iterator[str]:
    for key, group in frame.groupby(GROUP[:-2], dropna=False, sort=True):
        task, version, data, limit, protocol, scope = _values(key)
        if (group["fidelity"] == REFERENCE_FIDELITY).all():
            continue
        part = "" if pd.isna(limit) else f", {int(limit)} images of the evaluation set"
        how = f"`{protocol}`, scope `{scope}`" if scope else f"`{protocol}`"
        yield f"## {task} (version {version}{part}), protocol {how}"
        same_data = _same(frame, GROUP[:4], (task, version, data, limit))
        references = frame[same_data & (frame["fidelity"] == REFERENCE_FIDELITY)]
        rows = group[group["fidelity"] != REFERENCE_FIDELITY]
        rows = rows.assign(label=labels(rows).map(_cell))
        yield _summary(rows, references)
        for pair, of_model in rows.groupby(["model", "weights"], sort=True):
            model, weights = _values(pair)
            own = references[(references["model"] == model) & (references["weights"] == weights)]
            everyone = sorted(set(of_model["label"]))
            for bits, table in of_model.groupby("bits", sort=True):
                yield f"### {model}, {bits}, {how}"
                yield _table(table, own, everyone, by_id, outcomes)


def _cell(text: str) -> str:
    """A text as a cell of a table: in one line, without the sign that ends cells."""
    return " ".join(text.split()).replace("|", "/")


def _values(key: Any) -> tuple[Any, ...]:
    """The values of a group's key, which pandas types as one scalar."""
    return tuple(key)


def _same(frame: pd.DataFrame, columns: list[str], values: tuple[Any, ...]) -> pd.Series[bool]:
    mask = pd.Series(True, index=frame.index)
    for column, value in zip(columns, values, strict=True):
        mask &= frame[column].isna() if pd.isna(value) else frame[column] == value
    return mask


def _summary(rows: pd.DataFrame, references: pd.DataFrame) -> str:
    """Methods x (model, bit width), mean of the primary metric."""
    values = rows.pivot_table(
        index="label", columns=["model", "bits"], values="value", aggfunc="mean", dropna=False
    )
    order = values.mean(axis=1).sort_values(ascending=False, kind="stable").index
    columns = [_values(column) for column in values.columns]
    head = ["method", *(f"{model} {bits}" for model, bits in columns)]
    full = references.groupby("model")["value"].mean()
    body = [["fp32", *(_number(full.get(model), 1) for model, _ in columns)]]
    body += [[label, *(_number(v, 1) for v in values.loc[label])] for label in order]
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def _table(
    table: pd.DataFrame,
    references: pd.DataFrame,
    everyone: list[str],
    by_id: Mapping[str, Record],
    outcomes: Loader,
) -> str:
    full = references["value"].mean() if len(references) else None
    notes: dict[str, str] = {}
    rows = [
        _aggregate(str(label), part, by_id) for label, part in table.groupby("label", sort=True)
    ]
    done = sorted(
        (r for r in rows if r["value"] is not None), key=lambda r: (-r["value"], r["label"])
    )
    metric, titles = _metrics(done, references, by_id)
    others = [f"metric_{name}" for name, _ in titles]
    lines = []
    if len(references):
        lines.append(_line("-", _aggregate("fp32", references, by_id), full, notes, others))
    for rank, row in enumerate(done, start=1):
        sign = "" if rank == 1 else _separation(done[0], row, by_id, outcomes)
        lines.append(_line(f"{rank}{sign}", row, full, notes, others))
    lines += [_failure_line(row) for row in rows if row["value"] is None]
    lines += [
        ["", label, "not run"] for label in everyone if label not in {r["label"] for r in rows}
    ]
    head = ["rank", "method", f"{metric} % [95 %]", *(f"{title} %" for _, title in titles)]
    head += ["drop", "calibration s", "memory MB", "size MB", "images", "fidelity", "convention"]
    text = tabulate(lines, head, tablefmt="github", disable_numparse=True)
    footnotes = [f"({mark}) {note}" for note, mark in notes.items()]
    return "\n\n".join([text, *footnotes])


def _metrics(
    done: list[Row], references: pd.DataFrame, by_id: Mapping[str, Record]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The metric that a table is ranked by, and (metric, title) of those beside it."""
    ids = [run_id for row in done for run_id in row["ids"]]
    ids += list(references.loc[references["status"] == "ok", "run_id"])
    if not ids:
        return "top1", ()
    record = by_id[ids[0]]
    return record.primary_metric or "", record.metric_titles


def _aggregate(label: str, part: pd.DataFrame, by_id: Mapping[str, Record]) -> Row:
    """One line of a table from the runs of all seeds."""
    ok = part[part["status"] == "ok"]
    row: Row = {"label": label, "value": None, "part": part, "ok": ok, "ids": list(ok["run_id"])}
    first = (ok if len(ok) else part).iloc[0]
    row |= {
        "fidelity": first["fidelity"],
        "note": _note(by_id[first["run_id"]]),
        "metric": first["metric"],
    }
    if len(ok):
        row["value"] = float(ok["value"].mean())
    return row


def _note(record: Record) -> str:
    """The footnote of a run: what a reader has to know to compare it with the others."""
    if record.fidelity == REFERENCE_FIDELITY:
        return ""
    warnings = record.environment.get("warnings")
    warned = "warned while calibrating, see `bench show`" if warnings else ""
    notes = (" ".join(note.split()) for note in record.notes)
    before = transform_words(record.spec.method.transforms)
    return "; ".join(text for text in (deviation(record), *before, *notes, warned) if text)


def footnote_mark(number: int) -> str:
    """a, b, ..., z, aa, ab, ...: the mark of footnote ``number``, from 0."""
    mark = ""
    while number >= 0:
        number, letter = divmod(number, len(ascii_lowercase))
        mark, number = ascii_lowercase[letter] + mark, number - 1
    return mark


def _line(
    rank: str, row: Row, full: float | None, notes: dict[str, str], metrics: list[str]
) -> list[str]:
    ok = row["ok"]
    if not len(ok):
        return _failure_line(row)
    is_reference = row["fidelity"] == REFERENCE_FIDELITY
    note = row["note"]
    mark = f"({notes.setdefault(note, footnote_mark(len(notes)))})" if note else ""
    others = [ok[name].mean() if name in ok else None for name in metrics]
    drop = None if full is None or is_reference else full - row["value"]
    return [
        rank,
        row["label"],
        _value(ok),
        *(_number(value, 1) for value in others),
        _number(drop, 1),
        "-" if is_reference else _number(ok["seconds_calibrate"].mean(), 1),
        "-" if is_reference else _number(ok["peak_memory_mb"].mean(), 0),
        _number(ok["size_mb"].mean(), 2),
        "/".join(str(n) for n in sorted(set(ok["calibration_images"]))),
        row["fidelity"],
        mark,
    ]


def _value(ok: pd.DataFrame) -> str:
    if len(ok) == 1:
        one = ok.iloc[0]
        return f"{one['value']:.2f} [{one['low']:.1f}, {one['high']:.1f}]"
    return f"{ok['value'].mean():.2f} ± {ok['value'].std():.2f} ({len(ok)} seeds)"


def _failure_line(row: Row) -> list[str]:
    part = row["part"]
    status = ", ".join(sorted(set(part["status"])))
    reason = str(part.iloc[0]["error"]).splitlines()
    return ["", row["label"], _cell(f"{status}: {reason[0][:80] if reason else ''}")]


def _separation(best: Row, row: Row, by_id: Mapping[str, Record], outcomes: Loader) -> str:
    """The sign after a rank: whether one seed of each, seen by the same images, differs significantly."""
    first, second = outcomes(by_id[best["ids"][0]]), outcomes(by_id[row["ids"][0]])
    if first is None or second is None or len(first) != len(second):
        return " ?"
    return " ≈" if mcnemar(first, second) >= SIGNIFICANCE else ""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"
