#!/usr/bin/env bash
# tokenizers 0.23.3: one byte that is no character erases the characters beside it, when the vocabulary has byte fallback.
#
# Vocabularies of Llama's kind write what they do not know byte by byte (`<0x41>`). Decoding, `ByteFallback` joins a whole
# run of such tokens and, where that run is not valid UTF-8 as a whole, replaces *every* byte of it by U+FFFD: the text
# of tokens that were fine changes when a later token is not. Whoever writes a text while it is generated has then said
# something that the decoded text does not contain; and a model that draws one wrong byte in a Japanese or emoji
# sentence loses the sentence. SentencePiece, whose format this is, replaces the wrong byte alone.
#
# Seen with tokenizers 0.23.3 and sentencepiece 0.2.1 on Python 3.11 (November 2026):
#     tokenizers:    <0x41> is 'A', <0x41> <0x80> is '\ufffd\ufffd'
#     sentencepiece: <0x41> is 'A', <0x41> <0x80> is 'A\ufffd'
# Expected of both: 'A\ufffd', as Python's bytes.decode(errors="replace") and the WHATWG standard have it. Way around:
# pass on no piece of a run before it has ended; decode runs of byte tokens oneself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tokenizers==0.23.3 sentencepiece==0.2.1
cd "$folder"
venv/bin/python - <<'PYTHON'
import io

import sentencepiece
from tokenizers import Tokenizer, decoders, models

vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
found = tokenizer.decode([0x41]), tokenizer.decode([0x41, 0x80])
print(f"tokenizers:    <0x41> is {found[0]!a}, <0x41> <0x80> is {found[1]!a}")

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a b c d"] * 9), model_writer=model, vocab_size=270, byte_fallback=True, model_type="bpe",
    hard_vocab_limit=False, minloglevel=2,
)
processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
a, stray = (processor.piece_to_id(piece) for piece in ("<0x41>", "<0x80>"))
expected = processor.decode([a]), processor.decode([a, stray])
print(f"sentencepiece: <0x41> is {expected[0]!a}, <0x41> <0x80> is {expected[1]!a}")
assert expected == ("A", "A\ufffd")
assert found == ("A", "\ufffd\ufffd"), "changed: the valid byte stays"
print("as found: a valid character is erased by the byte behind it")
PYTHON
