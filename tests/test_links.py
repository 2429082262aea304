"""Pages and notebooks link to files that exist, and to headings that are there."""

import json
import re

import pytest

from docs.configs import ROOT

PAGES = sorted(
  [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("notebooks/*.ipynb"),
    *ROOT.glob("docs/notebooks/*.md"),
    *ROOT.glob("checkpoints/**/README.md"),
  ]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(path):
  text = path.read_text(encoding="utf-8")
  if path.suffix == ".ipynb":
    cells = json.loads(text)["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
  return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
  """As GitHub makes them: lower case, spaces to hyphens, other punctuation dropped."""
  headings = re.findall(r"^#+ (.+)$", text_of(path), flags=re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
  lost = []
  for link in LINK.findall(text_of(page)):
    target, _, anchor = link.partition("#")
    if "://" in target:
      continue
    file = (page.parent / target).resolve() if target else page
    if not file.exists() or (anchor and anchor not in anchors(file)):
      lost.append(link)
  assert not lost
