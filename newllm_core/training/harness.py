"""The model for EleutherAI's lm-evaluation-harness, and tasks that need no network.

    from newllm_core.training.harness import HarnessModel, evaluate, minimal_pairs, validation_text
    print(evaluate(NewLLM.from_pretrained(FOLDER), [minimal_pairs("mine", Path("pairs.jsonl"))]))

An extra, since it needs another python-dateutil than the project is tested with: `pip install lm_eval==0.4.13`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from newllm_core.config.hyperparameters import GenerationConfig
from newllm_core.config.schema import from_mapping
from newllm_core.data.errors import DataError
from newllm_core.data.tokens import TokenStream
from newllm_core.metrics.prediction import perplexity
from newllm_core.model import NewLLM
from newllm_core.runs.files import RunError, sha256_tensors
from newllm_core.training.token_scores import TextScores, score_texts

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, CacheHook
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError("the evaluation harness is not installed: pip install lm_eval==0.4.13") from error

PREFIX = "<|endoftext|>"
_GENERATED = 256  # tokens, where a task does not say; the harness's own default
_MODEL_KEY = "newllm_model"  # in a cache of results: which model they are of


class HarnessModel(LM):
    """Scores are exact: one pass from the zero context, of any length, with the model's continuous cache.

    Args:
        model: with a tokenizer.
        prefix: what stands before a text without context, since the first token of a stream is nobody's target; one
            token, which the harness would call "end of text".

    Raises RunError for a model without a tokenizer, ValueError for a prefix that is not one token of it.
    """

    def __init__(self, model: NewLLM, prefix: str = PREFIX) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise RunError("the harness needs a model with a tokenizer; set model.tokenizer")
        self.model, self.tokenizer = model, model.tokenizer
        ids = self._known_id(prefix)
        if len(ids) != 1:
            raise ValueError(f"prefix: expected one token, given {prefix!r}, which is {len(ids)}")
        self._prefix = ids

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        """Of its content: requests that the harness keeps are those of this tokenizer."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:16]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each continuation after its context: the sum of its tokens' log probabilities, and whether it is greedy's.

        A context of nothing, or of blanks alone (these go to the continuation, as everywhere), is the prefix.
        """
        pairs = [self._encoded_pair(*request.args) for request in requests]
        texts = [torch.tensor([*context, *continuation]) for context, continuation in pairs]
        firsts = [len(context) for context, _ in pairs]

        def figures(number: int, scores: TextScores) -> tuple[float, bool]:
            first = firsts[number]
            return -float(scores.nats[first - 1 :].sum()), scores.greedy_from(first)

        return self._each(requests, texts, figures, "loglikelihood")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each text after the prefix. The model has no window: every token is predicted from all before it."""
        texts = [torch.tensor([*self._prefix, *self._encode(request.args[0])]) for request in requests]
        return self._each(requests, texts, lambda number, scores: -float(scores.nats.sum()), "loglikelihood_rolling")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The most probable text, or with `do_sample` a drawn one, up to one of the texts in `until`."""
        written = []
        for request in requests:
            context, options = request.args
            values = dict(options)
            stop = values.pop("until", None) or []
            config = _generation_values(values)
            prompt = context if self._encode(context) else PREFIX
            (text,) = self.model.generate(prompt, stop=[stop] if isinstance(stop, str) else stop, **config)
            self.cache_hook.add_partial("generate_until", request.args, text)
            written.append(text)
        return written

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuses results of another model: the harness knows them by the request alone. Raises RunError."""
        kept = cache_hook.dbdict
        if kept is not None:
            mine = sha256_tensors(*(value for _, value in sorted(self.model.state_dict().items())))
            if (ngrams := self.model.ngrams) is not None:
                mine += f" {ngrams.weight} {sha256_tensors(*ngrams.counts.tensors().values())}"
            mine += f" {self.model.continuous_cache} {self.tokenizer_name}"
            if len(kept) and kept.get(_MODEL_KEY) != mine:
                raise RunError("use_cache: the file holds results of another model; give each model a file of its own")
            kept[_MODEL_KEY] = mine
        super().set_cache_hook(cache_hook)

    def _each(
        self, requests: list[Instance], texts: list[Tensor], figures: Callable[[int, TextScores], Any], kind: str
    ) -> list[Any]:
        """``figures`` of each text, in the order of the requests."""
        found: list[Any] = [None] * len(requests)
        for number, scores in score_texts(self.model, texts):
            found[number] = figures(number, scores)
            self.cache_hook.add_partial(kind, requests[number].args, found[number])
        return found

    def _encoded_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, cut where the context's own tokens end. Raises ValueError for an empty continuation."""
        blanks = context[len(context.rstrip()) :]
        context, continuation = context.rstrip(), blanks + continuation
        before = self._encode(context)
        if not before:
            before, after = self._prefix, self._encode(continuation)
        else:
            after = self._encode(context + continuation)[len(before) :]
        if not after:
            raise ValueError(f"expected a continuation of at least one token, given {continuation!r} after {context!r}")
        return before, after

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _known_id(self, token: str) -> list[int]:
        """A special token is not always one that the tokenizer finds in a text."""
        number = self.tokenizer.token_to_id(token)
        return self._encode(token) if number is None else [number]


