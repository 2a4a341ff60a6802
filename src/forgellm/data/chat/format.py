"""How a run reads conversations: the model's own chat template, or a named one for a base model."""

from __future__ import annotations

from forgellm.data.chat.encoding import ChatFormat
from forgellm.data.tokenizer import Tokenizer
from forgellm.schema.recipe import Recipe

# For models whose vocabulary has ChatML's control tokens.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# For all others: turns named in plain words, each ended by the model's own end of text.
TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '### ' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)
NAMED = {"chatml": CHATML, "turns": TURNS}


def chat_format(recipe: Recipe, tokenizer: Tokenizer, seq_len: int) -> ChatFormat:
    # A row of T tokens also predicts one beyond it.
    template = template_of(recipe, tokenizer)
    columns = {str(role): column for role, column in (recipe.columns or {}).items()}
    return ChatFormat(template, recipe.loss_on, seq_len + 1, columns, recipe.learns_preferences)


def template_of(recipe: Recipe, tokenizer: Tokenizer) -> str:
    """The named template of the recipe, the model's own, or the named one that suits the model."""
    if recipe.chat_template != "auto":
        return NAMED[recipe.chat_template]
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    return CHATML if "<|im_end|>" in tokenizer.special_tokens else TURNS
