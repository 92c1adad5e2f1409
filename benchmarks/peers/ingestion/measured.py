"""Ingestion: the same documents by the same model into a local vector index; and what a few corrupt files do to it.

All get a directory of files, except Headrace, which is given them through Apache Kafka and reports each as indexed.
Chunks are of as many tokens for all, by the model's own tokenizer; where they end is each system's affair. The time
begins when the model is loaded and has made its first pass, and ends when all that is indexed can be found.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.peers.broker import kafka
from benchmarks.peers.environments import Unavailable, python_of, variables, versions_of
from benchmarks.peers.ingestion import corpus
from benchmarks.peers.measure import Program
from benchmarks.peers.section import Findings, Request
from benchmarks.report import Aim, hardware
from cli.follow import Follower
from cli.submit import upload_of
from connectors.embedder.sentence_transformer import packaged_model
from connectors.settings import Settings
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentIndexed

SYSTEMS = ("headrace", "llamaindex", "langchain", "pathway")
RATIO_AIM = 3.0  # on a CPU with AMX

_DOCUMENTS = 500
_QUICK_DOCUMENTS = 30
_CORRUPT_SHARE = 0.01
_KINDS = 5  # of corrupt files
_WARM_UP = 3
_START_S = 300.0
_PATIENCE_S = 1_200.0
_MB = 1e6


@dataclass(frozen=True)
class Run:
    """What one run of a system said, and cost."""

    took_s: float
    first_s: float | None  # until the first document could be found
    chunks: int
    documents: frozenset[str]  # names of the files in the index
    stopped: str  # why it ended before its end; empty if it did not
    reported: frozenset[str]  # names of files that it says it could not read
    start_s: float  # from the process's start until the model was ready
    cpu_s: float
    peak_rss_mb: int


@dataclass(frozen=True)
class _Files:
    """The documents, the corrupt ones among them, and some others to warm up with."""

    directory: Path
    good: Sequence[Path]
    corrupt: Sequence[Path]
    warm_up: Sequence[Path]


def measure(request: Request) -> Findings:
    """Rounds of each system that is asked for, in turns, with good files; then one with corrupt files among them."""
    count = _QUICK_DOCUMENTS if request.quick else _DOCUMENTS
    good = _files(request.directory / "good", count, 0)
    mixed = _files(request.directory / "mixed", count, max(int(count * _CORRUPT_SHARE), _KINDS))
    figures: dict[str, object] = {
        "rounds": request.rounds,
        "documents": count,
        "corrupt": len(mixed.corrupt),
    }
    runs: dict[str, list[Run]] = {system: [] for system in SYSTEMS if request.wants(system)}
    for number in range(request.rounds):
        for system in list(runs):
            try:
                run = _run(system, good, _fresh(request.directory, f"{system}-{number}"))
            except Unavailable as error:
                figures[f"{system}.unavailable"] = str(error)
                request.say(f"{system}: unavailable: {error}")
                del runs[system]
                continue
            runs[system].append(run)
            request.say(f"{system}: {count / run.took_s:.2f} documents/s, {run.chunks} chunks in {run.took_s:.1f} s")
            if run.stopped or len(run.documents) != count:
                request.say(f"{system}: {len(run.documents)} of {count} good documents are in the index; {run.stopped}")
    for system, some in runs.items():
        figures |= {f"{system}.{name}": value for name, value in _speed(some, count).items()}
        figures[f"{system}.versions"] = versions_of(system)
        try:
            behaviour = _behaviour(_run(system, mixed, _fresh(request.directory, f"{system}-mixed")), mixed)
        except Unavailable as error:  # a parser's error has ended its process: nobody knows what is in the index
            behaviour = {"stopped": str(error), "lost": None, "reported": 0, "indexed": None}
        request.say(f"{system}: with corrupt files: {behaviour}")
        figures |= {f"{system}.corrupt_files.{name}": value for name, value in behaviour.items()}
    return Findings(figures, _compared(figures, runs) if "headrace" in runs else [])


def _files(directory: Path, count: int, corrupt: int) -> _Files:
    every = corpus.write(directory, count)
    aside = directory.with_name(f"{directory.name}-warm-up")
    return _Files(directory, every, corpus.write_corrupt(directory, corrupt), corpus.write_warm_up(aside, _WARM_UP))


def _fresh(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made


def _speed(runs: Sequence[Run], count: int) -> dict[str, object]:
    took_s = median(run.took_s for run in runs)
    first = [run.first_s for run in runs if run.first_s is not None]
    return {
        "documents_s": round(count / took_s, 2),
        "chunks_s": round(median(run.chunks / run.took_s for run in runs), 1),
        "chunks": runs[-1].chunks,
        "first_searchable_s": round(median(first), 2) if first else None,
        "start_s": round(median(run.start_s for run in runs), 1),
        "cpu_s": round(median(run.cpu_s for run in runs), 1),
        "peak_rss_mb": max(run.peak_rss_mb for run in runs),
    }


def _behaviour(run: Run, files: _Files) -> dict[str, object]:
    corrupt = {path.name for path in files.corrupt}
    return {
        "stopped": run.stopped,
        "lost": len({path.name for path in files.good} - run.documents),  # good documents that are not in the index
        "reported": len(corrupt & run.reported),
        "indexed": len(corrupt & run.documents),  # as if they were text
    }


def _compared(figures: dict[str, object], runs: dict[str, list[Run]]) -> list[Aim]:
    """Ratios round by round, since a machine's speed changes; and the aims."""
    ours = runs["headrace"]
    ratios = {
        system: round(median(peer.took_s / own.took_s for peer, own in zip(theirs, ours, strict=True)), 2)
        for system, theirs in runs.items()
        if system != "headrace"
    }
    figures |= {f"headrace.ratio_to_{system}": ratio for system, ratio in ratios.items()}
    unharmed = all(not figures[f"headrace.corrupt_files.{name}"] for name in ("stopped", "lost", "indexed"))
    aims = [Aim("headrace.corrupt_files", "nothing stopped, lost or indexed of a bad file", met=unharmed)]
    if ratios:
        figures["headrace.ratio_to_fastest"] = fastest = min(ratios.values())
        if hardware()["amx"]:
            aims.append(Aim("headrace.ratio_to_fastest", f"{RATIO_AIM} at least", met=fastest >= RATIO_AIM))
    return aims


