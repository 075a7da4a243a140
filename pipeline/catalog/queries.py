"""What can be asked of a catalog without decoding anything; deciding it anew is in :mod:`pipeline.catalog.redecide`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow.compute as pc

from configs import folders
from configs.errors import EchoForgeError
from configs.runtime.shown import one_line
from curation.clip import Clip
from curation.config import CurationConfig
from curation.decision.decide import RuleResult
from curation.decision.decide import explain as explain_row
from curation.report.page import render
from curation.schema import CLIPS, FPS, VIDEOS
from pipeline import storage
from pipeline.catalog import generation
from pipeline.catalog import relocate as relocation
from pipeline.catalog.generation import REPORT_FILE
from pipeline.catalog.redecide import configuration, redecide
from pipeline.catalog.reuse import latest
from pipeline.catalog.summary import STANDING_COLUMNS, Standing, count, standing
from pipeline.catalog.tables import LIGHT, find_clip, read, read_whole, some
from pipeline.catalog.verify import verify
from pipeline.engine import lease, seal
from pipeline.engine.ledger import Ledger

__all__ = ["Explanation", "Status", "configuration", "explain", "redecide", "relocate", "report", "status", "verify"]


@dataclass(frozen=True)
class Status:
    """How far a catalog is."""

    catalog: str
    videos: dict[str, int]
    clips: dict[str, int]
    errors: list[tuple[str, str]]  # file, sentence
    quarantined: list[tuple[str, str]]  # file, cause
    progress: dict[str, int] | None  # videos: `done` of `total`
    standing: Standing | None = None  # None: there are no tables yet
    note: str = ""  # what else is to be said

    def __str__(self) -> str:
        count = ", ".join(f"{n} {v}" for v, n in sorted(self.videos.items()))
        lines = [f"{self.catalog}: {sum(self.videos.values())} videos" + (f" ({count})" if count else " in the tables")]
        lines += [self.standing.counts(), *self.standing.why()] if self.standing else ["clips: none"]
        if self.progress:
            lines.append(f"last run: {self.progress['done']} of {self.progress['total']} videos done")
        if self.note:
            lines.append(self.note)
        for kind, found in (("error", self.errors), ("quarantined", self.quarantined)):
            lines += [f"{kind}: {one_line(uri)}: {one_line(sentence)}" for uri, sentence in found[:50]]
            if len(found) > 50:
                lines.append(f"… and {len(found) - 50} more")
        if self.quarantined:
            lines.append("`curate … --retry-failed` tries the quarantined files again.")
        if self.standing:
            lines += self.standing.next_steps(files_shown=True)
        return "\n".join(lines)


@dataclass(frozen=True)
class Explanation:
    """Every rule for one clip."""

    clip: Clip
    results: list[RuleResult]

    def __str__(self) -> str:
        clip, verdict = self.clip, self.clip.decision.verdict if self.clip.decision else None
        start, end = clip.start_frame / FPS, clip.end_frame / FPS
        lines = [f"clip {clip.clip_id}: {clip.source_uri}, {start:.2f}-{end:.2f} s: {verdict}", *_faces(clip)]
        for r in self.results:
            score = "not measured" if r.value is None else (f"{r.value:.3g}" if isinstance(r.value, float) else r.value)
            limit = "" if r.limit is None else (f"{r.limit:g}" if isinstance(r.limit, (int, float)) else r.limit)
            lines.append(
                f"  {'ok  ' if r.passed else r.outcome:<6} {r.code:<14} {score!s:>14} {r.op:>6} {limit:<8} {r.sentence}"
            )
        return "\n".join(lines)


def _faces(clip: Clip) -> list[str]:
    """Several faces: which of them speaks, and by what that was decided."""
    if len(clip.tracks) < 2:
        return []
    why = {"sync": "its lips fit the sound best", "size": "it is the largest; nothing scored the lips"}
    chosen = why.get(clip.active_by or "", "?")
    lines = [f"  {len(clip.tracks)} faces; number {clip.active_track} is taken for the speaker: {chosen}"]
    for t in clip.tracks:
        score = "not scored" if t.conf is None else f"confidence {t.conf:.2f} at {t.av_offset:+d} frames"
        lines.append(f"    {t.track_id}: {t.size_px:.0f} px, in {t.frac_present:.0%} of the clip, {score}")
    return lines


def status(catalog_dir: str) -> Status:
    """Counts by verdict, the files that could not be used or were given up with their sentences, and the last run.

    Of a first run that has not ended there are no tables yet: what the ledger says is shown.

    Raises:
        EchoForgeError: nothing is there, or the tables are half-written.
    """
    root = storage.join(catalog_dir, "ledger", "curate")
    parameters = latest(root)
    failures = Ledger(root, {"videos": VIDEOS, "clips": CLIPS}, parameters).quarantined() if parameters else {}
    progress, note = _progress(catalog_dir)
    aside = {failure.key: failure.cause for failure in failures.values()}
    if progress and not some(catalog_dir, "clips"):
        return Status(catalog_dir, {}, {}, [], sorted(aside.items()), progress)
    columns = ["source_uri", "verdict", "reasons", "error_stage", "error"]
    videos, clips, run = read_whole(catalog_dir, columns, STANDING_COLUMNS)
    broken = videos.filter(pc.equal(videos["verdict"], "error")).to_pylist()
    in_tables = {row["source_uri"]: row["error"] for row in broken if row["error_stage"] == "quarantine"}
    known = set(videos["source_uri"].to_pylist())
    aside = in_tables | {key: cause for key, cause in aside.items() if key not in known}
    errors = [(row["source_uri"], row["error"]) for row in broken if row["error_stage"] != "quarantine"]
    return Status(
        catalog_dir, count(videos["verdict"]), count(clips["verdict"]), errors, sorted(aside.items()), progress,
        standing(catalog_dir, videos, clips, run.preset), note,
    )  # fmt: skip


def _progress(catalog_dir: str) -> tuple[dict[str, int] | None, str]:
    """What ``status.json`` says of the last run, and a sentence where it is damaged."""
    url = storage.join(catalog_dir, "status.json")
    remedy = "the next `curate` writes it again"
    try:
        found = seal.read_json(url, remedy)
        return {key: int(found[key]) for key in ("done", "total")} if found is not None else None, ""
    except EchoForgeError as error:
        return None, str(error)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None, f"'{url}' is damaged (it does not say how many videos are done); {remedy}."


def explain(catalog_dir: str, clip: str, cfg: CurationConfig) -> Explanation:
    """Every score of a clip against its threshold; the clip by its id or the beginning of it.

    Raises:
        EchoForgeError: no such clip, or several.
    """
    known = read(catalog_dir, "clips", CLIPS, ["clip_id"])["clip_id"]
    ids = sorted(set(known.filter(pc.starts_with(known, clip)).to_pylist()))
    if len(ids) != 1:
        hint = f"'{clip}' begins {len(ids)} ids" if ids else f"no clip's id begins with '{clip}'"
        raise EchoForgeError(f"{hint} in {catalog_dir}; see the clip_id column of clips/*.parquet.")
    found = find_clip(catalog_dir, ids[0])
    if found is None:
        raise EchoForgeError(f"clip '{ids[0]}' went away while '{catalog_dir}' was read; run again.")
    (row,) = found.to_pylist()
    return Explanation(Clip.from_row(row), explain_row(found, cfg))


def report(catalog_dir: str, out: str | None, cfg: CurationConfig) -> str:
    """Write the report of a catalog's tables as they are, with the thresholds of ``cfg`` drawn in; returns where.

    With the one in the catalog, ``run.json`` is written again, too.

    Args:
        out: the page; None: ``report.html`` in the catalog.

    Raises:
        EchoForgeError: no catalog, its tables are half-written, or another process changes it.
    """
    if out is not None:
        folders.check_out_file(out, (".html",))
        videos, clips, run = read_whole(catalog_dir, None, LIGHT)
        storage.write_bytes(out, render(videos, clips, cfg, run.facts()).encode())
        return out
    with lease.locked(catalog_dir, "catalog", "catalog report", make=False):
        return _report(catalog_dir, cfg)


def _report(catalog_dir: str, cfg: CurationConfig) -> str:
    """:func:`report` into the catalog, which is locked: ``tables.json`` names the report."""
    videos, clips, run = read_whole(catalog_dir, None, LIGHT)
    page = render(videos, clips, cfg, run.facts())
    target, now = storage.join(catalog_dir, REPORT_FILE), generation.current(catalog_dir)
    if now is None:
        storage.write_bytes(target, page.encode())
    else:
        generation.with_report(catalog_dir, now, page)
    return target


def relocate(catalog_dir: str, old: str, new: str) -> relocation.Relocation:
    """`pipeline.catalog.relocate.relocate`, and the report with the new names; a note says where it could not be written."""
    done = relocation.relocate(catalog_dir, old, new)
    try:
        config = configuration(catalog_dir, [])
        if config is not None and some(catalog_dir, "clips"):
            report(catalog_dir, None, config.curation)
    except EchoForgeError as error:
        again = f"`catalog report {catalog_dir} --preset NAME` writes it again."
        note = f"report.html keeps the old names: {error} {again}"
        return replace(done, note="\n".join(filter(None, [done.note, note])))
    return done
