"""A model's card, the README.md that the Hub shows: what it is, what made it, how well it predicts, who allows it."""

from collections.abc import Mapping
from typing import Any

import yaml

from newllm_core.config.hyperparameters import ModelConfig
from newllm_core.data.licences import Source, corpus_source, embedding_source

_USE = """```python
import newllm_core as nl  # of the New-LLM project: pip install -e . in a clone of it

model = nl.NewLLM.from_pretrained("{name}")
print(model.generate("Hi, how are you", num_tokens=40)[0])
```"""


def model_card(
    name: str, config: ModelConfig, embedding: Mapping[str, Any] | None, record: Mapping[str, Any] | None
) -> str:
    """Markdown behind a block of metadata that the Hub reads.

    Args:
        name: of the folder or repository.
        embedding: provenance of the embedding matrix; None where it is not known.
        record: of the run that made the model (`run.json`); None: a card without corpus and figures.
    """
    metadata = yaml.safe_dump(_metadata(name, record), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{metadata}---", f"# {name}", _what_it_is(config), _USE.format(name=name)]
    parts += ["## Where it comes from", _origin(embedding, record)]
    if record is not None and "phase2" in record:
        parts += ["## How well it predicts", _figures(record)]
    parts += ["## Limits", _LIMITS]
    return "\n\n".join(parts) + "\n"


_LIMITS = (
    "A research model, trained on little text: what it writes is not reliable, and can repeat what stands in its "
    "training text. Figures compare with others on the same validation conversations and the same tokens alone."
)


def _metadata(name: str, record: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "library_name": "newllm_core",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["new-llm", "recurrent", "frozen-embeddings"],
    }
    if record is None:
        return found
    source = corpus_source(record)
    if source.language:
        found["language"] = source.language
    if source.dataset:
        found["datasets"] = [source.dataset]
    if "phase2" in record:
        found["model-index"] = [{"name": name, "results": [_evaluation(record, source)]}]
    return found


def _evaluation(record: Mapping[str, Any], source: Source) -> dict[str, Any]:
    best, first_stop = record["phase2"]["best"], record["config"]["data"]["validation_range"]
    figures = {
        "perplexity": ("perplexity", best["validation_perplexity"]),
        "bits_per_byte": ("bits per byte", best["validation_bits_per_byte"]),
        "accuracy": ("accuracy of the most probable token", best["validation_accuracy"]),
    }
    return {
        "task": {"type": "text-generation", "name": "next token"},
        "dataset": {
            "type": source.dataset or record["corpus"],
            "name": f"{record['corpus']}, conversations {first_stop[0]}–{first_stop[1] - 1}",
            "split": "validation",
        },
        "metrics": [{"type": kind, "name": words, "value": value} for kind, (words, value) in figures.items()],
    }


def _what_it_is(config: ModelConfig) -> str:
    return (
        "A New-LLM language model: no attention; a context vector of "
        f"{config.context_dim} numbers is carried along the text by {config.num_layers} layer(s), trained before and "
        "without the layers that predict from it, between a frozen embedding matrix "
        f"({config.embed_dim} columns) and the same matrix as output head. Memory does not grow with the text."
    )


def _origin(embedding: Mapping[str, Any] | None, record: Mapping[str, Any] | None) -> str:
    rows = ["| | what | licence |", "|---|---|---|"]
    if record is not None:
        source = corpus_source(record)
        counts = f"{record['tokens']['train']:,} training tokens"
        rows.append(f"| corpus `{record['corpus']}` | {source.words}; {counts} | {source.licence} |")
    if embedding is not None:
        source = embedding_source(embedding["name"])
        digest = f"SHA-256 of the matrix {embedding['matrix_sha256'][:16]}…"
        rows.append(f"| embeddings `{embedding['name']}` | {source.words}; {digest} | {source.licence} |")
    rows.append("| weights and code | this repository, New-LLM | MIT |")
    return "\n".join(rows)


def _figures(record: Mapping[str, Any]) -> str:
    best = record["phase2"]["best"]
    config = record["config"]["phase2"]
    mixed = {"a continuous cache": config["cache_weight"], "counted n-grams": config.get("ngram_weight", 0)}
    rows = [
        "| figure | value | of |",
        "|---|---|---|",
        f"| validation perplexity | {best['validation_perplexity']:.2f} | {record['tokens']['validation']:,} tokens |",
        f"| bits per byte | {best['validation_bits_per_byte']:.4f} | the same text |",
        f"| accuracy | {100 * best['validation_accuracy']:.2f} % | the most probable token of the model alone |",
        f"| seed | {record['seed']} | one run |",
    ]
    sentence = " ".join(
        f"With {words} of weight {weight:g}." if weight else f"Without {words}." for words, weight in mixed.items()
    )
    made_by = f" Commit `{record['commit']}`." if record["commit"] else ""
    return "\n".join(rows) + f"\n\n{sentence}{made_by}"