def _run(system: str, files: _Files, directory: Path) -> Run:
    if system == "headrace":
        return _run_headrace(files, directory)
    index = _fresh(directory, "index")
    policy = Settings()
    command = [str(python_of(system)), "-m", f"benchmarks.peers.ingestion.{system}_flow", str(files.directory)]
    command += [str(index), str(packaged_model()), str(policy.chunk_tokens), str(policy.chunk_overlap_tokens)]
    log = directory / "log"
    with Program(command, variables(HF_HUB_OFFLINE="1"), log=log) as program:
        program.line(_START_S)
        start_s, idle_cpu_s = program.wall_s, program.cpu_s
        said = program.line(_PATIENCE_S)
        cpu_s = program.cpu_s - idle_cpu_s
    words = log.read_text(errors="replace")
    first_s = said["first_s"]
    return Run(
        took_s=float(str(said["took_s"])),
        first_s=None if first_s is None else float(str(first_s)),
        chunks=int(str(said["chunks"])),
        documents=frozenset(json.loads(json.dumps(said["documents"]))),
        stopped=str(said["stopped"]),
        reported=frozenset(
            path.name for path in files.corrupt if path.name in words or path.name in str(said["stopped"])
        ),
        start_s=start_s,
        cpu_s=cpu_s,
        peak_rss_mb=round(program.peak_rss_bytes / _MB),
    )


def _run_headrace(files: _Files, directory: Path) -> Run:
    with kafka(directory) as bootstrap:
        given = variables(
            HEADRACE_KAFKA_BOOTSTRAP=bootstrap,
            HEADRACE_DATA_DIR=str(directory / "data"),
            HEADRACE_FILE_ROOTS=json.dumps([str(files.directory), str(files.warm_up[0].parent)]),
        )
        command = [sys.executable, "-m", "cli.main", "run", "ingest"]
        with Program(command, given, log=directory / "log") as program, Follower(bootstrap, {}) as follower:

            def check() -> None:
                if not program.running:
                    raise Unavailable(f"ended with {program.process.returncode}: {program.said()}")

            def ends(paths: Sequence[Path], collection: str) -> Iterator[object]:
                uploads = (upload_of(path, tenant="default", collection=collection) for path in paths)
                return follower.follow(uploads, check=check)

            for _ in ends(files.warm_up, "warm-up"):
                pass
            start_s, idle_cpu_s = program.wall_s, program.cpu_s
            began = time.monotonic()
            first_s: float | None = None
            indexed: dict[str, int] = {}
            reported: set[str] = set()
            for ended in ends([*files.good, *files.corrupt], "measured"):
                if isinstance(ended, DocumentIndexed):
                    first_s = first_s or time.monotonic() - began
                    indexed[_name(ended.uri)] = ended.chunks
                elif isinstance(ended, DeadLetter):
                    reported |= {path.name for path in files.corrupt if path.name in ended.message}
            took_s = time.monotonic() - began
            cpu_s = program.cpu_s - idle_cpu_s
    return Run(
        took_s=took_s,
        first_s=first_s,
        chunks=sum(indexed.values()),
        documents=frozenset(indexed),
        stopped="",
        reported=frozenset(reported),
        start_s=start_s,
        cpu_s=cpu_s,
        peak_rss_mb=round(program.peak_rss_bytes / _MB),
    )


def _name(uri: str | None) -> str:
    return (uri or "").rsplit("/", 1)[-1]
