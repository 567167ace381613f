"""Keep the tables of all benchmarks in one file, `results.md`, a section for each."""

import re
from pathlib import Path

RESULTS = Path(__file__).with_name("results.md")


def record(section: str) -> None:
    """Write a section, which begins with its `# Title`, in the place of the one so called."""
    title = section.partition("\n")[0]
    sections = re.split(r"(?m)^(?=# )", RESULTS.read_text())
    kept = [text.strip() for text in sections if text.strip()]
    titles = [text.partition("\n")[0] for text in kept]
    if title in titles:
        kept[titles.index(title)] = section.strip()
    else:
        kept.append(section.strip())
    RESULTS.write_text("\n\n".join(kept) + "\n")
