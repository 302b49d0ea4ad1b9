"""Networks that rows have in common: trained once, and judged by each row with its own cache and n-grams."""

from pathlib import Path
from typing import Any

from torch import nn

from newllm_core.baselines.config import BaselineConfig
from newllm_core.baselines.judge import judge_network
from newllm_core.baselines.registry import build_network
from newllm_core.baselines.train import train_network
from newllm_core.config.schema import config_hash
from newllm_core.data import corpus_key
from newllm_core.experiment.folder_names import identity_of
from newllm_core.experiment.prepare import Prepared
from newllm_core.runs.files import load_tensors
from newllm_core.runs.folder import RunFolder
from newllm_core.runs.progress import Stopwatch
from newllm_core.studies.fitted import Fitted

NETWORK_WEIGHTS = "network.safetensors"
NETWORK_RECORD = "network.json"


def fit_network(prepared: Prepared, config: BaselineConfig, folder: Path) -> Fitted:
    """The network trained, or found in ``folder``, finished or half-way, and judged on the validation text.

    Its weights, epochs and seconds are kept there for all rows that differ in cache and n-grams alone; the figures are
    the same to the last bit. Of two processes that want the same network, the second waits.

    Raises NotFiniteError and ValueError from training, and RunError where a file was altered or is another's.
    """
    watch = Stopwatch()
    network, trained = _kept_network(prepared, config, folder)
    earlier = max(0.0, trained["cpu_seconds"] - watch.total().cpu)  # what this call took is counted by the caller
    train, validation = prepared.train_tokens, prepared.validation_tokens
    judged = judge_network(network, prepared.model, train, validation, config)
    counted = {"counted_ngrams": judged.counted_ngrams} if judged.counted_ngrams else {}
    return Fitted(judged.nats, trained["trainable_parameters"], {**trained, **counted}, earlier)


def _kept_network(prepared: Prepared, config: BaselineConfig, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A module with the kept weights, and `TrainedNetwork.record()`."""
    training = config.training_part()
    sections = {"data": prepared.data, "network": training, "run": prepared.run}
    place = folder / f"{config.network}-{corpus_key(prepared.data)}-{config_hash(*sections.values())}"
    weights, copy_to = place / NETWORK_WEIGHTS, prepared.run.copy_to
    run_folder = RunFolder(
        place / NETWORK_RECORD, place / "checkpoint", identity_of(sections), files=(weights,), copy_to=copy_to
    )
    with run_folder.held() as held:
        if held.record is None:
            found = train_network(
                prepared.model, prepared.train_tokens, prepared.selection_tokens, training, prepared.run.seed,
                held.checkpoints,
            )  # fmt: skip
            held.finish({"training": found.record()}, {NETWORK_WEIGHTS: found.network.state_dict()})
            return found.network, found.record()
        network = build_network(training).to(prepared.train_tokens.device)
        network.load_state_dict(load_tensors(weights))
        return network, held.record["training"]
