"""Cards that machines read: Croissant metadata (MLCommons, 1.0, with its responsible-AI fields) of
an exported dataset, and statistics of each of its shards."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from focusdpo.data_schemas.shards import IndexRow
from focusdpo.data_schemas.subjects import Origin
from focusdpo.store.versions import DatasetVersion

CROISSANT, STATISTICS = "croissant.json", "statistics.json"
PAPER = "https://arxiv.org/abs/2509.01181"
CONFORMS = ("http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0")
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""As the specification gives it."""
PICTURES = {"win": "the better picture", "lose": "the worse picture",
            "prior": "where the two differ, or where the subjects stand"}  # fmt: skip
TEXTS = {
    "pair_id": "name of the pair",
    "prompt": "what both pictures were painted from",
    "source": "disrupt: the loser is a repainted winner; rank: the worse of two samples",
    "mode": "how the loser was made",
    "reason": "why the pair was accepted",
    "scene_id": "pairs of one scene share it",
}
NUMBERS = {
    "margin": "mean fall of identity from winner to loser",
    "win_clip_t": "agreement of the winner with the prompt",
    "lose_clip_t": "agreement of the loser with the prompt",
}
"""Columns of the Parquet files that a record has; lists are left to `datasets`."""
FORMATS = {".parquet": "application/x-parquet", ".tar": "application/x-tar"}


def croissant(
    version: DatasetVersion,
    folder: Path,
    licences: Sequence[str],
    biases: Sequence[str],
    origins: Mapping[str, Origin],
) -> dict[str, Any]:
    """Metadata of a folder that holds `data/*.parquet` and `webdataset/*/*.tar`. `licences` of the
    subjects' pictures; `biases`: a sentence each; `origins`: where subjects come from."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in FORMATS]
    tables = [path for path in files if path.suffix == ".parquet"]
    names = Counter(path.name.split("-")[0] for path in tables)
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": f"focusdpo-pairs-{version.id}",
        "description": "Preference pairs for subject-driven generation: a better and a worse "
        "picture of the same scene, with references and masks of every subject in it.",
        "conformsTo": list(CONFORMS),
        "version": "1.0.0",
        "datePublished": str(version.manifest["created"]),
        "license": "; ".join(licences),
        "url": PAPER,
        "citeAs": f"FocusDPO preference pairs, version {version.id}. Method: {PAPER}",
        "keywords": ["preference optimisation", "subject-driven generation", "focusdpo"],
        "inLanguage": "en",
        **_responsible(version, biases, origins),
        "distribution": [_file(path, folder) for path in files],
        "recordSet": [
            _records(path, folder, stem if names[stem] == 1 else path.stem)
            for path in tables
            for stem in [path.name.split("-")[0]]
        ],
    }


def _responsible(
    version: DatasetVersion, biases: Sequence[str], origins: Mapping[str, Origin]
) -> dict[str, Any]:
    """What one should know before using it."""
    persons = [name for name, origin in origins.items() if origin.person]
    sources = sorted({origin.source for origin in origins.values() if origin.source})
    stages = version.manifest["stages"]
    tools = [
        f"{name}: {stage['versions']['model']}"
        for name, stage in stages.items()
        if stage.get("versions", {}).get("model")
    ]
    return {
        "rai:dataCollection": "Pictures of subjects were brought by their owners; all others were "
        "painted by a generator from them, and judged by models.",
        "rai:dataCollectionType": ["Synthetic data", "Manual human curation"],
        "rai:dataPreprocessingProtocol": [
            "Subjects are cut out on white; losers of source disrupt are winners in which a masked "
            "region was painted again without its reference."
        ],
        "rai:dataAnnotationProtocol": "Winner and loser are told apart by the likeness of each "
        "subject to its references and by agreement with the prompt; people may review pairs.",
        "rai:machineAnnotationTools": tools or ["not recorded"],
        "rai:dataUseCases": ["Preference training of personalised generators", "Validation"],
        "rai:dataLimitations": [
            "What the image encoder does not see, the pairs do not teach.",
            "A winner is better than its loser, and not without fault.",
        ],
        "rai:dataBiases": list(biases),
        "rai:dataCollectionRawData": "; ".join(sources) or "not told",
        "rai:personalSensitiveInformation": [
            f"{len(persons)} of the subjects are said to be persons; each has consented."
            if persons
            else "No subject is said to be a person."
        ],
        "rai:dataSocialImpact": "Personalised generation can imitate what belongs to somebody: "
        "painted pictures are marked, and subjects can be purged from every version.",
        "rai:dataReleaseMaintenancePlan": "Versions never change, but for a purge of subjects.",
    }


def _file(path: Path, folder: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": FORMATS[path.suffix],
        "sha256": _sha256(path),
    }


def _records(path: Path, folder: Path, name: str) -> dict[str, Any]:
    file = path.relative_to(folder).as_posix()

    def field(column: str, about: str, kind: str, **transform: Any) -> dict[str, Any]:
        source = {"fileObject": {"@id": file}, "extract": {"column": column}, **transform}
        return {
            "@type": "cr:Field",
            "@id": f"{name}/{column}",
            "name": f"{name}/{column}",
            "description": about,
            "dataType": kind,
            "source": source,
        }

    picture = {"transform": {"jsonPath": "bytes"}}
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"The pairs of {file}.",
        "field": [
            *(field(column, about, "sc:Text") for column, about in TEXTS.items()),
            *(field(column, about, "sc:Float") for column, about in NUMBERS.items()),
            *(
                field(column, about, "sc:ImageObject", **picture)
                for column, about in PICTURES.items()
            ),
        ],
    }


def shard_statistics(rows: Sequence[IndexRow], folder: Path) -> dict[str, Any]:
    """What lies in each shard of an export: counts, bytes, digest, and how its pairs score."""
    return {"shards": list(_shards(rows, folder))}


def _shards(rows: Sequence[IndexRow], folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted((folder / "webdataset").rglob("*.tar")):
        shard_rows = [row for row in rows if row.shard == path.name.partition("-")[2]]
        yield {
            "file": path.relative_to(folder).as_posix(),
            "pairs": len(shard_rows),
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
            "by_source": _counts(row.source for row in shard_rows),
            "by_mode": _counts(row.mode for row in shard_rows),
            "by_class": _counts(word for row in shard_rows for word in row.class_names),
            "subjects": len({name for row in shard_rows for name in row.subject_ids}),
            "margin": _spread([row.margin for row in shard_rows]),
            "win_identity": _spread([value for row in shard_rows for value in row.win_identity]),
            "lose_identity": _spread([value for row in shard_rows for value in row.lose_identity]),
            "clip_t_apart": _spread([abs(row.win_clip_t - row.lose_clip_t) for row in shard_rows]),
        }


def _counts(words: Iterator[str] | Any) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(statistics.fmean(values), 6),
        "low": round(min(values), 6),
        "high": round(max(values), 6),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def as_text(values: Mapping[str, Any]) -> str:
    """JSON as it is written."""
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
