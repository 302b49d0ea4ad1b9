#!/usr/bin/env bash
# lm_eval 0.4.13: a context of blanks ends the evaluation in an AssertionError without words.
#
# `TemplateLM.loglikelihood` gives an empty context the prefix token, as its docstring says. Any other context has its
# last blanks moved to the continuation; of one that is blanks alone nothing is left, and nothing takes its place: the
# model is asked to score a text after no token at all. A task whose `doc_to_text` gives " " or "\n" for one document
# (an empty field behind a template's blank) so stops a run of hours at that document, and names neither it nor the
# reason. With an empty text in the same place it is scored.
#
# Seen with lm_eval 0.4.13, transformers 5.23.0 and torch 2.13.0 on Python 3.11 (November 2026):
#     ''   then '  yes': -38.524
#     '  ' then 'yes': AssertionError('')
# Expected: the same figure twice, since the blanks are scored with the continuation either way. Way around: an adapter
# of one's own that puts the prefix where no token of the context is left; or a task whose contexts are stripped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    lm_eval==0.4.13 transformers==5.23.0 torch==2.13.0 accelerate
export HF_HUB_OFFLINE=1
cd "$folder"
venv/bin/python - <<'PYTHON'
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab={**letters, "<|endoftext|>": 256}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
torch.manual_seed(0)
shape = GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
model = HFLM(
    pretrained=GPT2LMHeadModel(shape).eval(), batch_size=1, device="cpu",
    tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", model_max_length=64),
)


def asked(context: str, continuation: str) -> str:
    request = [Instance("loglikelihood", {}, (context, continuation), 0)]
    try:
        found = f"{model.loglikelihood(request, disable_tqdm=True)[0][0]:.3f}"
    except AssertionError as error:
        found = f"AssertionError({str(error)!r})"
    print(f"{context!r:4} then {continuation!r}: {found}")
    return found


assert asked("", "  yes").startswith("-")
assert asked("  ", "yes") == "AssertionError('')", "changed: a context of blanks is scored"
print("as found: a context of blanks ends the evaluation")
PYTHON
