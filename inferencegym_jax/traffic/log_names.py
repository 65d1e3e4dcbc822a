"""Which columns of a log hold the time of arrival, the prompt's and the output's tokens: by their names and first rows.

``names, first rows -> LogColumns``. A name matches whatever its case and separators, and also as the last part of a
path (``usage.prompt_tokens``). A name that often means something else (``time`` is a duration in some logs, ``input``
the prompt itself) is taken only where none says it plainly, and where its values can be what is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferencegym_jax.traffic.log_rows import ROLES, UNITS, TraceError, named, plain_number

Sample = Mapping[str, Sequence[str | None]]  # the first rows' cells, by column

NAMES = {
    "time": (
        "arrivaltime arrivaltimestamp arrivedat arrivalat arrival arrivalts requesttimestamp requeststarttime "
        "requeststart requeststartedat requestedat requestat receivedat starttime starttimestamp startts "
        "startedat startat starttimeunix start timestamp timeiso8601 timelocal eventtime eventtimestamp ts "
        "requestcreatedat createdat createtime creationtime created submittedat submittime enqueuedat sentat "
        "datetime timeunix unixtime epoch date"
    ).split(),
    "prompt": (
        "prompttokens contexttokens inputtokens requesttokens numprefilltokens prefilltokens numprompttokens "
        "numinputtokens inputtokencount prompttokencount tokensprompt promptevalcount nprompttokens ninputtokens "
        "tokensin tokensinput tokencountprompt usageinput usagedetailsinput inputusage usageprompt isl "
        "inputsequencelength promptlength promptlen contextlength inputlength inputlen requestlength promptsize"
    ).split(),
    "output": (
        "outputtokens generatedtokens generationtokens completiontokens responsetokens decodetokens numdecodetokens "
        "numoutputtokens numgeneratedtokens numcompletiontokens outputtokencount completiontokencount "
        "candidatestokencount tokenscompletion evalcount ncompletiontokens noutputtokens tokensout tokensoutput "
        "tokencountcompletion usageoutput usagedetailsoutput outputusage usagecompletion osl outputsequencelength "
        "outputlength outputlen generatedlength completionlength responselength tokensize"
    ).split(),
}
WEAK = {
    "time": "requesttime time".split(),
    "prompt": "prompt context input".split(),
    "output": "output generated completion response".split(),
}
WHAT = {"time": "time", "prompt": "prompt tokens", "output": "output tokens"}
VALUE = re.compile(r"(?<=.)\.value$")  # aiperf's metrics.input_sequence_length.value
AGAIN = re.compile(r"\.\d+$")  # pandas' name of a second column of the same name
# parts of a prompt or an output that stand apart from it, by the plain name beside which they do
APART: dict[str, tuple[str, ...]] = {
    "inputtokens": ("cachereadinputtokens", "cachecreationinputtokens"),  # Anthropic
    "usagedetailsinput": ("inputcachedtokens", "cachereadinputtokens", "cachecreationinputtokens", "inputcacheread"),
    "candidatestokencount": ("thoughtstokencount",),  # Gemini
}
REASONING = re.compile(r"(reasoning|thinking|thoughts?)(output)?tokens?(count)?")
CACHED = re.compile(r"cached?|cache(read|hit)")
STATUS = (
    "statuscode httpstatus httpstatuscode responsestatus responsecode status level success errormessage error "
    "exception statusmessage"
).split()
# names of what a row of a trace is, and what there is besides calls of a model
KINDS = "observationtype spankind runtype type kind".split()
NO_CALLS = frozenset(
    "span event trace agent tool chain retriever retrieval evaluator guardrail embedding reranker prompt parser "
    "user system summary".split()
)
ENDS = frozenset(("timeiso8601", "timelocal"))  # nginx writes a row when the answer is sent
NOT_CACHED = re.compile("cost|creation|write|miss|ratio|rate|share|percent")
TOTALS = ("totaltokens", "totaltokencount", "tokenstotal", "usagetotal")

UNIT_NAMES = {
    "s": "s sec secs second seconds",
    "ms": "ms msec msecs milli millis millisecond milliseconds",
    "us": "us usec usecs micro micros microsecond microseconds",
    "ns": "ns nsec nsecs nano nanos nanosecond nanoseconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
}
UNIT_OF = {word: unit for unit, words in UNIT_NAMES.items() for word in words.split()}
_WORDS = "|".join(sorted(UNIT_OF, key=len, reverse=True))
UNIT_APART = re.compile(rf"[\s_\-./]*[\[({{]\s*({_WORDS})\s*[\])}}]\s*$|[\s_\-./]+({_WORDS})\s*$", re.IGNORECASE)
UNIT_CAMEL = re.compile(
    rf"(?<=[a-z0-9])({'|'.join(sorted((w.capitalize() for w in UNIT_OF), key=len, reverse=True))})$"
)
_GLUED = sorted((word for word, unit in UNIT_OF.items() if unit in UNITS and word != "s"), key=len, reverse=True)
UNIT_GLUED = re.compile(rf"(?<=[a-z])({'|'.join(_GLUED)})$")


@dataclass(frozen=True)
class LogColumns:
    """The columns of a log that are read.

    Attributes:
        time: the time of arrival.
        prompt, output: columns that are added up, tokens.
        cached: a column of cached tokens that is taken as part of the prompt, which each row has to bear out.
        unit: of the times, where the column's name states it.
        sure: whether the time's name says that it is one of arrival.
        status: a column that says whether a request failed.
        kind: a column that says what a row of a trace is.
        measure: a column that says in what the prompt is counted.
        spans: whether the tokens are attributes of spans, of which others have none.
        counts: columns of counts of requests, 1 in the first rows, which each row has to bear out; see ``log_sums``.
        notices: choices among several columns, one sentence each.
    """

    time: str
    prompt: tuple[str, ...]
    output: tuple[str, ...]
    cached: str | None = None
    unit: str | None = None
    sure: bool = True
    status: str | None = None
    kind: str | None = None
    measure: str | None = None
    spans: bool = False
    notices: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()

    @property
    def all(self) -> list[str]:
        """Every column that is read, each once."""
        names = (self.time, *self.prompt, *self.output, self.cached, self.status, self.kind, self.measure, *self.counts)
        return list(dict.fromkeys(name for name in names if name))


def plain(name: str) -> str:
    """A name without case and separators."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def split_unit(name: str) -> tuple[str, str | None]:
    """A column's name without its unit, and the unit: "Timestamp (ms)", "time_us", "startTimeUnixNano"."""
    for pattern in (UNIT_APART, UNIT_CAMEL):
        match = pattern.search(name)
        if match and match.start():
            word = next(group for group in match.groups() if group)
            return name[: match.start()], UNIT_OF[word.lower()]
    return name, None


