"""What the demo can teach: the handbook as documents, or as conversations about it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from forgellm.paths import Workspace
from forgellm.schema.recipe import Recipe, parse_recipe

ASSETS = Path(__file__).parents[1] / "assets"
HANDBOOK = ASSETS / "handbook"
CONVERSATIONS = ASSETS / "handbook_conversations.jsonl"


@dataclass(frozen=True)
class Lesson:
    """What is taught, and what is measured beside the probes and general text.

    Attributes:
        name: keeps the demo's state apart from that of the other lesson.
        material: a file, or a folder of Markdown files.
        held_out: what the validation loss is the loss on, for the table.
        num_questions: how many of the probes are also asked as questions, in a chat.
    """

    name: str
    recipe_file: Path
    material: Path
    held_out: str
    num_questions: int

    def recipe(self) -> Recipe:
        return parse_recipe(yaml.safe_load(self.recipe_file.read_text("utf-8")), from_text=True)

    def copy_material(self, workspace: Workspace) -> None:
        """Put what is shipped where the recipe looks for it, as a user would their own."""
        target = workspace.datasets / self.recipe().dataset
        target.mkdir(parents=True, exist_ok=True)
        for file in [self.material] if self.material.is_file() else self.material.glob("*.md"):
            if not (target / file.name).exists():
                shutil.copyfile(file, target / file.name)


CPT = Lesson("cpt", ASSETS / "demo_recipe.yaml", HANDBOOK, "handbook", num_questions=0)
IFT = Lesson("ift", ASSETS / "demo_ift_recipe.yaml", CONVERSATIONS, "answers", num_questions=26)
