"""`lspread audit`: which given labels look wrong."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lspread.cli.items import LABELS_HELP, check_folder

if TYPE_CHECKING:
    from torch import Tensor

    from lspread.typing import Metric

__all__ = ["run"]

NUM_NEIGHBORS = 5
MOST_DISTANCES = 1 << 24
"""Numbers that a block of distances has at most."""


def run(command: str, argv: list[str]) -> int:
    """Rank the given labels by how much the others speak against them; changes none."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Leave out every given label in turn, ask all others for it, and rank labels by how wrong they "
        "look. No label is changed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  lspread audit photos.safetensors --labels labels.csv
  lspread audit photos.safetensors --labels labels.csv -o check/ --json""",
    )
    parser.add_argument("embeddings", type=Path, help="a file of `lspread embed`")
    parser.add_argument("--labels", type=Path, required=True, help=LABELS_HELP)
    parser.add_argument("-o", "--output", type=Path, default=Path("audit"), help="folder (default: audit/)")
    parser.add_argument("--alpha", type=float, default=0.95, help="how far labels speak (default: 0.95)")
    parser.add_argument("--shown", type=int, default=20, help="most suspicious labels on the sheet (default: 20)")
    from lspread.cli.items import add_graph_options, graph_of, sheet_picture

    add_graph_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    options = parser.parse_args(argv)
    check_folder(options.output)

    from lspread.active import audit_labels
    from lspread.data import EmbeddedItems
    from lspread.graph import normalize_graph
    from lspread.report import draw_contact_sheet

    items = EmbeddedItems.load(options.embeddings)
    label, names = items.read_labels(options.labels)
    audit = audit_labels(normalize_graph(graph_of(items, options)), label, len(names), alpha=options.alpha)
    order = audit.order.tolist()
    rows, given, suggested = audit.index.tolist(), audit.label.tolist(), audit.suggested.tolist()
    suspicion = audit.suspicion.tolist()

    against = _contradicting(items.embedding[audit.index], audit.label, options.metric or items.metric)
    column = "file" if items.kind == "image" else "item"
    table = [
        [
            items.items[rows[at]],
            names[given[at]],
            names[suggested[at]],
            f"{suspicion[at]:.4f}",
            "; ".join(f"{items.items[rows[other]]} ({names[given[other]]})" for other in against[at]),
        ]
        for at in order
    ]
    header = [column, "label", "suggested", "suspicion", "nearest of other classes"]
    items.write_table(options.output / "audit.csv", header, table)
    noise = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, audit.noise.tolist(), strict=True)]
    items.write_table(options.output / "noise.csv", ["given \\ suggested", *names], noise)
    files = [str(options.output / "audit.csv"), str(options.output / "noise.csv")]
    # Another class at least twice as likely: less may be chance.
    doubtful = [at for at, trust in zip(order, audit.trust[audit.order].tolist(), strict=True) if trust < 0.5]
    if items.kind == "image":
        sheet = [
            [
                sheet_picture(items, rows[at], f"given {names[given[at]]}", f"rather {names[suggested[at]]}?"),
                *(sheet_picture(items, rows[other], names[given[other]]) for other in against[at]),
            ]
            for at in doubtful[: options.shown]
        ]
        if sheet:
            files.append(str(draw_contact_sheet(sheet, options.output / "audit.png")))
    alone = int((~audit.is_reached).sum())
    if options.json:
        ranked = [{"item": row[0], "label": row[1], "suggested": row[2], "suspicion": float(row[3])} for row in table]
        print(json.dumps({"num_labels": len(rows), "num_doubtful": len(doubtful), "labels": ranked, "files": files}))
        return 0
    agreed = len(rows) - len(doubtful)
    print(f"{len(rows)} labels: the others can live with {agreed}; to {len(doubtful)} they would give another class")
    for line in table[: min(10, len(doubtful))]:
        print(f"  {line[0]}    given '{line[1]}', rather '{line[2]}'    suspicion {float(line[3]):.2f}")
    if alone:
        print(f"nothing can be said of {alone} of them: no other label of their class, or none that reaches them")
    print("wrote " + ", ".join(files))
    return 0


def _contradicting(z: "Tensor", given: "Tensor", metric: "Metric") -> list[list[int]]:
    """Return for every labeled item the nearest ones of other classes, nearest first."""
    import torch
    from torch.nn.functional import normalize

    z = normalize(z, dim=1) if metric == "cosine" else z - z.mean(0)
    found = []
    for rows in torch.arange(len(z)).split(max(1, MOST_DISTANCES // len(z))):
        distance = -z[rows] @ z.T if metric == "cosine" else torch.cdist(z[rows], z)
        distance[given[rows, None] == given] = torch.inf
        nearest = distance.topk(min(NUM_NEIGHBORS, len(z)), largest=False)
        for places, lengths in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True):
            found.append([place for place, length in zip(places, lengths, strict=True) if length < float("inf")])
    return found