def _generation_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The harness's words for ``GenerationConfig``'s. Raises ConfigError for one that is not known."""
    values = dict(options)
    sampled = values.pop("do_sample", values.get("temperature", 0) > 0)
    values["num_tokens"] = values.pop("max_gen_toks", _GENERATED)
    if not sampled:
        values["temperature"] = 0
    from_mapping(GenerationConfig, values)
    return values


def evaluate(model: NewLLM, tasks: Sequence[Mapping[str, Any] | str], **options: Any) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` reports for each task, by name.

    Args:
        tasks: of this file, or names of the harness's own, which need a network.
        options: handed to it.
    """
    chosen = [task if isinstance(task, str) else dict(task) for task in tasks]
    # Its own tasks are some ten thousand files: they are looked through only where one is asked for.
    manager = TaskManager(include_defaults=any(isinstance(task, str) for task in chosen))
    asked = {"bootstrap_iters": 0, "task_manager": manager, **options}
    found = simple_evaluate(HarnessModel(model), tasks=chosen, **asked)
    results: dict[str, Any] = found["results"]
    return results


def validation_text(stream: TokenStream) -> dict[str, Any]:
    """A task: the validation conversations as one text, every token but its first. Its figures are a run's own:
    `perplexity` a token, and `bits_per_byte`.

    Raises DataError where the tokens are not those of their text.
    """
    tokenizer, ids = stream.vocabulary.tokenizer, stream.tokens.tolist()
    text, first = tokenizer.decode(ids), tokenizer.decode(ids[:1])
    if tokenizer.encode(text, add_special_tokens=False).ids != ids or first != first.rstrip():
        raise DataError("validation_text: expected tokens that their text gives again, the first one without blanks")
    rest = text[len(first) :]
    num_targets, num_bytes = len(ids) - 1, len(rest.encode())

    def figures(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
        return {"perplexity": (results[0][0], num_targets), "bits_per_byte": (results[0][0], num_bytes)}

    return {
        "task": "validation_text",
        "custom_dataset": lambda **_: {"validation": _data_set([{"first": first, "rest": rest}])},
        "validation_split": "validation",
        "output_type": "loglikelihood",
        "doc_to_text": "{{first}}",
        "doc_to_target": "{{rest}}",
        "target_delimiter": "",
        "process_results": figures,
        "metric_list": [
            {"metric": "perplexity", "aggregation": _weighted_perplexity, "higher_is_better": False},
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        ],
    }


def minimal_pairs(name: str, path: Path) -> dict[str, Any]:
    """A task: which of two sentences is more probable, from a local file in BLiMP's format.

    A JSON object a line, with `sentence_good` and `sentence_bad`. Raises DataError that names the line.
    """
    return {
        "task": name,
        "custom_dataset": lambda **_: {"train": _data_set(_pairs(path))},
        "validation_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _pairs(path: Path) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append({key: str(row[key]) for key in ("sentence_good", "sentence_bad")})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: expected an object with sentence_good and sentence_bad") from error
    if not rows:
        raise DataError(f"{path}: expected a pair a line, found none")
    return rows


def _data_set(rows: list[dict[str, str]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _weighted_perplexity(items: Sequence[tuple[float, int]]) -> float:
    """Of pairs of a log likelihood and its number of tokens."""
    return perplexity(-sum(one for one, _ in items) / sum(count for _, count in items))