def _readings(name: str, role: str) -> list[tuple[str, str | None]]:
    """(plain name, unit) under which a column may be known: whole, its last part, its last two; with and without a
    unit."""
    name = VALUE.sub("", AGAIN.sub("", name))
    parts = [part for part in re.split(r"[./]", name) if part] or [name]
    tails = dict.fromkeys((name, parts[-1], ".".join(parts[-2:])))
    readings: list[tuple[str, str | None]] = [(plain(tail), None) for tail in tails]
    if role == "time":
        for tail in tails:
            bare, unit = split_unit(tail)
            if unit is None:
                glued = UNIT_GLUED.search(tail.lower())
                bare, unit = (tail[: glued.start()], UNIT_OF[glued[1]]) if glued else (tail, None)
            if unit is not None:
                readings.append((plain(bare), unit))
    return readings


def _numeric(sample: Sequence[str | None]) -> bool:
    """Whether the first cells that hold something are numbers."""
    cells = [cell for cell in sample if cell not in (None, "")][:20]
    return bool(cells) and all(plain_number(cell) for cell in cells)


def _depth(name: str) -> int:
    return len(re.split(r"[./]", AGAIN.sub("", name)))


def _match(file: str, role: str, columns: list[str], sample: Sample) -> tuple[str, str | None, bool, list[str]]:
    """(column, its unit, whether its name says plainly what it is, others that would do as well)."""
    text_columns: list[str] = []
    for sure, known in ((True, NAMES[role]), (False, WEAK[role])):
        matches: list[tuple[int, int, str, str | None]] = []
        for column in columns:
            ranks = [(known.index(name), unit) for name, unit in _readings(column, role) if name in known]
            if not ranks:
                continue
            if role != "time" and "cache" in column.lower():
                continue
            cells = sample.get(column, ())
            if role != "time" and not sure and any(cells) and not _numeric(cells):
                text_columns.append(column)
                continue
            rank, unit = min(ranks, key=lambda pair: pair[0])
            matches.append((rank, _depth(column), column, unit))
        if not matches:
            continue
        matches.sort(key=lambda entry: entry[:2])
        rank, depth, column, unit = matches[0]
        same = [other for other in matches[1:] if other[:2] == (rank, depth)]
        if same:
            names = [column, *(other[2] for other in same)]
            if len(set(names)) < len(names):
                raise TraceError(
                    f"{file}: the column {named([column])} is there {len(names)} times; leave one of them, or rename"
                )
            raise TraceError(
                f"{file}: {named(names)} could each be the {WHAT[role]}; say which: columns {role}=NAME"
                f" (--columns {role}={column})"
            )
        return column, unit, sure, [entry[2] for entry in matches[1:]]
    known = ", ".join(("timestamp", *NAMES[role][:6]) if role == "time" else NAMES[role][:7]) + ", ..."
    if text_columns:
        raise TraceError(
            f"{file}: {named(text_columns)} holds text, not a number of tokens; wanted: a column of {WHAT[role]}"
            f" (known names: {known}), or columns {role}=NAME"
        )
    raise TraceError(
        f"{file}: no column of {WHAT[role]} among {named(columns)}; known names (case and separators do not matter):"
        f" {known}; a column of another name is taken by columns {role}=NAME (--columns {role}=NAME)"
    )


