"""What is said of a catalog: the facts of a run, the report, and a summary for people. Loads no network library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from configs import schema
from configs.runtime.program import command
from curation.decision.reasons import CATALOG, reason
from curation.report.page import render
from curation.schema import VERDICTS
from pipeline.catalog.run_record import RunRecord
from pipeline.catalog.writer import About, Describe

_SHOWN = 8  # reasons of a kind, the most frequent first
STANDING_COLUMNS = ["clip_id", "source_uri", "verdict", "reasons"]
"""What :func:`standing` reads of the clips; of the videos all but the id."""

Counts = list[tuple[str, int]]
"""Codes of reasons and how often each occurs, the most frequent first."""


@dataclass(frozen=True)
class Standing:
    """How many clips of a catalog are kept, held and rejected, why, and which commands go on from there.

    The last screen of `curate`, `catalog status` and `shard` on nothing kept all say it with this.
    """

    catalog: str
    clips: dict[str, int]  # by verdict
    held: Counts
    rejected: Counts
    without_clips: Counts  # files that gave none
    nearest: str | None = None  # the id of the clip that is not kept for the fewest reasons
    preset: str | None = None  # that the catalog was made with

    def counts(self) -> str:
        """One line."""
        words = {"keep": "kept", "hold": "held", "reject": "rejected", "error": "not usable"}
        shown = [v for v in words if self.clips.get(v) or v != "error"]
        return f"{sum(self.clips.values())} clips: " + ", ".join(f"{self.clips.get(v, 0)} {words[v]}" for v in shown)

    def why(self) -> list[str]:
        """Lines: how many clips are held and rejected for which reason, and files that gave no clip."""
        lines = []
        for title, found in (
            ("held, by reason:", self.held),
            ("rejected, by reason (a clip can have several):", self.rejected),
            ("files without a clip, by reason:", self.without_clips),
        ):
            if found:
                lines += [title, *(f"  {n:>6}  {reason(code).words}" for code, n in found[:_SHOWN])]
            if found[_SHOWN:]:
                lines.append(f"          and {len(found) - _SHOWN} more reasons: the report has all of them")
        return lines

    def next_steps(self, *, files_shown: bool = False) -> list[str]:
        """Lines: each way to go on and its command, ready to be pasted.

        Args:
            files_shown: the files that cannot be used are on the screen already.
        """
        ways = list(self._ways(files_shown))
        if not ways:
            return ["no file gave a clip: mend the files or give others, then run `curate` again"]
        return ["to go on:" if len(ways) == 1 else "to go on, one of:", *(line for way in ways for line in way)]

    def _ways(self, files_shown: bool) -> Iterator[list[str]]:
        if kept := self.clips.get("keep", 0):
            yield _way("make shards of what is kept", ("shard", self.catalog, "--out", "dataset", *self._preset()))
        remedies = dict.fromkeys(remedy for code, _ in self.held for remedy in reason(code).remedies)
        for remedy in remedies:
            parts = tuple(self.catalog if part == CATALOG else part for part in remedy.command)
            yield _way(remedy.what, parts, remedy.then)
        if kept or remedies:
            return
        if self.nearest:
            yield _way("see the scores of the clip that came nearest, beside their thresholds",
                       ("catalog", "explain", self.catalog, self.nearest))  # fmt: skip
            code, setting = next(((c, s) for c, _ in self.rejected if (s := reason(c).setting)), ("", ""))
            if setting:
                yield _way(f"try another setting for '{reason(code).words}'",
                           ("catalog", "redecide", self.catalog, "--set", setting))  # fmt: skip
        elif self.without_clips and not files_shown:
            yield _way("see which files gave no clip, and why", ("catalog", "status", self.catalog))

    def _preset(self) -> tuple[str, ...]:
        """The option that `shard` needs to use the preset of the catalog; its default needs none."""
        named = self.preset in schema.PRESETS and self.preset != schema.PRESETS[0]
        return ("--preset", str(self.preset)) if named else ()


def _way(what: str, arguments: tuple[str, ...], then: tuple[str, ...] = ()) -> list[str]:
    """What a way does, its command, and what follows; ``arguments`` are empty where there is no command to give."""
    if not arguments:
        return [f"  {what}"]
    return [f"  {what}:", f"    {command(*arguments)}", *(f"    {line}" for line in then)]


def standing(out: str, videos: pa.Table, clips: pa.Table, preset: str | None = None) -> Standing:
    """Count verdicts and reasons of decided tables, the clips with :data:`STANDING_COLUMNS`."""
    held, rejected = (clips.filter(pc.equal(clips["verdict"], verdict)) for verdict in ("hold", "reject"))
    empty = videos.filter(pc.invert(pc.is_in(videos["source_uri"], value_set=clips["source_uri"])))
    reasons_of_rejection = [
        (code, n) for code, n in reason_counts(rejected["reasons"]).most_common() if not reason(code).holds
    ]
    nearest = None
    for table in (held, rejected):
        if nearest is None and table.num_rows:
            ranked = pa.table({"id": table["clip_id"], "n": pc.list_value_length(table["reasons"])})
            nearest = ranked.sort_by([("n", "ascending"), ("id", "ascending")])["id"][0].as_py()
    return Standing(
        out,
        count(clips["verdict"]),
        reason_counts(held["reasons"]).most_common(),
        reasons_of_rejection,
        reason_counts(empty["reasons"]).most_common(),
        nearest,
        preset,
    )


@dataclass(frozen=True)
class CurateSummary:
    """What a run of `curate` did and what the catalog holds now."""

    catalog: str
    videos: dict[str, int]  # by verdict
    clips: dict[str, int]
    hours: dict[str, float]  # of clips, by verdict
    analysed_now: int
    seconds: float
    standing: Standing
    set_aside: list[str] = field(default_factory=list)
    report: str | None = None
    notes: list[str] = field(default_factory=list)  # one sentence each

    def __str__(self) -> str:
        return "\n".join([self.outcome(), *self.standing.next_steps()])

    def outcome(self) -> str:
        """What was done and found, without what to do next."""
        lines = [f"{self.catalog}: {sum(self.videos.values())} videos, {sum(self.clips.values())} clips "
                 f"({self.analysed_now} videos analysed now in {self.seconds:.0f} s)"]  # fmt: skip
        for verdict in VERDICTS:
            if verdict == "keep" or self.videos.get(verdict) or self.clips.get(verdict):
                lines.append(
                    f"  {verdict:<7} {self.videos.get(verdict, 0):>6} videos {self.clips.get(verdict, 0):>6} clips "
                    f"{60 * self.hours.get(verdict, 0.0):8.1f} min"
                )
        lines += self.standing.why()
        lines += [f"  set aside: {cause}" for cause in self.set_aside[:20]]
        lines += [f"  {note}" for note in self.notes]
        if self.report:
            lines.append(f"report: {self.report}")
        return "\n".join(lines)


def describing(config: schema.Config, record: RunRecord) -> Describe:
    """What completes the record and draws the report of decided tables.

    Args:
        config: what they were decided with.
        record: what else is kept of the run.
    """

    def describe(videos: pa.Table, clips: pa.Table) -> About:
        run = record.decided_with(config)
        return About(run, render(videos, clips, config.curation, run.facts()))

    return describe


def summarise(
    out: str,
    videos: pa.Table,
    clips: pa.Table,
    now: int,
    seconds: float,
    set_aside: list[str],
    report: str | None,
    preset: str | None = None,
) -> CurateSummary:
    """Counts for people. ``preset``: the one that the catalog was decided with."""
    length = pc.divide(pc.subtract(clips["end_s"], clips["start_s"]), 3600.0)
    hours = pa.table({"verdict": clips["verdict"], "h": length}).group_by("verdict").aggregate([("h", "sum")])
    return CurateSummary(
        out, count(videos["verdict"]), count(clips["verdict"]),
        dict(zip(hours["verdict"].to_pylist(), hours["h_sum"].to_pylist(), strict=True)),
        now, seconds, standing(out, videos, clips, preset), set_aside, report,
    )  # fmt: skip


def reason_counts(column: pa.ChunkedArray) -> Counter[str]:
    """How many rows each rule speaks against; of a reason ``code: sentence`` the code counts."""
    codes = pc.list_element(pc.split_pattern(pc.list_flatten(column), ":", max_splits=1), 0)
    return Counter({code["values"]: code["counts"] for code in pc.value_counts(codes).to_pylist()})


def count(column: pa.ChunkedArray) -> dict[str, int]:
    """How often each value occurs."""
    return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}
