"""Texts by role: training and held-out texts, probing data sets, contrastive stories."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from husai_lib.errors import DataError
from husai_lib.files import REPOSITORY
from husai_lib.params.catalogue import probe_data_folder
from husai_lib.params.inputs import TextParams
from husai_lib.randomness import numpy_generator

OFFLINE_STORIES = REPOSITORY / "husai_lib" / "data" / "contrastive_stories.jsonl"


@dataclass(frozen=True)
class ProbingSet:
    """A binary classification task over prompts."""

    name: str
    prompts: tuple[str, ...]
    labels: np.ndarray
    """0 or 1 for each prompt, the positions of their names in `classes`, which are in alphabetical order."""
    classes: tuple[str, str]


@dataclass(frozen=True)
class Text:
    """A text and the name of its data set."""

    data_set: str
    text: str


def _frame(name: str, shifted: bool = False) -> pd.DataFrame:
    """The rows of a data set of sae-probes; DataError if a prompt is empty."""
    folder, suffix = ("OOD data", "_OOD") if shifted else ("cleaned_data", "")
    # a blank prompt is an error here and "NA" is a word; by default pandas would turn both into "nan"
    path = probe_data_folder() / folder / f"{name}{suffix}.csv.zst"
    frame = pd.read_csv(path, dtype={"prompt": str}, keep_default_na=False)
    if not all(prompt.strip() for prompt in frame["prompt"]):
        raise DataError(f"data set {name!r} holds an empty prompt; choose another data set")
    return frame


def prompts(name: str) -> tuple[str, ...]:
    """The texts of any data set of sae-probes, whatever its target."""
    return tuple(_frame(name)["prompt"])


@cache
def probing_set(name: str, shifted: bool = False, max_rows: int | None = None) -> ProbingSet:
    """A data set of sae-probes, or its out-of-distribution counterpart.

    With `max_rows`, the first `max_rows // 2` rows of each class: both are equally frequent. Raises DataError for an
    empty prompt, not exactly two classes, or a shifted set with other classes.
    """
    frame = _frame(name, shifted)
    if max_rows is not None:
        frame = frame.groupby("target", sort=False).head(max_rows // 2)
    classes, labels = np.unique(frame["target"].to_numpy(), return_inverse=True)
    if len(classes) != 2:
        raise DataError(
            f"data set {name!r} has {len(classes)} class(es); a probe needs two, so choose another data set"
        )
    data = ProbingSet(name, tuple(frame["prompt"]), labels, (str(classes[0]), str(classes[1])))
    if shifted and data.classes != (own := probing_set(name).classes):
        raise DataError(
            f"the shifted set of {name!r} has the classes {data.classes} but the task {own}; choose another task"
        )
    return data


def distinct_rows(data: ProbingSet, apart_from: Collection[str] = ()) -> np.ndarray:
    """Positions of the prompts that remain without duplicates, ascending, as many of each class.

    Every prompt counts once, where it occurs first. Prompts with both labels and those in `apart_from` are left out.
    Of the larger class, as many as the smaller one has are drawn at random.
    """
    first = {prompt: i for i, prompt in reversed([*enumerate(data.prompts)])}
    labelled = Counter(prompt for prompt, _ in {*zip(data.prompts, data.labels.tolist(), strict=True)})
    kept = np.array(sorted(i for p, i in first.items() if labelled[p] == 1 and p not in apart_from), dtype=int)
    of_class = [kept[data.labels[kept] == label] for label in (0, 1)]
    generator, count = numpy_generator(0, "balance classes"), min(map(len, of_class))
    return np.sort(np.concatenate([generator.permutation(own)[:count] for own in of_class]))


def drawn_texts(names: list[str], seed: int) -> list[Text]:
    """All distinct texts of the data sets in one random order, so that any prefix has them in proportion."""
    pooled = {prompt: Text(name, prompt) for name in names for prompt in prompts(name)}
    texts = list(pooled.values())
    order = numpy_generator(seed, "draw texts").permutation(len(texts))
    return [texts[i] for i in order]


def check_disjoint(params: TextParams) -> int:
    """The number of training texts; DataError if a training data set and one of another role share a text."""
    owner = {prompt: name for name in params.training for prompt in prompts(name)}
    evaluation = [(name, prompts(name)) for name in [*params.held_out, *params.probing, *params.ood]]
    shifted = [(name, probing_set(name, shifted=True).prompts) for name in params.ood]
    for name, texts in evaluation + shifted:
        for prompt in texts:
            if prompt in owner:
                raise DataError(
                    f"texts.training {owner[prompt]!r} shares a text with {name!r} ({prompt[:40]!r}...); "
                    "SAEs may not be measured on texts they were trained on, so choose another data set"
                )
    return len(owner)


def story_pairs(source: str, max_rows: int) -> list[tuple[Text, Text]]:
    """The first `max_rows` pairs of a set of contrastive stories (`texts.stories` in the parameters).

    A pair is about one subject, which stands for its data set. Raises DataError if the source cannot be read, a row
    lacks a column, or a story is empty.
    """
    try:
        rows = list(_story_rows(source))[:max_rows]
        columns = [[str(row[column]) for column in ("subject", "story1", "story2")] for row in rows]
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        remedy = "name 'offline', or a hub data set or .jsonl file with the columns subject, story1, story2"
        raise DataError(f"stories {source!r} cannot be read ({error}); {remedy}") from error
    if not columns or not all(first.strip() and second.strip() for _, first, second in columns):
        raise DataError(f"stories {source!r} have no pair or an empty story; give each row two texts")
    return [(Text(subject, first), Text(subject, second)) for subject, first, second in columns]


def further_pairs(source: str, count: int) -> list[tuple[Text, Text]]:
    """As many pairs again after the first `count`, or what is left; DataError where nothing is."""
    pairs = story_pairs(source, 2 * count)[count:]
    if not pairs:
        remedy = f"lower contrastive.max_rows below {count}, or name a larger set"
        raise DataError(f"stories {source!r} have no more than {count} pairs, so none is left for validation; {remedy}")
    return pairs


def texts_of_pairs(pairs: Sequence[tuple[Text, Text]]) -> list[Text]:
    """Both stories of each pair."""
    return [text for pair in pairs for text in pair]


def _story_rows(source: str) -> Iterable[dict[str, str]]:
    if source == "offline" or source.endswith(".jsonl"):
        path = OFFLINE_STORIES if source == "offline" else REPOSITORY / Path(source).expanduser()
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    import datasets  # noqa: PLC0415 - takes seconds to import, and the offline stories do without it

    rows: Iterable[dict[str, str]] = datasets.load_dataset(source, split="train")
    return rows