def find_columns(
    file: str,
    columns: list[str],
    sample: Sample | None = None,
    named_columns: Sequence[tuple[str, tuple[str, ...]]] = (),
) -> LogColumns:
    """The columns of time, prompt and output tokens among ``columns``.

    Args:
        file: what messages call the log.
        columns: its columns' names.
        sample: their first cells.
        named_columns: what the user says, see ``ReadOptions.columns``.

    Raises:
        TraceError: one of them is not there, is there twice, or the rows are sums over requests; says what would do.
    """
    cells = sample or {}
    columns_of: dict[str, tuple[str, ...]] = {
        role: tuple(_named_column(file, role, name, columns) for name in names) for role, names in named_columns
    }
    notices: list[str] = []
    unit, sure, cached = None, True, None
    for role in ROLES:
        if role in columns_of:
            continue
        column, found_unit, plainly, others = _match(file, role, columns, cells)
        columns_of[role] = (column,)
        if role == "time":
            unit, sure = found_unit, plainly
            continue
        differing = [o for o in others if _depth(o) <= _depth(column) and _differ(cells, column, o)]
        if differing:
            notices.append(f"{WHAT[role]} are those of {named([column])}; {named(differing)} differs and is not used")
        apart = _parts(column, columns) or (_reasoning(column, columns, cells) if role == "output" else ())
        if apart:
            columns_of[role] += apart
            notices.append(f"{named(apart)} is added to {named([column])}, which does not hold it")
        elif role == "prompt":
            cached, notice = _cached(column, columns, cells)
            if cached is not None and notice is None:
                columns_of[role], cached = (column, cached), None
                notices.append(f"{named(columns_of[role][1:])} is added to {named([column])}, which does not hold it")
            elif notice:
                notices.append(notice)
    time = columns_of["time"][0]
    if len(columns_of["time"]) > 1:
        raise TraceError(f"{file}: columns: time is one column, got {named(columns_of['time'])}")
    if unit is None and "time" in dict(named_columns):
        unit = split_unit(time)[1]
    if plain(_parent(time)[1]) in ENDS:
        notices.append(f"{named([time])} is when nginx ended a request, not when it came")
    by_name = {plain(_parent(column)[1]): column for column in reversed(columns)}
    status = next((by_name[name] for name in STATUS if name in by_name), None)
    kind = next((by_name[name] for name in KINDS if name in by_name), None)
    prompt, output = columns_of["prompt"], columns_of["output"]
    status, kind = (None if name in (time, *prompt, *output) else name for name in (status, kind))
    spans = any(mark in prompt[0] for mark in ("gen_ai.", "llm."))
    measure = next((c for name, c in _siblings(prompt[0], columns).items() if name == "unit"), None)
    return LogColumns(time, prompt, output, cached, unit, sure, status, kind, measure, spans, tuple(notices))


def _named_column(file: str, role: str, name: str, columns: list[str]) -> str:
    fitting = [c for c in columns if c == name] or [c for c in columns if plain(c) == plain(name) != ""]
    if not fitting:
        fitting = [c for c in columns if plain(re.split(r"[./]", c)[-1]) == plain(name) != ""]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise TraceError(f"{file}: columns: {role}={name!r} fits {len(fitting)} columns: {named(fitting)}")
    raise TraceError(f"{file}: columns: no column {name!r} for {role}; there are {named(columns)}")


def _differ(sample: Sample, one: str, other: str) -> bool:
    pairs = zip(sample.get(one, ()), sample.get(other, ()), strict=False)
    return any(a not in (None, "") and b not in (None, "") and a != b for a, b in pairs)


def _siblings(column: str, columns: list[str]) -> dict[str, str]:
    """Columns beside ``column`` (same path but the last part) by their plain last part."""
    parent, last = _parent(column)
    return {plain(_parent(c)[1]): c for c in columns if _parent(c)[0] == parent and _parent(c)[1] != last}


def _parent(column: str) -> tuple[str, str]:
    head, _, tail = column.rpartition(".")
    return head, tail


def _parts(column: str, columns: list[str]) -> tuple[str, ...]:
    if "gen_ai" in column:  # OpenTelemetry counts cached tokens among the input tokens
        return ()
    beside = _siblings(column, columns)
    for reading, _ in _readings(column, "prompt"):
        if reading in APART:
            return tuple(beside[name] for name in APART[reading] if name in beside)
    return ()


def _reasoning(column: str, columns: list[str], sample: Sample) -> tuple[str, ...]:
    """A column of reasoning tokens that stand apart from the output: some row has more of them than of it."""
    names = [c for c in columns if REASONING.fullmatch(plain(_parent(c)[1])) and _numeric(sample.get(c, ()))]
    if len(names) != 1:
        return ()
    pairs = zip(_floats(sample.get(column, ())), _floats(sample[names[0]]), strict=True)
    return (names[0],) if any(reasoning > output for output, reasoning in pairs) else ()


def _cached(column: str, columns: list[str], sample: Sample) -> tuple[str | None, str | None]:
    """(a column of cached tokens, a notice that it is taken as part of the prompt; no notice: it stands apart)."""
    beside = _siblings(column, columns)
    names = [c for name, c in beside.items() if CACHED.search(name) and not NOT_CACHED.search(name)]
    names = [c for c in names if _numeric(sample.get(c, ()))]
    if "gen_ai" in column or len(names) != 1:
        return None, None
    prompts, cached = _floats(sample[column]), _floats(sample[names[0]])
    if not any(cached):
        return names[0], ""  # a later row may have some
    total = next((beside[name] for name in TOTALS if name in beside), None)
    output = next((beside[name] for name in NAMES["output"] if name in beside), None)
    adds_up = total is not None and output is not None
    if adds_up:
        rows = zip(prompts, cached, _floats(sample[str(output)]), _floats(sample[str(total)]), strict=True)
        adds_up = all(p + c + o == t for p, c, o, t in rows)
    if adds_up or any(c > p for p, c in zip(prompts, cached, strict=True)):
        return names[0], None
    return names[0], (
        f"{named(names)} is taken as a part of {named([column])};"
        f" where it stands apart, say so: columns prompt={column}+{names[0]}"
    )


def _floats(cells: Sequence[str | None]) -> list[float]:
    return [float(cell or 0) if plain_number(cell) else 0.0 for cell in cells]
